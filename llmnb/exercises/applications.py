"""The exercises of notebook 06."""

from collections import defaultdict

import numpy as np

from llmnb.exercises import check


def check_hit_rate(attempt) -> str:
    """Exercise 1: attempt(found, evidence, k): how often the evidence is among the first k."""

    def rate(value=lambda ids, right, k: right in ids[:k], over=lambda rankings, k: len(rankings)):
        def hit_rate(rankings, evidence, k):
            pairs = zip(rankings, evidence, strict=True)
            return sum(value(ids, right, k) for ids, right in pairs) / over(rankings, k)

        return hit_rate

    mistakes = {
        "You look at the whole list: only the first k count.": rate(lambda ids, e, k: e in ids),
        "You look at the first id alone: k of them count.": rate(lambda ids, e, k: e in ids[:1]),
        "You leave out the k-th: take ids[:k].": rate(lambda ids, e, k: e in ids[: k - 1]),
        "You look at k + 1 ids: take ids[:k].": rate(lambda ids, e, k: e in ids[: k + 1]),
        "That is how many hits there are: divide by the questions.": rate(
            over=lambda rankings, k: 1
        ),
        "That is the precision: divide by the questions, not by the ids that you looked at.": rate(
            over=lambda rankings, k: k * len(rankings)
        ),
        "A question for which nothing was found is a miss: it counts below the line too.": rate(
            over=lambda rankings, k: sum(map(bool, rankings))
        ),
        "That is the mean reciprocal rank: a hit counts 1 at any rank.": rate(
            lambda ids, e, k: 1 / (1 + ids.index(e)) if e in ids[:k] else 0
        ),
        "That is the share of misses.": rate(lambda ids, e, k: e not in ids[:k]),
    }
    rankings = [[4, 2, 9], [7, 1, 3, 8, 5], [], [6, 5, 4, 2], [9, 0], [3, 8, 2, 0]]
    cases = [(rankings, [4, 3, 5, 2, 9, 8], k) for k in (2, 3)]
    return check(attempt, rate(), cases, mistakes)


def check_fusion(attempt) -> str:
    """Exercise 2: attempt(rankings, k) is the ids by reciprocal rank fusion, the best first."""

    def fused(part=lambda k, rank: 1 / (k + rank), join=sum, tie=1, sign=-1, least=lambda n: 1):
        def fusion(rankings, k):
            parts = defaultdict(list)  # of each id's score
            for ranking in rankings:
                for rank, id_ in enumerate(ranking, 1):
                    parts[id_].append(part(k, rank))
            ids = [id_ for id_ in parts if len(parts[id_]) >= least(len(rankings))]
            return sorted(ids, key=lambda id_: (sign * join(parts[id_]), tie * id_))

        return fusion

    mistakes = {
        "Your order is the worst first.": fused(sign=1),
        "Your ranks begin at 0: the best id has rank 1.": fused(lambda k, r: 1 / (k + r - 1)),
        "Your k has no effect: add up 1 / (k + rank).": fused(lambda k, r: 1 / r),
        "Mind the brackets: 1 / k + rank is not 1 / (k + rank).": fused(lambda k, r: 1 / k + r),
        "You add up the ranks: add up 1 / (k + rank).": fused(lambda k, r: r, sign=1),
        "You keep an id's best rank alone: add up what each ranking gives.": fused(join=max),
        "You average over the rankings that have an id: add up.": fused(join=np.mean),
        "An id that a ranking lacks gets nothing from it; it stays in.": fused(least=lambda n: n),
        "Equal scores: the smaller id comes first, not the one met first.": fused(tie=0),
        "Equal scores: the smaller id comes first, not the larger.": fused(tie=-1),
    }
    random = np.random.default_rng(2)  # two rankings: sums of three could differ in the last digit
    cases = [([random.permutation(9)[:6].tolist() for _ in range(2)], k) for k in (2, 5)]
    return check(attempt, fused(), [([[8, 5, 2], [5, 8, 9]], 60), *cases], mistakes)


def check_threshold(attempt) -> str:
    """Exercise 3: attempt(scores, answerable) is the score that tells the two kinds apart best."""

    def best(gain=lambda no, yes: no.mean() - yes.mean(), declined=np.less, step=1, give="score"):
        def threshold(scores, answerable):
            levels = np.unique(scores)[::step]  # the first of the best is taken
            below = [declined(scores, level) for level in levels]
            gains = [gain(row[~answerable], row[answerable]) for row in below]
            return levels[np.argmax(gains)] if give == "score" else max(gains)

        return threshold

    mistakes = {
        "Of equally good thresholds take the lowest, not the highest.": best(step=-1),
        "A score equal to the threshold is answered: only lower ones are declined.": best(
            declined=np.less_equal
        ),
        "You count questions, so the larger kind decides: take the share of each kind.": best(
            lambda no, yes: no.sum() - yes.sum()
        ),
        "It is the other way round: those below, declined, should be unanswerable.": best(
            lambda no, yes: yes.mean() - no.mean()
        ),
        "You forget what is lost: subtract the share of answerable ones that are declined.": best(
            lambda no, yes: no.mean()
        ),
        "That is the largest difference: return the score that reaches it.": best(give="gain"),
    }
    random = np.random.default_rng(0)
    cases = []
    for n in (4, 8):  # shares of 4, 8 and 16 are exact, so ties are ties
        answerable = random.permutation(np.repeat([False, True], [n, 16]))
        scores = np.round(random.normal(0.4 + 0.15 * answerable, 0.2), 1)
        cases.append((scores, answerable))
    return check(attempt, best(), cases, mistakes)
