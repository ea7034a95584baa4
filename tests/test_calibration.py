"""Reliability, calibration error, Brier and temperature against hand-worked and known answers."""

import math

import numpy as np
import pytest
import sklearn.metrics
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve

from llmnb.evaluation import calibration, scores
from llmnb.evaluation.calibration import apply_temperature, fit_temperature, reliability

PROBABILITIES, LABELS = [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]], [0, 2]


def drawn(n, classes, seed=0, spread=2.0):
    """Logits of a calibrated model, and labels drawn from what it says."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, (n, classes))
    noise = generator.gumbel(size=(n, classes))  # the largest sum is a draw from the softmax
    return logits, (logits + noise).argmax(axis=1)


def test_reliability_by_hand():
    p = [0.95, 0.91, 0.2, 0.55, 0.6, 0.7]  # of class 1: sure .95 .91 .8 .55 .6 .7
    table = reliability(p, [1, 0, 0, 1, 0, 1], bins=3)
    assert list(table["items"]) == [2, 2, 2]
    assert list(table["confidence"]) == pytest.approx([0.575, 0.75, 0.93])
    assert list(table["accuracy"]) == [0.5, 1, 0.5]
    assert len(reliability(p, [1, 0, 0, 1, 0, 1], bins=10)) == 6  # not more bins than items
    wilson = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert (table["low"][0], table["high"][0]) == pytest.approx((wilson.low, wilson.high))
    error = calibration.error_interval(p, [1, 0, 0, 1, 0, 1], bins=3)
    assert error.value == pytest.approx((2 * 0.075 + 2 * 0.25 + 2 * 0.43) / 6)


def test_the_table_is_scikit_learns():
    logits, labels = drawn(2000, 2)
    p = special.softmax(logits, axis=1)
    sure, right = p.max(1), p.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy="quantile")
    table = reliability(p, labels, 10)
    np.testing.assert_allclose(table["accuracy"], accuracy, atol=1e-12)
    np.testing.assert_allclose(table["confidence"], confidence, atol=1e-12)
    assert table["items"].tolist() == [200] * 10


@pytest.mark.parametrize(("classes", "temperature"), [(2, 3.0), (5, 0.4)])
def test_a_known_temperature_is_found_again(classes, temperature):
    logits, labels = drawn(20_000, classes)
    fitted = fit_temperature(logits * temperature, labels)
    assert fitted == pytest.approx(temperature, rel=0.04)
    # exactly: scaling the logits scales T
    assert fitted == pytest.approx(temperature * fit_temperature(logits, labels), rel=1e-8)
    shifted = logits * temperature + np.arange(20_000)[:, None]  # softmax does not see this
    assert fit_temperature(shifted, labels) == pytest.approx(fitted, rel=1e-6)


def test_the_temperature_by_hand_and_by_a_search():
    # two classes, 8 of 10 right with a margin of 4: the best p is .8, so 4/T = log 4
    logits = np.array([[4.0, 0.0]] * 10)
    labels = np.array([0] * 8 + [1] * 2)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(4 / math.log(4), rel=1e-9)
    np.testing.assert_allclose(apply_temperature(logits, fitted)[0], [0.8, 0.2])
    logits, labels = drawn(300, 6, seed=4)

    def nll(temperature):
        p = special.log_softmax(logits / temperature, axis=1)
        return -p[np.arange(300), labels].mean()

    best = optimize.minimize_scalar(nll, bounds=(0.05, 20), method="bounded").x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-4)
    assert fit_temperature(logits * 1e-6, labels) == pytest.approx(best * 1e-6, rel=1e-4)


def test_brier_by_hand_and_by_scikit_learn():
    # (.3² + .2² + .1² + .1² + .5² + .6²)/2
    assert scores.brier(PROBABILITIES, LABELS) == pytest.approx(0.38)
    generator = np.random.default_rng(0)
    p, labels = generator.random(40), generator.integers(0, 2, 40)
    expected = sklearn.metrics.brier_score_loss(labels, p)
    assert scores.brier(p, labels) == pytest.approx(expected)
    assert scores.brier(np.stack([1 - p, p], axis=1), labels) == pytest.approx(expected)


def test_the_calibration_error_by_hand():
    error = calibration.error_interval(PROBABILITIES, LABELS)  # sure .7 and right; sure .5, wrong
    assert error.value == pytest.approx((0.3 + 0.5) / 2)


def overconfident(generator, n, gap):
    """Probabilities, labels, and the true error in six bins: right less often by gap(sure)."""
    sure = np.sort(0.5 + 0.48 * generator.beta(3, 1.2, n))
    labels = (generator.random(n) > sure - gap(sure)).astype(int)
    truth = sum(abs(gap(part).sum()) for part in np.array_split(sure, 6)) / n
    return np.stack([sure, 1 - sure], axis=1), labels, truth


GAPS = {
    "none": lambda sure: 0 * sure,
    "seven": lambda sure: 0 * sure + 0.07,
    "both signs": lambda sure: 0.3 * (sure - 0.7),
}


@pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
def test_the_interval_of_a_calibration_error_covers_at_least_as_often_as_it_says(gap):
    covered = 0
    for seed in range(250):
        p, labels, truth = overconfident(np.random.default_rng(seed), 400, gap)
        interval = calibration.error_interval(p, labels, 6, resamples=300, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert covered / 250 >= 0.94


def test_a_calibrated_model_has_the_simulated_errors():
    generator = np.random.default_rng(0)
    p, _, _ = overconfident(generator, 300, GAPS["none"])
    errors = []
    for _ in range(400):
        labels = (generator.random(300) > p[:, 0]).astype(int)
        errors.append(calibration.error_interval(p, labels, 6, resamples=1).value)
    simulated = calibration.errors_if_calibrated(p, 6)
    assert simulated.mean() == pytest.approx(np.mean(errors), rel=0.06)
    assert np.quantile(simulated, 0.95) == pytest.approx(np.quantile(errors, 0.95), rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.brier([[0.7, 0.4]], [0]), "sum to 1"),
        (lambda: reliability([1.2], [0]), "between 0 and 1"),
        (lambda: reliability([[0.7, 0.3]], [2]), "0 to 1; got"),
        (lambda: reliability([[1.0]], [0]), "shape"),
        (lambda: reliability([[0.5, math.nan]], [0]), "contains NaN"),
        (lambda: reliability([0.5, 0.4], [0, 1, 1]), r"2 items, but the labels have shape \(3,\)"),
        (lambda: reliability([0.5, 0.4], [0, 1], bins=0), "bins must be a whole number"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [0, 0]), "no mistake"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [1, 1]), "no better than chance"),
        (lambda: fit_temperature([[0.0, 0], [0, 0]], [1, 0]), "no better than chance"),
        (lambda: fit_temperature([[1.0, 0], [1, 0]], [1]), "2 items"),
        (lambda: apply_temperature([[1.0, 0]], 0), "positive"),
        (lambda: apply_temperature([[1.0, 0]], math.inf), "positive"),
        (lambda: apply_temperature([[1.0, math.nan]], 1), "contains NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
