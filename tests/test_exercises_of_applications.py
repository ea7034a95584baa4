"""Wrong answers to the exercises of notebook 06, as readers write them, are refused by name."""

from collections import Counter

import numpy as np
import pytest
from conftest import NOTEBOOKS

from llmnb import exercises
from llmnb.exercises import applications


def my_hit_rate(found, evidence, k):
    hits = [wanted in ids[:k] for ids, wanted in zip(found, evidence, strict=True)]
    return sum(hits) / len(hits)


def my_fusion(rankings, k):
    scores = {}
    for ranking in rankings:
        for rank, each in enumerate(ranking, start=1):
            scores[each] = scores.get(each, 0) + 1 / (k + rank)
    return sorted(scores, key=lambda each: (-scores[each], each))


def my_threshold(scores, answerable):
    def gain(threshold):
        declined = scores < threshold
        return declined[~answerable].mean() - declined[answerable].mean()

    return max(sorted(set(scores)), key=gain)  # of equals, max takes the first


SOLUTIONS = {"hit_rate": my_hit_rate, "fusion": my_fusion, "threshold": my_threshold}


def fused(rankings, k, part=lambda k, rank: 1 / (k + rank), start=1):
    scores = {}
    for ranking in rankings:
        for rank, each in enumerate(ranking, start):
            scores.setdefault(each, []).append(part(k, rank))
    return scores


def ordered(scores, join=sum, best=-1):
    return sorted(scores, key=lambda each: (best * join(scores[each]), each))


def divided(values, by):
    return sum(values) / by


def hits(found, evidence, k):
    return [e in ids[:k] for ids, e in zip(found, evidence, strict=True)]


def told(scores, answerable, gain, declined=np.less, levels=np.unique):
    scored = [
        (gain(below[~answerable], below[answerable]), level)
        for level in levels(scores)
        for below in [declined(scores, level)]
    ]
    return max(scored, key=lambda pair: pair[0])[1]


def shares(no, yes):
    return no.mean() - yes.mean()


HIT_RATE = [
    (lambda f, e, k: np.mean([x in ids for ids, x in zip(f, e, strict=True)]), "the whole list"),
    (lambda f, e, k: np.mean([ids[:1] == [x] for ids, x in zip(f, e, strict=True)]), "first id"),
    (lambda f, e, k: np.mean(hits(f, e, k - 1)), "leave out the k-th"),
    (lambda f, e, k: np.mean(hits(f, e, k + 1)), "k + 1 ids"),
    (lambda f, e, k: sum(hits(f, e, k)), "how many hits"),
    (lambda f, e, k: divided(hits(f, e, k), k * len(f)), "the precision"),
    (lambda f, e, k: divided(hits(f, e, k), len([ids for ids in f if ids])), "is a miss"),
    (
        lambda f, e, k: np.mean(
            [1 / (ids.index(x) + 1) if x in ids[:k] else 0 for ids, x in zip(f, e, strict=True)]
        ),
        "mean reciprocal rank",
    ),
    (lambda f, e, k: np.mean([ids[0] == x for ids, x in zip(f, e, strict=True)]), "IndexError"),
    (lambda f, e, k: 1 - np.mean(hits(f, e, k)), "share of misses"),
    (lambda f, e, k: hits(f, e, k), "Expected the shape (), got (6,)"),
    (lambda f, e, k: 0.9, "Expected 0.5, got 0.9"),
]
FUSION = [
    (lambda r, k: ordered(fused(r, k), best=1), "the worst first"),
    (lambda r, k: ordered(fused(r, k, start=0)), "ranks begin at 0"),
    (lambda r, k: ordered(fused(r, k, lambda k, rank: 1 / rank)), "no effect"),
    (lambda r, k: ordered(fused(r, k, lambda k, rank: 1 / k + rank)), "brackets"),
    (lambda r, k: ordered(fused(r, k, lambda k, rank: rank), best=1), "add up the ranks"),
    (lambda r, k: ordered(fused(r, k), max), "best rank alone"),
    (lambda r, k: ordered(fused(r, k), np.mean), "You average"),
    (lambda r, k: [i for i in ordered(fused(r, k)) if all(i in each for each in r)], "stays in"),
    (
        lambda r, k: sorted(s := fused(r, k), key=lambda each: sum(s[each]), reverse=True),
        "not the one met first",
    ),
    (
        lambda r, k: [i for _, i in sorted([(sum(p), i) for i, p in fused(r, k).items()])[::-1]],
        "not the larger",
    ),
    (lambda r, k: fused(r, k), "Expected [5, 8, 2, 9], got {"),
]
THRESHOLD = [
    (lambda s, a: told(s, a, shares, levels=lambda s: np.unique(s)[::-1]), "take the lowest"),
    (lambda s, a: told(s, a, shares, np.less_equal), "equal to the threshold"),
    (lambda s, a: told(s, a, lambda no, yes: no.sum() - yes.sum()), "share of each kind"),
    (
        lambda s, a: max(np.unique(s), key=lambda t: ((s >= t) == a).mean()),  # the accuracy
        "share of each kind",
    ),
    (lambda s, a: told(s, a, lambda no, yes: yes.mean() - no.mean()), "other way round"),
    (lambda s, a: told(s, a, shares, np.greater_equal), "other way round"),
    (lambda s, a: told(s, a, lambda no, yes: no.mean()), "what is lost"),
    (lambda s, a: max((s < t)[~a].mean() - (s < t)[a].mean() for t in s), "the largest difference"),
    (lambda s, a: int(np.argmax([shares((s < t)[~a], (s < t)[a]) for t in s])), "Expected 0."),
]
CASES = {"hit_rate": HIT_RATE, "fusion": FUSION, "threshold": THRESHOLD}


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_solutions_are_right(name):
    check = getattr(applications, f"check_{name}")
    assert check(SOLUTIONS[name]) == exercises.RIGHT
    assert check(lambda *case: None) == exercises.NOT_ATTEMPTED


