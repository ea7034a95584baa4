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
    table = reliability(p, [1, 0, 0, 1, 0, 1], bins=10)
    assert list(table["items"]) == [2, 1, 1, 2]  # .6 and .7 close their bins: (.5, .6], (.6, .7]
    assert list(table["left"]) == pytest.approx([0.5, 0.6, 0.7, 0.9])
    assert list(table["right"]) == pytest.approx([0.6, 0.7, 0.8, 1.0])
    assert list(table["confidence"]) == pytest.approx([0.575, 0.7, 0.8, 0.93])
    assert list(table["accuracy"]) == [0.5, 1, 1, 0.5]
    wilson = stats.binomtest(1, 2).proportion_ci(method="wilson")
    assert (table["low"][0], table["high"][0]) == pytest.approx((wilson.low, wilson.high))
    # (2·.075 + 1·.3 + 1·.2 + 2·.43)/6
    assert calibration.calibration_error(p, [1, 0, 0, 1, 0, 1]) == pytest.approx(1.51 / 6)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_table_is_scikit_learns(equal_mass):
    logits, labels = drawn(2000, 2)
    p = special.softmax(logits, axis=1)
    sure, right = p.max(1), p.argmax(1) == labels
    strategy = "quantile" if equal_mass else "uniform"
    accuracy, confidence = calibration_curve(right, sure, n_bins=10, strategy=strategy)
    table = reliability(p, labels, 10, equal_mass)
    np.testing.assert_allclose(table["accuracy"], accuracy, atol=1e-12)
    np.testing.assert_allclose(table["confidence"], confidence, atol=1e-12)
    if equal_mass:  # an edge is the confidence of an item
        assert table["items"].tolist() == [200] * 10
        edges = np.sort(sure).reshape(10, 200)[:, [0, -1]]
        np.testing.assert_array_equal(table[["left", "right"]], edges)


@pytest.mark.parametrize(("classes", "temperature"), [(2, 3.0), (5, 0.4)])
def test_a_known_temperature_is_found_again(classes, temperature):
    logits, labels = drawn(20_000, classes)
    fitted = fit_temperature(logits * temperature, labels)
    assert fitted == pytest.approx(temperature, rel=0.04)
    # exactly: scaling the logits scales T
    assert fitted == pytest.approx(temperature * fit_temperature(logits, labels), rel=1e-8)
    shifted = logits * temperature + np.arange(20_000)[:, None]  # softmax does not see this
    assert fit_temperature(shifted, labels) == pytest.approx(fitted, rel=1e-6)


def test_temperature_helps_on_other_items_and_leaves_accuracy():
    logits, labels = drawn(6000, 3)
    logits = logits * 4  # too sure
    temperature = fit_temperature(logits[:3000], labels[:3000])
    before, after = apply_temperature(logits, 1), apply_temperature(logits, temperature)
    assert (before.argmax(1) == after.argmax(1)).all()
    test = slice(3000, None)
    errors = [calibration.calibration_error(p[test], labels[test]) for p in (before, after)]
    assert errors[0] > 0.15 and errors[1] < 0.04
    assert scores.brier(after[test], labels[test]) < scores.brier(before[test], labels[test])


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


def test_the_calibration_error_by_hand_and_item_by_item():
    # bins (.6, .7]: sure .7, right 1/1; (.4, .5]: sure .5, right 0/1
    error = calibration.calibration_error(PROBABILITIES, LABELS)
    assert error == pytest.approx((0.3 + 0.5) / 2)
    generator = np.random.default_rng(0)
    p, labels = generator.dirichlet([1, 1, 1], 200), generator.integers(0, 3, 200)
    gaps = (p.argmax(1) == labels) - p.max(1)
    sums = np.bincount(np.ceil(p.max(1) * 5).astype(int), weights=gaps)
    error = calibration.calibration_error(p, labels, bins=5)
    assert error == pytest.approx(abs(sums).sum() / 200)
    sums = gaps[np.argsort(p.max(1))].reshape(5, 40).sum(1)
    error = calibration.calibration_error(p, labels, bins=5, equal_mass=True)
    assert error == pytest.approx(abs(sums).sum() / 200)


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
        interval = calibration.error_interval(p, labels, 6, True, resamples=300, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert covered / 250 >= 0.94


def test_a_calibrated_model_has_the_simulated_errors():
    generator = np.random.default_rng(0)
    p, _, _ = overconfident(generator, 300, GAPS["none"])
    errors = []
    for _ in range(400):
        labels = (generator.random(300) > p[:, 0]).astype(int)
        errors.append(calibration.calibration_error(p, labels, 6, equal_mass=True))
    simulated = calibration.errors_if_calibrated(p, 6, equal_mass=True)
    assert simulated.mean() == pytest.approx(np.mean(errors), rel=0.06)
    assert np.quantile(simulated, 0.95) == pytest.approx(np.quantile(errors, 0.95), rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.brier([[0.7, 0.4]], [0]), "sum to 1"),
        (lambda: reliability([1.2], [0]), "between 0 and 1"),
        (lambda: reliability([[0.7, 0.3]], [2]), "0 to 1; got"),
        (lambda: reliability([[0.7, 0.3]], [0.5]), "0 to 1; got"),
        (lambda: reliability([[1.0]], [0]), "shape"),
        (lambda: reliability([[0.5, math.nan]], [0]), "contains NaN"),
        (lambda: reliability([["a", "b"]], [0]), "could not convert string"),
        (lambda: reliability([[0.5, 0.5], [0.2, 0.3, 0.5]], [0, 1]), "inhomogeneous shape"),
        (lambda: reliability([], []), "shape"),
        (lambda: reliability([0.5, 0.4], [0, 1, 1]), r"2 items, but the labels have shape \(3,\)"),
        (lambda: reliability([0.5, 0.4], [0, -1]), "0 to 1; got"),
        (lambda: reliability([0.5, 0.4], [0, 1], bins=0), "0 is no number of bins"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [0, 0]), "no mistake"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [1, 1]), "no better than chance"),
        (lambda: fit_temperature([[0.0, 0], [0, 0]], [1, 0]), "no better than chance"),
        (lambda: fit_temperature([[1.0, 0], [math.inf, 0]], [1, 0]), "contains infinity"),
        (lambda: fit_temperature([1.0, 0], [1, 0]), "Expected 2D array"),
        (lambda: fit_temperature([[1.0, 0], [1, 0]], [1, 2]), "0 to 1; got"),
        (lambda: fit_temperature([[1.0, 0], [1, 0]], [1]), "2 items"),
        (lambda: apply_temperature([[1.0, 0]], 0), "positive"),
        (lambda: apply_temperature([[1.0, 0]], math.inf), "positive"),
        (lambda: apply_temperature([[1.0, math.nan]], 1), "contains NaN"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
