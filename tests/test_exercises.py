"""Every exercise's solution is right, and the usual wrong answers are refused by name."""

import math
import re

import nbformat
import numpy as np
import pytest
import torch
from conftest import NOTEBOOKS

from llmnb import exercises
from llmnb.exercises import attention, concepts


def solutions(path):
    """(check, function) of each folded solution, in order, against the notebook's own checks."""
    notebook = nbformat.read(path, as_version=4)
    codes = [c.source for c in notebook.cells if c.cell_type == "code"]
    calls = re.findall(r"exercises\.(check_\w+)\((\w+)\)", "\n".join(codes))
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    folded = re.findall(r"<details><summary>.*?```python\n(.*?)```.*?</details>", text, re.S)
    assert len(calls) == len(folded) == 3
    return [(check, name, source) for (check, name), source in zip(calls, folded, strict=True)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_solutions_are_right(path):
    import importlib

    module = importlib.import_module(f"llmnb.exercises.{path.stem[3:]}")
    for check, name, source in solutions(path):
        namespace = {}
        exec(source, namespace)
        assert getattr(module, check)(namespace[name]) == exercises.RIGHT


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_stubs_are_not_attempted_yet(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [
        output.text
        for cell in notebook.cells
        if cell.cell_type == "code" and "exercises.check_" in cell.source
        for output in cell.outputs
    ]
    assert outputs == [exercises.NOT_ATTEMPTED + "\n"] * 3


# Wrong answers as readers write them, each with words of what it is told.
BIGRAM = [
    (lambda pairs, a, b: pairs.get((a, b), 0) / sum(pairs.values()), "among all pairs"),
    (lambda pairs, a, b: pairs.get((a, b), 0), "a count, not yet a probability"),
    (
        lambda pairs, a, b: (
            pairs.get((a, b), 0) / max(1, sum(n for p, n in pairs.items() if p[1] == b))
        ),
        "other way round",
    ),
    (
        lambda pairs, a, b: pairs.get((a, b), 0) / len([p for p in pairs if p[0] == a]),
        "how many different words",
    ),
    (lambda pairs, a, b: pairs[a, b] / 4, "raised KeyError"),
    (lambda pairs, a, b: 0.5, "Expected 0.75, got 0.5"),
]
BITS = [
    (lambda logs, text: -sum(logs) / len(text.encode()), "nats per byte"),
    (lambda logs, text: -sum(logs) / math.log(2) / len(text), "divide by characters"),
    (lambda logs, text: -np.mean(logs) / np.log(2), "divide by tokens"),
    (lambda logs, text: sum(logs) / math.log(2) / len(text.encode()), "The sign"),
    (lambda logs, text: float(np.exp(-np.mean(logs))), "perplexity per token"),
    (lambda logs, text: "many", "Expected"),
]


def unsorted_top_p(probs, p):
    kept, mass = [0.0] * len(probs), 0.0
    for i, value in enumerate(probs):
        if mass < p:
            kept[i], mass = value, mass + value
    return [value / mass for value in kept]


def sorted_top_p(probs, p, cross=True, share=True, back=True):
    order = sorted(range(len(probs)), key=lambda i: -probs[i])
    kept, mass = {}, 0.0
    for i in order:
        if mass >= p or (not cross and mass + probs[i] > p + 1e-9):
            break
        kept[i], mass = probs[i], mass + probs[i]
    places = range(len(probs)) if back else order
    return [kept.get(i, 0) / (mass if share and mass else 1) for i in places]


def crossing_dropped_by_numpy(probs, p):
    order = np.argsort(probs)[::-1]
    kept = np.zeros(len(probs))
    inside = order[np.cumsum(np.array(probs)[order]) < p]
    kept[inside] = np.array(probs)[inside]
    return kept / kept.sum()


TOP_P = [
    (unsorted_top_p, "sort the tokens"),
    (lambda probs, p: sorted_top_p(probs, p, cross=False), "drop the token that crosses"),
    (crossing_dropped_by_numpy, "drop the token that crosses"),
    (lambda probs, p: sorted_top_p(probs, p, share=False), "no longer sum to 1"),
    (lambda probs, p: sorted_top_p(probs, p, back=False), "wrong places"),
    (lambda probs, p: probs[:2], "Expected the shape (4,), got (2,)"),
]


def softmaxed(query, key, scale=None, dim=-1):
    return torch.softmax(query @ key.transpose(-1, -2) / (scale or query.shape[-1] ** 0.5), dim)


def shared(query, key, value, how, mask=True):
    key, value = how(key, len(query) // len(key)), how(value, len(query) // len(key))
    scores = query @ key.mT / query.shape[-1] ** 0.5
    if mask:
        scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
    return torch.softmax(scores, -1) @ value


ATTENTION = [
    (lambda q, k, v: softmaxed(q, k, scale=1) @ v, "not divided by √d_k"),
    (lambda q, k, v: softmaxed(q, k, scale=q.shape[-1]) @ v, "You divide by d_k"),
    (lambda q, k, v: softmaxed(q, k, dim=0) @ v, "over the queries"),
    (lambda q, k, v: q @ k.T / q.shape[-1] ** 0.5 @ v, "softmax is missing"),
    (lambda q, k, v: softmaxed(q, k), "multiply them by the values"),
    (lambda q, k, v: softmaxed(q, k) @ k, "expected"),
]
SLIDING = [
    (lambda n, w: torch.ones(n, n).tril().triu(-w), "One too many"),
    (lambda n, w: (torch.arange(n)[:, None] - torch.arange(n)).abs() < w, "looks both ways"),
    (lambda n, w: torch.ones(n, n, dtype=torch.bool).tril(), "the window is missing"),
    (lambda n, w: 1 - torch.ones(n, n).tril().triu(1 - w), "other way round"),
    (lambda n, w: torch.ones(n, n).triu().tril(w - 1), "Rows and columns"),
    (lambda n, w: torch.ones(n, w), "Expected the shape"),
]
GROUPED = [
    (lambda q, k, v: shared(q, k, v, lambda x, n: x.repeat(n, 1, 1)), "dealt out in turn"),
    (
        lambda q, k, v: shared(q, k, v, lambda x, n: x.repeat_interleave(n, 0), mask=False),
        "sees what comes after",
    ),
    (lambda q, k, v: shared(q, k, v, lambda x, n: x[:1]), "first key/value head"),
    (
        lambda q, k, v: torch.cat(
            tuple(shared(q, k, v, lambda x, n: x.repeat_interleave(n, 0))), dim=-1
        ),
        "side by side",
    ),
    (lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, "raised RuntimeError"),
]
WRONG = [
    *((attention.check_attention, *pair) for pair in ATTENTION),
    *((attention.check_sliding_mask, *pair) for pair in SLIDING),
    *((attention.check_grouped, *pair) for pair in GROUPED),
    *((concepts.check_bigram, *pair) for pair in BIGRAM),
    *((concepts.check_bits_per_byte, *pair) for pair in BITS),
    *((concepts.check_top_p, *pair) for pair in TOP_P),
]


@pytest.mark.parametrize(("check", "attempt", "message"), WRONG)
def test_wrong_answers_are_refused_by_name(check, attempt, message):
    verdict = check(attempt)
    assert message in verdict and verdict not in (exercises.RIGHT, exercises.NOT_ATTEMPTED)


def test_not_attempted_and_not_a_function():
    for attempt in (lambda *a: None, lambda *a: ..., lambda *a: NotImplemented):
        assert concepts.check_top_p(attempt) == exercises.NOT_ATTEMPTED

    def raises(*arguments):
        raise NotImplementedError

    assert concepts.check_bigram(raises) == exercises.NOT_ATTEMPTED
    assert "Give the function itself" in concepts.check_bigram(0.5)


def test_an_attempt_can_not_change_the_cases():
    def destroys(pairs, previous, word):
        pairs.clear()
        return 0.0

    assert concepts.check_bigram(destroys) == concepts.check_bigram(destroys)
    assert concepts.check_bigram(destroys) != exercises.RIGHT


def test_tensors_and_arrays_are_answers_too():
    assert exercises.same(torch.tensor([0.5, 0.5]), [0.5, 0.5])
    assert exercises.difference([1.0, 3.0], np.array([1.0, 2.0])) == "At [1] expected 2, got 3."
