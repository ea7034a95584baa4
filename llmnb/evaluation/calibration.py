"""Is a model that says 80 % right 80 times in 100? Reliability, calibration error, temperature."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.utils import check_array

from llmnb.evaluation.uncertainty import UPPER, Interval, proportion


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """What a reliability diagram shows, one row for each bin.

    probabilities: (n, classes), or (n,) of class 1; labels: (n,) class numbers. An item's
    confidence is its largest probability. Bins hold equally many items, by confidence; there are
    at most n. Columns: items, confidence (mean), accuracy, low, high (its Wilson interval).
    Source: Guo et al. 2017; Nguyen & O'Connor 2015 (these bins).
    Raises ValueError if the probabilities aren't valid or a label is not a class number.
    """
    probabilities, labels = checked(probabilities, labels)
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    rows = []
    for items in _binned(confidence, bins):
        accuracy = proportion(int(is_right[items].sum()), len(items))
        row = {"items": len(items), "confidence": confidence[items].mean()}
        rows.append(row | {"accuracy": accuracy.value, "low": accuracy.low, "high": accuracy.high})
    return pd.DataFrame(rows)


def _binned(confidence: NDArray, bins: int) -> list[NDArray[np.intp]]:
    """The items of each bin."""
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number of at least 1, not {bins}.")
    order = np.argsort(confidence, kind="stable")
    return np.array_split(order, min(bins, len(order)))


def errors_if_calibrated(
    probabilities: ArrayLike, bins: int = 10, simulations: int = 2000, seed: int = 0
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
    for items in _binned(confidence, bins):
        is_right = generator.random((simulations, len(items))) < confidence[items]
        total += np.abs((is_right - confidence[items]).sum(axis=1))
    return total / len(confidence)


def error_interval(
    probabilities: ArrayLike,
    labels: ArrayLike,
    bins: int = 10,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """ECE, the gap of confidence and accuracy averaged over the items' bins, with its interval.

    It grows with the number of bins and falls with n even for a calibrated model: compare equal
    bins on equally many items. Arguments, errors and source as for reliability.

    Each bin's measured gap is its true gap plus noise in its accuracy. The noise can raise the
    total by the sum of its absolute values at most; the lower end subtracts the 97.5 % quantile of
    that sum. It can lower the total only by its signed sum; the upper end adds the 97.5 % quantile
    of that. So the interval holds the true error at least as often as it says (96 to 100 times in
    100), and its lower end is above 0 only where chance alone would seldom show as much.
    """
    table = reliability(probabilities, labels, bins)
    items = table["items"].to_numpy()
    gaps = (table["confidence"] - table["accuracy"]).abs()
    value = float(np.average(gaps, weights=items))
    # Add one right and one wrong item to each bin, so that one without mistakes has noise, too.
    accuracy = (table["accuracy"].to_numpy() * items + 1) / (items + 2)
    drawn = np.random.default_rng(seed).binomial(items, accuracy, (resamples, len(items)))
    noise = (drawn - items * accuracy) / items.sum()  # (resamples, bins)
    below = np.quantile(np.abs(noise).sum(axis=1), UPPER)
    above = np.quantile(noise.sum(axis=1), UPPER)
    return Interval(value, low=max(0.0, value - below), high=min(1.0, value + above))


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """The T > 0 that makes softmax(logits / T) most likely; logits: (n, classes), labels: (n,).

    Fit it on validation items and measure on others: on the items that it was fitted to it looks
    too good.
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

    # The loss is convex in 1/T, so its slope has one root. At 1/T = `end` the item with the largest
    # gap alone costs as much as all items together at 1/T = 0 (log(classes) each). So the loss is
    # no lower there than at 0, and the root lies in between.
    end = len(gaps) * np.log(gaps.shape[1]) / gaps.max()
    return 1 / brentq(slope, 0, end, xtol=1e-12 * end)


def apply_temperature(logits: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """softmax(logits / T): (n, classes). Accuracy stays, since the order of the classes does.

    Raises ValueError for a temperature that is not positive, or logits that are not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"The temperature must be a positive number, not {temperature}.")
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
        raise ValueError(
            f"Each item's probabilities must sum to 1, but one misses it by {largest_error:.3g}."
        )
    _check_labels(labels, *probabilities.shape)
    return probabilities, labels.astype(int)


def _logits(logits) -> NDArray[np.float64]:
    return check_array(logits, dtype=float, ensure_min_features=2, input_name="logits")


def _check_labels(labels, n, classes) -> None:
    if labels.shape != (n,):
        raise ValueError(f"There are {n} items, but the labels have shape {labels.shape}.")
    if not (np.isin(labels, np.arange(classes))).all():
        raise ValueError(f"The labels are class numbers, 0 to {classes - 1}; got {labels}.")
