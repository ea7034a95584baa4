"""The exercises of notebook 05."""

from collections import Counter

import numpy as np

from llmnb.exercises import check


def check_token_f1(attempt) -> str:
    """Exercise 1: attempt(predicted, accepted) is SQuAD's F1 of two lists of words."""

    def common(p, a):
        return (Counter(p) & Counter(a)).total()

    def score(shared=common, total=lambda p, a: len(p) + len(a), empty=None):
        def f1(predicted, accepted):
            if not predicted or not accepted:
                return float(predicted == accepted) if empty is None else empty
            return 2 * shared(predicted, accepted) / total(predicted, accepted)

        return f1

    def sets(p, a):
        return len(set(p) & set(a))

    mistakes = {
        "Your words count once; SQuAD counts each as often as it occurs in both.": score(
            sets, lambda p, a: len(set(p)) + len(set(a))
        ),
        "Shared words must count as often as they occur in both lists.": score(sets),
        "A word counts as shared at most as often as it stands in the other list.": score(
            lambda p, a: sum(word in a for word in p)
        ),
        "Two empty lists agree: their score is 1.": score(empty=0.0),
        "One empty list against words scores 0.": score(empty=1.0),
        "That is the precision: F1 counts the accepted words too.": score(
            total=lambda p, a: 2 * len(p)
        ),
        "That is the recall: F1 counts the predicted words too.": score(
            total=lambda p, a: 2 * len(a)
        ),
        "Half of it: F1 is 2 · shared / (predicted + accepted).": score(
            total=lambda p, a: 2 * (len(p) + len(a)), empty=None
        ),
    }
    cases = [
        (["the", "old", "old", "red", "house"], ["old", "house"]),
        (["a", "b"], ["b", "b", "c"]),
        (["so", "so", "good"], ["so", "so", "bad"]),
        ([], []),
        (["x"], []),
        ([], ["x", "y"]),
    ]
    return check(attempt, score(), cases, mistakes)


def check_paired_interval(attempt) -> str:
    """Exercise 2: attempt(right_a, right_b, rows), the percentile interval of A minus B."""

    def interval(drawn=lambda a, b, rows: a[rows] - b[rows], ends=(0.025, 0.975), axis=1):
        def quantiles(a, b, rows):
            return np.quantile(drawn(a, b, rows).mean(axis=axis), ends)

        return quantiles

    def crosswise(a, b, rows):
        low_a, high_a = np.quantile(a[rows].mean(axis=1), [0.025, 0.975])
        low_b, high_b = np.quantile(b[rows].mean(axis=1), [0.025, 0.975])
        return np.array([low_a - high_b, high_a - low_b])

    mistakes = {
        "You draw other texts for B than for A: both are asked the same ones.": interval(
            lambda a, b, rows: a[rows] - b[np.roll(rows, 1, axis=0)]
        ),
        "That is B less A.": interval(lambda a, b, rows: b[rows] - a[rows]),
        "Your ends leave 5 % on each side: a 95 % interval leaves 2.5 %.": interval(
            ends=(0.05, 0.95)
        ),
        "You average over the resamples: average over the texts.": interval(axis=0),
        "Those are two separate intervals: subtract in each resample.": crosswise,
        "That is A alone: subtract B's accuracy in the same resample.": interval(
            lambda a, b, rows: a[rows]
        ),
    }
    generator = np.random.default_rng(0)
    cases = []
    for n in (40, 25):
        right_a = generator.integers(0, 2, n)
        right_b = (generator.random(n) < 0.6).astype(int)
        cases.append((right_a, right_b, generator.integers(0, n, (200, n))))
    return check(attempt, interval(), cases, mistakes)


def check_calibration_error(attempt) -> str:
    """Exercise 3: attempt(confidence, right, n_bins), the expected calibration error."""

    def error(binned=lambda c, n: np.ceil(c * n).clip(1), gap=np.abs, weigh=True):
        def mean(confidence, right, n_bins):
            bins = binned(confidence, n_bins)
            gaps, sizes = [], []
            for number in np.unique(bins):
                inside = bins == number
                gaps.append(gap(right[inside].mean() - confidence[inside].mean()))
                sizes.append(inside.sum())
            return np.average(gaps, weights=sizes if weigh else None)

        return mean

    mistakes = {
        "You average over the bins; larger bins count more.": error(weigh=False),
        "Your gaps cancel: take the absolute value in each bin.": error(gap=lambda x: x),
        "Your gaps are squared; take their absolute value.": error(gap=np.square),
        "A confidence at an edge belongs to the bin on its left.": (
            error(lambda c, n: np.minimum(np.floor(c * n), n - 1))
        ),
        "That is one bin for all texts: gaps in different bins must not cancel.": error(
            lambda c, n: np.zeros(len(c))
        ),
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
    return check(attempt, error(), cases, mistakes)