@pytest.mark.parametrize(
    ("name", "attempt", "message"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_wrong_answer_is_refused_by_name(name, attempt, message):
    said = getattr(applications, f"check_{name}")(attempt)
    assert message in said and said != exercises.RIGHT


def test_right_answers_by_another_way():
    def threshold(scores, answerable):  # the distance of two distribution functions
        levels = np.unique(scores)
        kinds = [np.sort(scores[answerable == kind]) for kind in (False, True)]
        no, yes = (np.searchsorted(kind, levels) / len(kind) for kind in kinds)
        return levels[np.argmax(no - yes)]

    def fusion(rankings, k):
        ids = np.unique(np.concatenate(rankings)).astype(int)
        places = [{each: n for n, each in enumerate(ranking, 1)} for ranking in rankings]
        gains = [sum(1 / (k + p[i]) for p in places if i in p) for i in ids.tolist()]
        return ids[np.lexsort((ids, -np.array(gains)))]

    assert applications.check_threshold(threshold) == exercises.RIGHT
    assert applications.check_fusion(fusion) == exercises.RIGHT


def test_what_the_reader_is_given_stays_as_it_was():
    def greedy(found, evidence, k):  # empties the lists that it gets
        return np.mean(
            [e in [ids.pop(0) for _ in ids[:k]] for ids, e in zip(found, evidence, strict=True)]
        )

    assert applications.check_hit_rate(greedy) == exercises.RIGHT
    assert applications.check_hit_rate(my_hit_rate) == exercises.RIGHT


def test_every_exercise_of_the_series_refuses_three_wrong_answers_or_more():
    import test_exercises_of_evaluation as of_evaluation
    import test_exercises_of_practice as of_practice
    from test_exercises import WRONG, solutions

    counts = Counter(check.__name__ for check, *_ in WRONG)
    practice = {
        name: getattr(of_practice, name.upper()) for name in ("macro_f1", "merge", "choose")
    }
    for name, cases in (CASES | of_evaluation.CASES | practice).items():
        counts[f"check_{name}"] += len(cases)
    assert {check for path in NOTEBOOKS for check, *_ in solutions(path)} == set(counts)
    assert len(counts) == 18 and min(counts.values()) >= 3
