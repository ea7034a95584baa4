"""Checks for the notebooks' exercises: one module a notebook, and what they share.

A check knows the right answer and the usual wrong ones, so it can name the mistake.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

RIGHT = "Right."
NOT_ATTEMPTED = "Not attempted yet: the function returns nothing."


Mistake = Callable | Mapping[str, Any]  # a wrong function, or keywords of the right one


def check(
    attempt: Callable, reference: Callable, cases: Sequence[tuple], mistakes: Mapping[str, Mistake]
) -> str:
    """Compare an attempt with the right function; returns a sentence for the reader.

    The sentence is "Right.", "Not attempted yet …", the mistake's message, or the first
    difference. cases: the arguments to try, a tuple for each call; mistakes: messages, and what
    makes these mistakes: a function, or keywords with which the reference makes it. The first
    whose results equal the attempt's is reported.
    """
    if not callable(attempt):
        kind = type(attempt).__name__
        return f"Give the function itself, not {kind}: check(my_function)."
    results = []
    for case in cases:
        try:
            results.append(attempt(*copy.deepcopy(case)))
        except NotImplementedError:
            return NOT_ATTEMPTED
        except Exception as error:  # the reader's own code may raise anything
            kind = type(error).__name__
            return f"Your function raised {kind}: {error}  {_called_with(case)}"
    nothing = (None, ..., NotImplemented)
    if all(any(result is value for value in nothing) for result in results):
        return NOT_ATTEMPTED
    expected = [reference(*copy.deepcopy(case)) for case in cases]
    differences = list(map(difference, results, expected))
    if not any(differences):
        return RIGHT
    for message, mistake in mistakes.items():
        wrong = wrong_function(mistake, reference)
        if not any(map(difference, results, [wrong(*copy.deepcopy(case)) for case in cases])):
            return message
    first, case = next(pair for pair in zip(differences, cases, strict=True) if pair[0])
    return f"{first}  {_called_with(case)}"


def wrong_function(mistake: Mistake, reference: Callable) -> Callable:
    """The function that makes the mistake."""
    return mistake if callable(mistake) else partial(reference, **mistake)


def difference(result: Any, expected: Any) -> str:
    """What is wrong with a result: its type, its shape, or the first number that differs; or ""."""
    try:
        ours, theirs = _array(result), _array(expected)
    except (TypeError, ValueError):
        is_same = type(result) is type(expected) and np.array_equal(result, expected)
        return "" if is_same else f"Expected {_short(expected)}, got {_short(result)}."
    if ours.shape != theirs.shape:
        return f"Expected the shape {theirs.shape}, got {ours.shape}."
    wrong = np.argwhere(~np.isclose(ours, theirs, rtol=1e-6, atol=1e-6))
    if not len(wrong):
        return ""
    if ours.ndim == 0:
        return f"Expected {theirs.item():.6g}, got {ours.item():.6g}."
    index = tuple(wrong[0].tolist())
    return f"At {list(index)} expected {theirs[index]:.6g}, got {ours[index]:.6g}."


def _array(value: Any) -> np.ndarray:
    if value is None:
        raise TypeError("None is not a number.")  # numpy would make NaN of it
    if hasattr(value, "detach"):  # a torch tensor, perhaps of bfloat16
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def _called_with(case: tuple) -> str:
    return f"(called with {', '.join(map(_short, case))})"


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "…"
