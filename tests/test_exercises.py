"""Every exercise's solution is right, and the usual wrong answers are refused by name."""

import math
import re

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NOTEBOOKS

from llmnb import exercises
from llmnb.exercises import attention, concepts, pretraining


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


def nats(logits, ids):
    return logits.log_softmax(-1)[torch.arange(len(ids) - 1), ids[1:]]


LOSS = [
    (lambda x, ids: F.cross_entropy(x, ids), "No shift"),
    (lambda x, ids: F.cross_entropy(x[1:], ids[1:]), "No shift"),
    (lambda x, ids: F.cross_entropy(x[:-1], ids[:-1]), "No shift"),
    (lambda x, ids: F.cross_entropy(x[1:], ids[:-1]), "Shifted the wrong way"),
    (lambda x, ids: F.cross_entropy(x[:-1], ids[1:], reduction="sum"), "That is the sum"),
    (lambda x, ids: -nats(x, ids).sum() / len(ids), "You divide by seq"),
    (lambda x, ids: -x[:-1].softmax(-1).gather(1, ids[1:, None]).log2().mean(), "Those are bits"),
    (lambda x, ids: nats(x, ids).mean().item(), "minus is missing"),
    (lambda x, ids: -x.softmax(0)[:-1].gather(1, ids[1:, None]).log().mean(), "over the positions"),
    (lambda x, ids: F.nll_loss(x[:-1].log_softmax(0), ids[1:]), "over the positions"),
    (lambda x, ids: -x[:-1].gather(1, ids[1:, None]).mean(), "softmax is missing"),
    (lambda x, ids: -nats(x, ids), "Expected the shape (), got (4,)"),
    (lambda x, ids: F.cross_entropy(x, ids[1:]), "raised ValueError"),
]


def schedule(fall, warm=lambda step, warmup: (step + 1) / warmup):
    return lambda t, steps, warmup: warm(t, warmup) if t < warmup else fall(t, steps, warmup)


def cosine(way, angle=np.pi):
    return 0.5 + 0.5 * np.cos(angle * way)


def to_the_end(t, steps, warmup):
    return (t - warmup) / (steps - warmup)


SCHEDULE = [
    (schedule(lambda *a: cosine(to_the_end(*a)), lambda t, warmup: t / warmup), "Step 0 gets 0"),
    (schedule(lambda t, steps, warmup: cosine(t / steps)), "starts at step 0"),
    (schedule(lambda t, steps, warmup: cosine((t - warmup) / steps)), "Too slow"),
    (schedule(lambda t, n, warmup: cosine((t - warmup) / (n - warmup - 1))), "last step gets 0"),
    (schedule(lambda t, steps, warmup: (steps - t) / (steps - warmup)), "straight line"),
    (schedule(lambda *a: math.cos(math.pi * to_the_end(*a))), "falls to -1"),
    (schedule(lambda *a: math.cos(math.pi * to_the_end(*a) / 2)), "quarter of a wave"),
    (schedule(lambda *a: cosine(to_the_end(*a), 180)), "takes radians"),
    (schedule(lambda *a: None), "Expected 1, got nan"),
    (lambda t, steps, warmup: t / steps, "Expected 0.25, got 0"),
    (lambda t, steps, warmup: warmup / t, "raised ZeroDivisionError"),
]


def corrupted(ids, chosen, dice, others, mask_id, masked=0.8, replaced=0.9):
    """BERT's, token by token."""
    rows = zip(ids.tolist(), chosen, dice, others.tolist(), strict=True)
    return [
        (mask_id if d < masked else other if d < replaced else w) if c else w
        for w, c, d, other in rows
    ]


def labels_of(ids, chosen):
    return [w if c else -100 for w, c in zip(ids.tolist(), chosen, strict=True)]


def with_input(made):
    return lambda ids, chosen, *rest: (made(ids, chosen, *rest), labels_of(ids, chosen))


def with_labels(made):
    return lambda *case: (corrupted(*case), made(*case))


def overwritten(ids, chosen, dice, others, mask_id):
    shown = ids.clone()
    shown[chosen & (dice < 0.8)] = mask_id
    shown[chosen & (dice < 0.9)] = others[chosen & (dice < 0.9)]
    return shown


def exchanged(ids, chosen, dice, others, mask_id):
    shown = torch.where(chosen & (dice < 0.8), mask_id, ids)
    return torch.where(chosen & (dice >= 0.9), others, shown)


def in_place(ids, chosen, dice, others, mask_id):
    swap = chosen & (dice >= 0.8) & (dice < 0.9)
    ids[chosen & (dice < 0.8)], ids[swap] = mask_id, others[swap]
    return ids, torch.where(chosen, ids, -100)


