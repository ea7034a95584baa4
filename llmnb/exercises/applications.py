"""The exercises of notebook 06."""

from collections import defaultdict

import numpy as np

from llmnb.exercises import check


def check_hit_rate(attempt) -> str:
    """Exercise 1: attempt(rankings, evidence, k), the share with evidence in the first k."""

    def is_hit(ids, right, k):
        return right in ids[:k]

    def hit_rate(rankings, evidence, k, hit=is_hit, n=lambda r, k: len(r)):
        pairs = zip(rankings, evidence, strict=True)
        return sum(hit(ids, right, k) for ids, right in pairs) / n(rankings, k)

    mistakes = {
        "You look at the whole list, not at k ids.": {"hit": lambda ids, e, k: e in ids},
        "You look at the first id alone, not at k.": {"hit": lambda ids, e, k: e in ids[:1]},
        "You leave out the k-th id.": {"hit": lambda ids, e, k: e in ids[: k - 1]},
        "You look at k + 1 ids.": {"hit": lambda ids, e, k: e in ids[: k + 1]},
        "That is the number of hits: divide by the questions.": {"n": lambda r, k: 1},
        "That is the precision: divide by the questions, not by the ids.": {
            "n": lambda r, k: k * len(r)
        },
        "A question without any ids is a miss: divide by all questions.": {
            "n": lambda r, k: sum(map(bool, r))
        },
        "That is the mean reciprocal rank: a hit counts 1 at any rank.": {
            "hit": lambda ids, e, k: 1 / (1 + ids.index(e)) if e in ids[:k] else 0
        },
        "That is the share of misses.": {"hit": lambda ids, e, k: e not in ids[:k]},
    }
    rankings = [[4, 2, 9], [7, 1, 3, 8, 5], [], [6, 5, 4, 2], [9, 0], [3, 8, 2, 0]]
    cases = [(rankings, [4, 3, 5, 2, 9, 8], k) for k in (2, 3)]
    return check(attempt, hit_rate, cases, mistakes)


def check_fusion(attempt) -> str:
    """Exercise 2: attempt(rankings, k), the ids by reciprocal rank fusion, best first."""

    def reciprocal(k, rank):
        return 1 / (k + rank)

    def fused(rankings, k, part=reciprocal, join=sum, tie=1, sign=-1, minimum=1):
        parts = defaultdict(list)  # of the score of an id
        for ranking in rankings:
            for rank, id_ in enumerate(ranking, 1):
                parts[id_].append(part(k, rank))
        ids = [id_ for id_ in parts if len(parts[id_]) >= minimum]
        return sorted(ids, key=lambda id_: (sign * join(parts[id_]), tie * id_))

    mistakes = {
        "Your order is the worst first.": {"sign": 1},
        "Your ranks begin at 0, not at 1.": {"part": lambda k, rank: 1 / (k + rank - 1)},
        "Your k has no effect: add up 1 / (k + rank).": {"part": lambda k, rank: 1 / rank},
        "Mind the brackets: 1 / k + rank is another number.": {
            "part": lambda k, rank: 1 / k + rank
        },
        "You add up the ranks: add up 1 / (k + rank).": {"part": lambda k, rank: -rank},
        "You take an id's best rank alone: add up over the rankings.": {"join": max},
        "You average over the rankings that have an id: add up.": {"join": np.mean},
        "An id that a ranking lacks gets nothing from it; it stays in.": {"minimum": 2},
        "Equal scores: the smaller id comes first, not the one met first.": {"tie": 0},
        "Equal scores: the smaller id comes first, not the larger.": {"tie": -1},
    }
    random = np.random.default_rng(2)
    cases = [([[8, 5, 2], [5, 8, 9]], 60)]
    for k in (2, 5):  # two rankings: sums of three could differ in the last digit
        cases.append(([random.permutation(9)[:6].tolist() for _ in range(2)], k))
    return check(attempt, fused, cases, mistakes)


def check_threshold(attempt) -> str:
    """Exercise 3: attempt(scores, answerable), the score that separates the kinds best."""

    def difference(no, yes):
        return no.mean() - yes.mean()

    def best(scores, answerable, gain=difference, declined=np.less, step=1, result=0):
        levels = np.unique(scores)[::step]  # the first of the best is taken
        below = [declined(scores, level) for level in levels]
        gains = [gain(row[~answerable], row[answerable]) for row in below]
        return (levels[np.argmax(gains)], max(gains))[result]

    mistakes = {
        "Of equally good thresholds take the lowest, not the highest.": {"step": -1},
        "A score equal to the threshold is answered.": {"declined": np.less_equal},
        "You count questions: take the share of each kind, whatever its size.": {
            "gain": lambda no, yes: no.sum() - yes.sum()
        },
        "It is the other way round: the unanswerable ones should be declined.": {
            "gain": lambda no, yes: yes.mean() - no.mean()
        },
        "You forget what is lost: subtract the share of answerable ones declined.": {
            "gain": lambda no, yes: no.mean()
        },
        "That is the largest difference: return the score that reaches it.": {"result": 1},
    }
    random = np.random.default_rng(0)
    cases = []
    for n in (4, 8):  # shares of 4, 8 and 16 are exact, so ties are ties
        answerable = random.permutation(np.repeat([False, True], [n, 16]))
        scores = np.round(random.normal(0.4 + 0.15 * answerable, 0.2), 1)
        cases.append((scores, answerable))
    return check(attempt, best, cases, mistakes)
