"""The exercises of notebook 05."""

from collections import Counter

import numpy as np

from llmnb.exercises import check


def check_token_f1(attempt) -> str:
    """Exercise 1: attempt(predicted, accepted) is SQuAD's F1 of two lists of words."""

    def common(p, a):
        return (Counter(p) & Counter(a)).total()

    def f1(p, a, shared=common, total=lambda p, a: len(p) + len(a), empty=None):
        if not p or not a:
            return float(p == a) if empty is None else empty
        return 2 * shared(p, a) / total(p, a)

    def sets(p, a):
        return len(set(p) & set(a))

    mistakes = {
        "Your words count once; SQuAD counts each as often as it occurs in both.": {
            "shared": sets,
            "total": lambda p, a: len(set(p)) + len(set(a)),
        },
        "Shared words must count as often as they occur in both lists.": {"shared": sets},
        "A word counts as shared at most as often as it stands in the other list.": {
            "shared": lambda p, a: sum(word in a for word in p)
        },
        "Two empty lists agree: their score is 1.": {"empty": 0.0},
        "One empty list against words scores 0.": {"empty": 1.0},
        "That is the precision: F1 counts the accepted words too.": {
            "total": lambda p, a: 2 * len(p)
        },
        "That is the recall: F1 counts the predicted words too.": {
            "total": lambda p, a: 2 * len(a)
        },
        "Half of it: F1 is 2 · shared / (predicted + accepted).": {
            "total": lambda p, a: 2 * len(p + a)
        },
    }
    cases = [
        (["the", "old", "old", "red", "house"], ["old", "house"]),
        (["a", "b"], ["b", "b", "c"]),
        (["so", "so", "good"], ["so", "so", "bad"]),
        *(([], []), (["x"], []), ([], ["x", "y"])),
    ]
    return check(attempt, f1, cases, mistakes)


def check_paired_interval(attempt) -> str:
    """Exercise 2: attempt(right_a, right_b, rows), the percentile interval of A minus B."""

    def interval(a, b, rows, drawn=lambda a, b, rows: a[rows] - b[rows], tail=0.025, axis=1):
        return np.quantile(drawn(a, b, rows).mean(axis=axis), [tail, 1 - tail])

    def crosswise(a, b, rows):
        low_a, high_a = interval(a, 0 * a, rows)
        low_b, high_b = interval(b, 0 * b, rows)
        return np.array([low_a - high_b, high_a - low_b])

    mistakes = {
        "You draw other texts for B than for A: both are asked the same ones.": {
            "drawn": lambda a, b, rows: a[rows] - b[np.roll(rows, 1, axis=0)]
        },
        "That is B less A.": {"drawn": lambda a, b, rows: b[rows] - a[rows]},
        "Your ends leave 5 % on each side: a 95 % interval leaves 2.5 %.": {"tail": 0.05},
        "You average over the resamples: average over the texts.": {"axis": 0},
        "Those are two separate intervals: subtract in each resample.": crosswise,
        "That is A alone: subtract B's accuracy in the same resample.": {
            "drawn": lambda a, b, rows: a[rows]
        },
    }
    generator = np.random.default_rng(0)
    cases = []
    for n in (40, 25):
        right_a = generator.integers(0, 2, n)
        right_b = (generator.random(n) < 0.6).astype(int)
        cases.append((right_a, right_b, generator.integers(0, n, (200, n))))
    return check(attempt, interval, cases, mistakes)


def check_calibration_error(attempt) -> str:
    """Exercise 3: attempt(confidence, right, n_bins), the expected calibration error."""

    def error(
        confidence, right, n_bins, binned=lambda c, n: np.ceil(c * n), gap=np.abs, weigh=True
    ):
        bins = binned(confidence, n_bins)
        gaps, sizes = [], []
        for number in np.unique(bins):
            inside = bins == number
            gaps.append(gap(right[inside].mean() - confidence[inside].mean()))
            sizes.append(inside.sum())
        return np.average(gaps, weights=sizes if weigh else None)

    mistakes = {
        "You average over the bins; larger bins count more.": {"weigh": False},
        "Your gaps cancel: take the absolute value in each bin.": {"gap": lambda x: x},
        "Your gaps are squared; take their absolute value.": {"gap": np.square},
        "A confidence at an edge belongs to the bin on its left.": {
            "binned": lambda c, n: np.minimum(np.floor(c * n), n - 1)
        },
        "That is one bin for all texts: gaps in different bins must not cancel.": {
            "binned": lambda c, n: np.zeros(len(c))
        },
        "That is the mean gap of single texts: first average inside each bin.": (
            lambda c, r, n: np.abs(c - r).mean()
        ),
    }
    generator = np.random.default_rng(1)
    cases = []
    for n, n_bins, share in ((60, 5, 0.7), (37, 4, 0.3)):
        confidence = np.r_[generator.random(n), np.arange(1, n_bins) / n_bins, 1.0]
        right = (generator.random(len(confidence)) < share).astype(int)
        cases.append((confidence, right, n_bins))
    return check(attempt, error, cases, mistakes)
