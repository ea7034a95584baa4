"""Checks for the notebooks' exercises: one module a notebook, and what they share.

An exercise knows the right answer and the usual wrong ones, so its check can name the mistake.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RIGHT = "Right."
NOT_ATTEMPTED = "Not attempted yet."


@dataclass(frozen=True)
class Exercise:
    """A function to write: the reference, inputs to try, and known mistakes.

    mistakes: (a function that makes the mistake, what to say). The first that agrees with the
    attempt on every case where they differ from the reference at all is named.
    """

    reference: Callable
    cases: Sequence[tuple]  # arguments, a tuple a case
    mistakes: Sequence[tuple[Callable, str]]

    def check(self, attempt: Callable) -> str:
        """ "Right.", "Not attempted yet.", the mistake by name, or the first difference."""
        if not callable(attempt):
            return f"Give the function itself, not {type(attempt).__name__}: check(my_function)."
        results = []
        for case in self.cases:
            try:
                results.append(attempt(*copy.deepcopy(case)))
            except NotImplementedError:
                return NOT_ATTEMPTED
            except Exception as error:  # the reader's own code: whatever it raises is the answer
                return f"Your function raised {type(error).__name__}: {error}  {_called(case)}"
        if all(result is None or result is Ellipsis for result in results):
            return NOT_ATTEMPTED
        expected = [self.reference(*copy.deepcopy(case)) for case in self.cases]
        if all(map(same, results, expected)):
            return RIGHT
        for mistake, message in self.mistakes:
            made = [mistake(*copy.deepcopy(case)) for case in self.cases]
            if all(map(same, results, made)):
                return message
        wrong = next(
            i for i, (r, e) in enumerate(zip(results, expected, strict=True)) if not same(r, e)
        )
        return f"{difference(results[wrong], expected[wrong])}  {_called(self.cases[wrong])}"


def same(result: Any, expected: Any, tolerance: float = 1e-6) -> bool:
    """Whether two answers are equal: numbers, sequences and arrays to a tolerance."""
    if isinstance(expected, str | bytes | dict | set):
        return type(result) is type(expected) and result == expected
    try:
        ours, theirs = _array(result), _array(expected)
    except (TypeError, ValueError):
        return False
    if ours.shape != theirs.shape:
        return False
    return bool(np.allclose(ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True))


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
    where = ", ".join(map(str, at))
    return f"At [{where}] expected {theirs[at]:.6g}, got {ours[at]:.6g}."


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor
        value = value.detach().cpu().numpy()
    return np.asarray(value, dtype=np.float64)


def _called(case: tuple) -> str:
    return f"(called with {', '.join(_short(argument) for argument in case)})"


def _short(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "…"
