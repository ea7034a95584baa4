"""Wrong answers to the exercises of notebook 05, as readers write them, are refused by name."""

from collections import Counter

import numpy as np
import pytest

from llmnb import exercises
from llmnb.evaluation import calibration, scores
from llmnb.exercises import evaluation


def f1(p, a, shared):
    return 2 * shared / (len(p) + len(a)) if p and a else float(p == a)


def common(p, a):
    return (Counter(p) & Counter(a)).total()


def ends(draws, low=2.5):
    return np.percentile(draws, [low, 100 - low])


def binned(c, right, bins, n_bins, weights=True, gap=abs):
    groups = [bins == each for each in range(n_bins + 1) if (bins == each).any()]
    gaps = [gap(right[g].mean() - c[g].mean()) for g in groups]
    return np.average(gaps, weights=[g.sum() for g in groups] if weights else None)


def left_open(c, n):
    return np.ceil(c * n).astype(int)


TOKEN_F1 = [
    (lambda p, a: f1(p, a, len(set(p) & set(a))), "as often as they occur"),
    (
        lambda p, a: (
            2 * len(set(p) & set(a)) / (len(set(p)) + len(set(a))) if p and a else float(p == a)
        ),
        "words count once",
    ),
    (lambda p, a: f1(p, a, sum(w in a for w in p)), "at most as often"),
    (lambda p, a: 2 * common(p, a) / max(len(p) + len(a), 1), "Two empty lists agree"),
    (lambda p, a: common(p, a) / len(p) if p and a else float(p == a), "the precision"),
    (lambda p, a: common(p, a) / len(a) if p and a else float(p == a), "the recall"),
    (lambda p, a: 2 * common(p, a) / (len(p) + len(a)), "raised ZeroDivisionError"),
]
PAIRED = [
    (lambda a, b, rows: ends((b[rows] - a[rows]).mean(1)), "B less A"),
    (lambda a, b, rows: ends((a[rows] - b[rows]).mean(1), 5), "2.5 %"),
    (lambda a, b, rows: ends((a[rows] - b[rows]).mean(0)), "average over the resamples"),
    (lambda a, b, rows: ends(a[rows].mean(1)), "A alone"),
    (
        lambda a, b, rows: [
            ends(a[rows].mean(1))[0] - ends(b[rows].mean(1))[1],
            ends(a[rows].mean(1))[1] - ends(b[rows].mean(1))[0],
        ],
        "two separate intervals",
    ),
]
CALIBRATION = [
    (lambda c, r, n: binned(c, r, left_open(c, n), n, weights=False), "average over the bins"),
    (lambda c, r, n: binned(c, r, left_open(c, n), n, gap=float), "cancel"),
    (lambda c, r, n: binned(c, r, left_open(c, n), n, gap=lambda x: x**2), "squared"),
    (lambda c, r, n: binned(c, r, np.minimum((c * n).astype(int), n - 1), n), "on its left"),
    (lambda c, r, n: abs(c.mean() - r.mean()), "one bin for all"),
    (lambda c, r, n: abs(c - r).mean(), "single texts"),
]
CASES = {"token_f1": TOKEN_F1, "paired_interval": PAIRED, "calibration_error": CALIBRATION}


@pytest.mark.parametrize(
    ("name", "attempt", "message"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
)
def test_a_wrong_answer_is_refused_by_name(name, attempt, message):
    said = getattr(evaluation, f"check_{name}")(attempt)
    assert message in said


def test_right_answers_by_another_way():
    def token_f1(predicted, accepted):
        return scores.token_f1(" ".join(predicted), [" ".join(accepted)])

    def ece(confidence, right, n_bins):  # two classes, of which the first is predicted
        p = np.c_[confidence, 1 - confidence]
        sure = confidence >= 0.5
        gaps = calibration.reliability(p[sure], 1 - right[sure], n_bins)
        assert gaps["items"].sum() == sure.sum()
        return binned(confidence, right, left_open(confidence, n_bins), n_bins)

    assert evaluation.check_calibration_error(ece) == exercises.RIGHT
    assert (
        evaluation.check_paired_interval(lambda a, b, rows: ends(a[rows].mean(1) - b[rows].mean(1)))
        == exercises.RIGHT
    )
    # SQuAD's normalization drops "a": the lists of the check have one-letter words.
    assert evaluation.check_token_f1(lambda p, a: f1(p, a, common(p, a))) == exercises.RIGHT
    assert token_f1(["old", "house"], ["house"]) == f1(["old", "house"], ["house"], 1)
    assert evaluation.check_token_f1(lambda *case: None) == exercises.NOT_ATTEMPTED
