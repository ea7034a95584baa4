"""Reliability, calibration error, Brier and temperature against hand-worked and known answers."""

import math

import numpy as np
import pytest
import sklearn.metrics
from scipy import optimize, special, stats
from sklearn.calibration import calibration_curve

from llmnb.evaluation import calibration, scores
from llmnb.evaluation.calibration import apply_temperature, fit_temperature, reliability

CHANCES = {"predictions": [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]], "references": [0, 2]}


@pytest.fixture(autouse=True)
def own_cache(cache):
    """evaluate makes a folder in the cache."""


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


def test_equal_mass_fills_its_bins_alike():
    logits, labels = drawn(1003, 4)
    p = special.softmax(logits, axis=1)
    table = reliability(p, labels, bins=10, equal_mass=True)
    assert list(table["items"]) == [101] * 3 + [100] * 7
    assert (table["right"].to_numpy()[:-1] <= table["left"].to_numpy()[1:]).all()
    assert table["left"][0] == p.max(1).min() and table["right"][9] == p.max(1).max()
    inside = (p.max(1) >= table["left"][4]) & (p.max(1) <= table["right"][4])
    assert table["accuracy"][4] == pytest.approx((p.argmax(1) == labels)[inside].mean())
    assert len(reliability(p[:3], labels[:3], bins=10, equal_mass=True)) == 3


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


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_a_known_temperature_is_found_again(classes, temperature):
    logits, labels = drawn(20_000, classes)
    found = fit_temperature(logits * temperature, labels)
    assert found == pytest.approx(temperature, rel=0.04)
    # exactly: scaling the logits scales T
    assert found == pytest.approx(temperature * fit_temperature(logits, labels), rel=1e-8)
    shifted = logits * temperature + np.arange(20_000)[:, None]  # softmax does not see this
    assert fit_temperature(shifted, labels) == pytest.approx(found, rel=1e-6)


def test_temperature_helps_on_other_items_and_leaves_accuracy():
    logits, labels = drawn(6000, 3)
    logits = logits * 4  # too sure
    temperature = fit_temperature(logits[:3000], labels[:3000])
    before, after = apply_temperature(logits, 1), apply_temperature(logits, temperature)
    assert (before.argmax(1) == after.argmax(1)).all()
    test = slice(3000, None)
    errors = [calibration.calibration_error(p[test], labels[test]) for p in (before, after)]
    assert errors[0] > 0.15 and errors[1] < 0.04
    brier = [
        scores.Brier().compute(predictions=p[test], references=labels[test])["brier"]
        for p in (before, after)
    ]
    assert brier[1] < brier[0]


def test_the_temperature_by_hand_and_by_a_search():
    # two classes, 8 of 10 right with a margin of 4: the best p is .8, so 4/T = log 4
    logits = np.array([[4.0, 0.0]] * 10)
    labels = np.array([0] * 8 + [1] * 2)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(4 / math.log(4), rel=1e-9)
    np.testing.assert_allclose(apply_temperature(logits, found)[0], [0.8, 0.2])
    logits, labels = drawn(300, 6, seed=4)

    def nll(temperature):
        p = special.log_softmax(logits / temperature, axis=1)
        return -p[np.arange(300), labels].mean()

    best = optimize.minimize_scalar(nll, bounds=(0.05, 20), method="bounded").x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=1e-4)
    assert fit_temperature(logits * 1e-6, labels) == pytest.approx(best * 1e-6, rel=1e-4)


def test_brier_by_hand_and_by_scikit_learn():
    # (.3² + .2² + .1² + .1² + .5² + .6²)/2
    assert scores.Brier().compute(**CHANCES)["brier"] == pytest.approx(0.38)
    generator = np.random.default_rng(0)
    p, labels = generator.random(40), generator.integers(0, 2, 40)
    found = scores.Brier().compute(predictions=p, references=labels)["brier"]
    assert found == pytest.approx(sklearn.metrics.brier_score_loss(labels, p))
    two = scores.Brier().compute(predictions=np.stack([1 - p, p], 1), references=labels)
    assert two["brier"] == pytest.approx(found)


def test_ece_by_hand_and_item_by_item():
    # bins (.6, .7]: sure .7, right 1/1; (.4, .5]: sure .5, right 0/1
    found = scores.ExpectedCalibrationError().compute(**CHANCES)["ece"]
    assert found == pytest.approx((0.3 + 0.5) / 2)
    generator = np.random.default_rng(0)
    p, labels = generator.dirichlet([1, 1, 1], 200), generator.integers(0, 3, 200)
    bins: dict[int, list] = {}
    for row, label in zip(p, labels, strict=True):
        gap = (row.argmax() == label) - row.max()
        bins.setdefault(math.ceil(row.max() * 5), []).append(gap)
    expected = sum(abs(sum(gaps)) for gaps in bins.values()) / 200
    found = scores.ExpectedCalibrationError(bins=5).compute(predictions=p, references=labels)
    assert found["ece"] == pytest.approx(expected)
    equal = scores.ExpectedCalibrationError(5, equal_mass=True)
    gaps = (p.argmax(1) == labels)[np.argsort(p.max(1))] - np.sort(p.max(1))
    expected = abs(gaps.reshape(5, 40).sum(1)).sum() / 200
    assert equal.compute(predictions=p, references=labels)["ece"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", [scores.Brier, scores.ExpectedCalibrationError])
@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        ([[0.7, 0.4]], [0], "sum to 1"),
        ([1.2], [0], "is no finite number|between 0 and 1"),
        ([[0.7, 0.3]], [2], "0 to 1; got"),
        ([[0.7, 0.3]], [0.5], "0 to 1; got"),
        ([[1.0]], [0], "shape"),
        ([[0.5, 0.5], [0.2, 0.3, 0.5]], [0, 1], "more classes than others"),
    ],
)
def test_what_is_no_probability(kind, predictions, references, message):
    with pytest.raises(ValueError, match=message):
        kind().compute(predictions=predictions, references=references)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability([], []), "shape"),
        (lambda: reliability([0.5, math.nan], [0, 1]), "between 0 and 1"),
        (lambda: reliability([0.5, 0.4], [0, 1, 1]), r"2 items, but the labels have shape \(3,\)"),
        (lambda: reliability([0.5, 0.4], [0, -1]), "0 to 1; got"),
        (lambda: reliability([0.5, 0.4], [0, 1], bins=0), "0 is no number of bins"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [0, 0]), "no mistake"),
        (lambda: fit_temperature([[1.0, 0], [2, 0]], [1, 1]), "no better than chance"),
        (lambda: fit_temperature([[0.0, 0], [0, 0]], [1, 0]), "no better than chance"),
        (lambda: fit_temperature([[1.0, 0], [math.inf, 0]], [1, 0]), "not finite"),
        (lambda: fit_temperature([1.0, 0], [1, 0]), "shape"),
        (lambda: fit_temperature([[1.0, 0], [1, 0]], [1, 2]), "0 to 1; got"),
        (lambda: fit_temperature([[1.0, 0], [1, 0]], [1]), "2 items"),
        (lambda: apply_temperature([[1.0, 0]], 0), "positive"),
        (lambda: apply_temperature([[1.0, 0]], math.inf), "positive"),
        (lambda: apply_temperature([[1.0, math.nan]], 1), "not finite"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