def one_tensor(ids, chosen, *rest):
    labels = ids
    labels[~chosen] = -100
    return torch.tensor(corrupted(ids, chosen, *rest)), labels


CORRUPT = [
    (with_input(lambda i, c, *rest: corrupted(i, [True] * len(i), *rest)), "for the chosen"),
    (with_input(lambda i, c, d, o, mask: i.masked_fill(c, mask)), "You mask all that are chosen"),
    (with_input(exchanged), "Random and unchanged are exchanged"),
    (with_input(lambda *case: corrupted(*case, replaced=1)), "The unchanged tenth is missing"),
    (with_input(lambda *case: corrupted(*case, replaced=0)), "The random tenth is missing"),
    (with_input(overwritten), "The random tokens overwrite the masks"),
    (one_tensor, "they are one tensor with the labels"),
    (with_input(lambda *case: corrupted(*case, masked=0.9)), "input_ids: At [1] expected 61"),
    (with_labels(lambda i, c, dice, *_: labels_of(i, c & (dice < 0.8))), "the masks only"),
    (with_labels(lambda i, c, dice, *_: labels_of(i, c & (dice < 0.9))), "tenth has no label"),
    (with_labels(lambda i, *_: i), "You label every position"),
    (in_place, "what stood there before"),
    (with_labels(lambda i, c, *_: i.masked_fill(c, -100)), "The other way round"),
    (with_labels(lambda i, c, *_: i * c), "Put -100"),
    (with_labels(lambda i, c, *_: i[c]), "labels: Expected the shape (20,), got (15,)"),
    (lambda *case: corrupted(*case), "Return two tensors"),
    (lambda *case: {"input_ids": corrupted(*case), "labels": case[0]}, "Return two tensors"),
    (lambda *case: (corrupted(*case), None), "Return two tensors"),
    (lambda *case: 5, "input_ids: Expected the shape (20,), got ()"),
    (lambda i, c, *_: i[c][20], "raised IndexError"),
]
# The same right answers, written otherwise than in the notebook.
RIGHT = [
    (pretraining.check_loss, lambda x, ids: F.cross_entropy(x[:-1], ids[1:])),
    (pretraining.check_loss, lambda x, ids: -float(np.mean(nats(x, ids).numpy()))),
    (pretraining.check_schedule, schedule(lambda *a: cosine(to_the_end(*a)))),
    (pretraining.check_corrupt, lambda *case: [corrupted(*case), labels_of(*case[:2])]),
    (
        pretraining.check_corrupt,
        lambda *case: tuple(map(np.array, (corrupted(*case), labels_of(*case[:2])))),
    ),
]
WRONG = [
    *((attention.check_attention, *pair) for pair in ATTENTION),
    *((attention.check_sliding_mask, *pair) for pair in SLIDING),
    *((attention.check_grouped, *pair) for pair in GROUPED),
    *((concepts.check_bigram, *pair) for pair in BIGRAM),
    *((concepts.check_bits_per_byte, *pair) for pair in BITS),
    *((concepts.check_top_p, *pair) for pair in TOP_P),
    *((pretraining.check_loss, *pair) for pair in LOSS),
    *((pretraining.check_schedule, *pair) for pair in SCHEDULE),
    *((pretraining.check_corrupt, *pair) for pair in CORRUPT),
]
CHECKS = list(dict.fromkeys(check for check, *_ in WRONG))


@pytest.mark.parametrize(("check", "attempt", "message"), WRONG)
def test_wrong_answers_are_refused_by_name(check, attempt, message):
    verdict = check(attempt)
    assert message in verdict and verdict not in (exercises.RIGHT, exercises.NOT_ATTEMPTED)


@pytest.mark.parametrize(("check", "attempt"), RIGHT)
def test_right_answers_may_look_different(check, attempt):
    assert check(attempt) == exercises.RIGHT


@pytest.mark.parametrize("check", CHECKS)
def test_not_attempted_and_not_a_function(check):
    def raises(*arguments):
        raise NotImplementedError

    for attempt in (lambda *a: None, lambda *a: ..., lambda *a: NotImplemented, raises):
        assert check(attempt) == exercises.NOT_ATTEMPTED
    assert "Give the function itself" in check(0.5)


def test_an_attempt_can_not_change_the_cases():
    def destroys(pairs, previous, word):
        pairs.clear()
        return 0.0

    assert concepts.check_bigram(destroys) == concepts.check_bigram(destroys)
    assert concepts.check_bigram(destroys) != exercises.RIGHT


def test_tensors_and_arrays_are_answers_too():
    assert exercises.same(torch.tensor([0.5, 0.5]), [0.5, 0.5])
    assert exercises.difference([1.0, 3.0], np.array([1.0, 2.0])) == "At [1] expected 2, got 3."
