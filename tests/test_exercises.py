"""Every exercise's solution is right, and the usual wrong answers are refused by name."""

import importlib
import re

import nbformat
import numpy as np
import pytest
import torch
from conftest import NOTEBOOKS
from wrong_answers import WRONG

from llmnb import exercises
from llmnb.exercises import concepts
from llmnb.runs import parameters

PAIRS = [(check, *answer) for check, answers in WRONG.items() for answer in answers]


def name_of(value):
    return value.__name__ if callable(value) else None


every_check = pytest.mark.parametrize("check", WRONG, ids=name_of)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_solutions_are_right_and_the_stubs_not_attempted(path):
    """The folded solutions, in order, against the notebook's own checks."""
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = "\n".join(cell.source for cell in cells)
    calls = re.findall(r"exercises\.(check_\w+)\((\w+)\)", code)
    text = "\n".join(cell.source for cell in notebook.cells if cell not in cells)
    solutions = re.findall(r"<summary>.*?```python\n(.*?)```.*?</details>", text, re.S)
    module = importlib.import_module(f"llmnb.exercises.{parameters.subject_of(path)}")
    for (check, function), solution in zip(calls, solutions, strict=True):
        namespace = {}
        exec(solution, namespace)
        assert getattr(module, check)(namespace[function]) == exercises.RIGHT
    stubs = [cell for cell in cells if "exercises.check_" in cell.source]
    printed = [output.text for cell in stubs for output in cell.outputs]
    assert printed == [exercises.NOT_ATTEMPTED + "\n"] * len(calls)
    assert {check for check, _ in calls} == {
        check.__name__ for check in WRONG if check.__module__ == module.__name__
    }


@pytest.mark.parametrize(("check", "attempt", "message"), PAIRS, ids=name_of)
def test_a_wrong_answer_is_refused_by_name(check, attempt, message):
    assert message in check(attempt)


@every_check
def test_the_mistakes_of_a_check_are_told_from_one_another(check, monkeypatch):
    """No two of its wrong functions agree on all its cases, and none with the right one."""
    calls = []

    def record(attempt, *arguments):
        calls.append(arguments)
        return exercises.RIGHT

    monkeypatch.setattr(importlib.import_module(check.__module__), "check", record)
    check(len)
    assert sum(len(mistakes) for *_, mistakes in calls) >= 3 <= len(WRONG[check])
    for reference, cases, mistakes in calls:
        for message, mistake in mistakes.items():
            wrong = exercises.wrong_function(mistake, reference)
            assert exercises.check(wrong, reference, cases, mistakes) == message


@every_check
def test_a_stub_is_not_attempted_and_a_value_is_no_function(check):
    def stub(*arguments):
        raise NotImplementedError

    for attempt in (lambda *a: None, lambda *a: ..., lambda *a: NotImplemented, stub):
        assert check(attempt) == exercises.NOT_ATTEMPTED
    assert "Give the function itself" in check(0.5)


def test_an_attempt_can_not_change_the_cases():
    def destroys(pairs, previous, word):
        pairs.clear()
        return 0.0

    assert concepts.check_bigram(destroys) == concepts.check_bigram(destroys)
    assert concepts.check_bigram(destroys) != exercises.RIGHT


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda x: 1 / 0, "Your function raised ZeroDivisionError: division by zero"),
        (lambda x: 5, "Expected 2, got 5.  (called with 1)"),
        (lambda x: "many", "Expected 2, got 'many'."),
        (lambda x: [x], "Expected the shape (), got (1,)."),
        (lambda x: x / 2, "Halved."),
        (lambda x: torch.tensor(2.0 * x), exercises.RIGHT),
        (lambda x: 2 * x + 1e-9, exercises.RIGHT),
    ],
)
def test_a_verdict_names_the_mistake_or_the_first_difference(attempt, message):
    halved = {"Halved.": {"factor": 0.5}}
    assert message in exercises.check(attempt, lambda x, factor=2: factor * x, [(1,), (3,)], halved)
    assert exercises.difference([1.0, 3.0], np.array([1, 2])) == "At [1] expected 2, got 3."
