"""Checks for the notebooks' exercises: one module a notebook, and what they share.

A check knows the right answer and the usual wrong ones, so it can name the mistake.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

RIGHT = "Right."
NOT_ATTEMPTED = "Not attempted yet: the function returns nothing."


def check(
    attempt: Callable, reference: Callable, cases: Sequence[tuple], mistakes: Mapping[str, Callable]
) -> str:
    """ "Right.", "Not attempted yet.", the mistake by name, or the first difference.

    cases: the arguments to try, a tuple a case; mistakes: what to say, and a function that makes
    the mistake. The first that gives the attempt's answers on every case is named.
    """
    if not callable(attempt):
        return f"Give the function itself, not {type(attempt).__name__}: check(my_function)."
    results = []
    for case in cases:
        try:
            results.append(attempt(*copy.deepcopy(case)))
        except NotImplementedError:
            return NOT_ATTEMPTED
        except Exception as error:  # the reader's own code: whatever it raises is the answer
            return f"Your function raised {type(error).__name__}: {error}  {_called(case)}"
    empty = (None, ..., NotImplemented)
    if all(any(result is nothing for nothing in empty) for result in results):
        return NOT_ATTEMPTED
    expected = [reference(*copy.deepcopy(case)) for case in cases]
    wrong = [i for i, pair in enumerate(zip(results, expected, strict=True)) if not same(*pair)]
    if not wrong:
        return RIGHT
    for message, mistake in mistakes.items():
        if all(map(same, results, [mistake(*copy.deepcopy(case)) for case in cases])):
            return message
    return f"{difference(results[wrong[0]], expected[wrong[0]])}  {_called(cases[wrong[0]])}"


def same(result: Any, expected: Any, tolerance: float = 1e-6) -> bool:
    """Whether two answers are equal: numbers, sequences and arrays to a tolerance."""
    try:
        ours, theirs = _array(result), _array(expected)
    except (TypeError, ValueError):
        return type(result) is type(expected) and result == expected
    if ours.shape != theirs.shape:
        return False
    return bool(np.allclose(ours, theirs, rtol=tolerance, atol=tolerance))


def difference(result: Any, expected: Any) -> str:
    """The first thing in which a result is not what it should be."""
    try:
        ours, theirs = _array(result), _array(expected)
    except (TypeError, ValueError):
        return f"Expected {_short(expected)}, got {_short(result)}."
    if ours.shape != theirs.shape:
        return f"Expected the shape {theirs.shape}, got {ours.shape}."
    if ours.ndim == 0:
        return f"Expected {theirs.item():.6g}, got {ours.item():.6g}."
    at = tuple(int(i) for i in np.argwhere(~np.isclose(ours, theirs, rtol=1e-6, atol=1e-6))[0])
    return f"At {list(at)} expected {theirs[at]:.6g}, got {ours[at]:.6g}."


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _called(case: tuple) -> str:
    return f"(called with {', '.join(map(_short, case))})"


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "…"
