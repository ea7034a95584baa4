"""Is a model that says 80 % right 80 times in 100? Reliability, calibration error, temperature."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.utils import check_array

from llmnb.evaluation.uncertainty import UPPER, Interval, proportion


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 10, equal_mass: bool = False
) -> pd.DataFrame:
    """What a reliability diagram shows, one row for each bin that holds items.

    probabilities: (n, classes), or (n,) of class 1; labels: (n,) class numbers. An item's
    confidence is its largest probability. Columns: left, right (the bin), items, confidence
    (mean), accuracy, low, high (its Wilson interval). Bins have equal width over [0, 1] or,
    with equal_mass, equally many items. Source: Guo et al. 2017; Nguyen & O'Connor 2015.
    Raises ValueError if the probabilities aren't valid or a label is no class number.
    """
    probabilities, labels = checked(probabilities, labels)
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    rows = []
    for index, items in enumerate(_groups(confidence, bins, equal_mass)):
        if not len(items):
            continue
        accuracy = proportion(int(is_right[items].sum()), len(items))
        bounds = confidence[items[[0, -1]]] if equal_mass else edges[index : index + 2]
        row = {"left": bounds[0], "right": bounds[1], "items": len(items)}
        row |= {"confidence": confidence[items].mean(), "accuracy": accuracy.value}
        rows.append(row | {"low": accuracy.low, "high": accuracy.high})
    return pd.DataFrame(rows)


def _groups(confidence, bins, equal_mass) -> list[NDArray[np.intp]]:
    """The items of each bin, by confidence."""
    if bins < 1 or bins != int(bins):
        raise ValueError(f"{bins} is no number of bins.")
    order = np.argsort(confidence, kind="stable")
    if equal_mass:
        return np.array_split(order, bins)
    edges = np.linspace(0, 1, bins + 1)[1:-1]  # a bin is (left, right], as in the paper
    return np.split(order, np.searchsorted(confidence[order], edges, side="right"))


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 10, equal_mass: bool = False
) -> float:
    """ECE: the gap between confidence and accuracy, averaged over the items' bins, 0 to 1.

    Arguments, errors and source as for reliability. It grows with the number of bins and falls
    with n even for a calibrated model: compare equal bins on equally many items.
    """
    table = reliability(probabilities, labels, bins=bins, equal_mass=equal_mass)
    gaps = (table["confidence"] - table["accuracy"]).abs()
    return float((gaps * table["items"]).sum() / table["items"].sum())


def errors_if_calibrated(
    probabilities: ArrayLike,
    bins: int = 10,
    equal_mass: bool = False,
    simulations: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Calibration errors of a calibrated model with these confidences: (simulations,).

    Every item is right with the probability that the model gives, so what is left is chance. An
    error within their range shows no miscalibration. probabilities and errors as for reliability.
    Source: Bröcker & Smith 2007 (consistency bars).
    """
    probabilities, _ = checked(probabilities, np.zeros(len(probabilities), dtype=int))
    confidence = probabilities.max(axis=1)
    generator = np.random.default_rng(seed)
    total = np.zeros(simulations)
    for items in _groups(confidence, bins, equal_mass):
        is_right = generator.random((simulations, len(items))) < confidence[items]
        total += np.abs((is_right - confidence[items]).sum(axis=1))
    return total / len(confidence)


def error_interval(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int = 10,
    equal_mass: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """calibration_error with its interval, for these bins.

    A bin's gap is the true one and the noise of its accuracy. Over all items, the measured error is
    at least the true one plus the signed noises, and at most the true one plus their sizes: the
    upper end comes from the former, the lower from the latter, so the interval covers at least as
    often as it says, whatever the true gaps (96 to 100 times in 100), and its lower end is
    above 0 only where chance alone would seldom show as much. Arguments, errors as for reliability.
    """
    table = reliability(probabilities, labels, bins=bins, equal_mass=equal_mass)
    value = calibration_error(probabilities, labels, bins=bins, equal_mass=equal_mass)
    items = table["items"].to_numpy()
    # One more right and one more wrong: a bin without a mistake has noise all the same.
    accuracy = (table["accuracy"].to_numpy() * items + 1) / (items + 2)
    drawn = np.random.default_rng(seed).binomial(items, accuracy, (resamples, len(items)))
    noise = (drawn - items * accuracy) / items.sum()  # (resamples, bins)
    below = np.quantile(np.abs(noise).sum(axis=1), UPPER)
    above = np.quantile(noise.sum(axis=1), UPPER)
    return Interval(value, low=max(0.0, value - below), high=min(1.0, value + above))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T > 0 that makes softmax(logits / T) most likely; logits: (n, classes), labels: (n,).

    Fit it on validation items and measure on others: on its own items it looks too good.
    Source: Guo et al. 2017, section 4.2. Raises ValueError where no T is best: the model makes
    no mistake here, or is no better than chance.
    """
    logits, labels = _logits(logits), np.asarray(labels)
    _check_labels(labels, *logits.shape)
    gaps = logits - logits[np.arange(len(labels)), labels][:, None]  # 0 at the label
    if gaps.mean() >= 0:  # the loss already rises from 1/T = 0 on
        raise ValueError("These logits are no better than chance on these labels: T is infinite.")
    if gaps.max() <= 0:
        raise ValueError("There is no mistake among these items: no T is best. Take more items.")

    def slope(inverse: float) -> float:
        return float((softmax(inverse * gaps, axis=1) * gaps).sum(axis=1).mean())

    # The loss is convex in 1/T, so its slope has one root. At `end` the worst item alone costs as
    # much as all items together do at 0, log(classes) each, so the root lies below `end`.
    end = len(gaps) * np.log(gaps.shape[1]) / gaps.max()
    return 1 / brentq(slope, 0, end, xtol=1e-12 * end)


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / T): (n, classes). Accuracy stays, since the order of the classes does.

    Raises ValueError for a temperature that is not positive, or logits that are not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"The temperature is {temperature}; it is a positive number.")
    return softmax(_logits(logits) / temperature, axis=1)


def checked(probabilities: ArrayLike, labels: ArrayLike) -> tuple[NDArray, NDArray]:
    """Probabilities as (n, classes) and labels as (n,), or a ValueError that says what is wrong."""
    labels = np.asarray(labels)
    probabilities = check_array(
        probabilities, ensure_2d=False, dtype=float, input_name="probabilities"
    )
    if probabilities.ndim == 1:  # of class 1
        probabilities = np.stack([1 - probabilities, probabilities], axis=1)
    if probabilities.shape[1] < 2:
        raise ValueError(f"Probabilities have shape {probabilities.shape}, not (n, classes).")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("Some probabilities are not between 0 and 1.")
    sums = probabilities.sum(axis=1)
    largest_error = np.abs(sums - 1).max()
    if largest_error > 1e-3:  # rounding in half precision stays below this
        raise ValueError(f"An item's probabilities sum to 1; these miss it by {largest_error:.3g}.")
    _check_labels(labels, *probabilities.shape)
    return probabilities, labels.astype(int)


def _logits(logits) -> NDArray[np.float64]:
    return check_array(logits, dtype=float, ensure_min_features=2, input_name="logits")


def _check_labels(labels, n, classes) -> None:
    if labels.shape != (n,):
        raise ValueError(f"There are {n} items, but the labels have shape {labels.shape}.")
    if not (np.isin(labels, np.arange(classes))).all():
        raise ValueError(f"The labels are class numbers, 0 to {classes - 1}; got {labels}.")
