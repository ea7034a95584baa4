"""The exercises of notebook 03."""

from functools import partial
from math import cos, log, pi

import numpy as np
import torch
import torch.nn.functional as F

from llmnb.exercises import RIGHT, check


def _logits_and_ids(seq: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids for which a mistake gives the same number, however it is made.

    Each position gives half of the probability to the token that it has read, so a mean over
    all positions equals one over all but one. The last position has low logits, so that it
    makes no difference to a softmax over the positions.
    """
    ids = torch.arange(seq)[:, None] * 3 % vocab
    logits = torch.arange(seq * vocab).sin().view(seq, vocab).scatter(1, ids, -torch.inf)
    logits = logits.scatter(1, ids, logits.logsumexp(1, keepdim=True))
    return logits - 20 * (torch.arange(seq)[:, None] == seq - 1), ids[:, 0]


def check_loss(attempt) -> str:
    """Exercise 1: attempt(logits, ids) is the mean of -log P(w_t | w_<t), in nats."""

    later, earlier = slice(1, None), slice(-1)

    def loss(logits, ids, rows=earlier, targets=later, dim=-1, factor=lambda seq: 1):
        return factor(len(ids)) * F.nll_loss(logits.log_softmax(dim)[rows], ids[targets])

    mistakes = {
        "No shift: the logits at t predict token t + 1.": {"targets": earlier},
        "Shifted the wrong way: logits at t go with token t + 1.": {
            "rows": later,
            "targets": earlier,
        },
        "That is the sum: divide by the number of predictions.": {"factor": lambda n: n - 1},
        "You divide by seq, but predict seq - 1 tokens.": {"factor": lambda n: 1 - 1 / n},
        "Those are bits: take the natural logarithm.": {"factor": lambda n: 1 / log(2)},
        "The minus is missing: a loss is positive.": {"factor": lambda n: -1},
        "Your softmax goes over the positions; take dim=-1, the vocabulary.": {"dim": 0},
        "The softmax is missing.": lambda x, ids: F.nll_loss(x[:-1], ids[1:]),
    }
    cases = [_logits_and_ids(5, 7), _logits_and_ids(8, 4)]
    return check(attempt, loss, cases, mistakes)


def check_schedule(attempt) -> str:
    """Exercise 2: attempt(step, steps, warmup), the rate's share: up, then a cosine."""

    def half_wave(x):
        return (1 + cos(pi * x)) / 2

    def share(step, steps, warmup, fall=half_wave, first=1, start=1, length=1, last=0):
        if step < warmup:
            return (step + first) / warmup
        return fall((step - start * warmup) / (steps - length * warmup - last))

    mistakes = {
        "Step 0 gets 0, a wasted step: it should get 1 / warmup.": {"first": 0},
        "Your cosine starts at step 0, not after the warm-up.": {"start": 0, "length": 0},
        "Too slow: the cosine has steps - warmup steps to reach 0.": {"length": 0},
        "Your last step gets 0, a wasted step: only step = steps should.": {"last": 1},
        "That falls in a straight line, not along a cosine.": {"fall": lambda x: 1 - x},
        "Your cosine falls to -1: add 1, and halve.": {"fall": lambda x: cos(pi * x)},
        "A quarter of a wave: take half a wave.": {"fall": lambda x: cos(pi / 2 * x)},
        "cos takes radians: half a wave is π.": {"fall": lambda x: (1 + cos(180 * x)) / 2},
    }
    cases = [(step, 12, 4) for step in range(12)] + [(step, 9, 2) for step in range(9)]
    return check(attempt, share, cases, mistakes)


def _row(seq: int, mask_id: int) -> tuple:
    """The five arguments; in 20 positions each kind of die is chosen once or more, and not."""
    i = torch.arange(seq)
    dice = torch.tensor([0.79, 0.81, 0.91, 0.89, 0.2])[i % 5]
    return i + 20, i % 4 != 3, dice, i + 60, mask_id


def _corrupted(ids, chosen, dice, others, mask_id, kinds="mrs"):
    """BERT's corruption; kinds: mask, random or same, for low, middle and high dice."""
    by_kind = {"m": mask_id + 0 * ids, "r": others, "s": ids}
    low, middle, high = (by_kind[kind] for kind in kinds)
    result = low.where(dice < 0.8, middle.where(dice < 0.9, high))
    return result.where(chosen, ids)


def check_corrupt(attempt) -> str:
    """Exercise 3: attempt(ids, chosen, dice, others, mask_id) is (input_ids, labels)."""

    def labels(ids, chosen, dice, *_, below=1.0, rest=-100):
        return ids.where(chosen & (dice < below), rest)

    def both_in_one(*case):  # corrupted ids, and -100 where nothing is chosen
        return torch.where(case[1], _corrupted(*case), -100)

    input_mistakes = {
        "Return two tensors, input_ids and labels, (seq,) each.": lambda *case: "not two",
        "The dice are for the chosen positions.": lambda i, c, *rest: _corrupted(
            i, c | True, *rest
        ),
        "You mask all that are chosen; a tenth becomes random.": {"kinds": "mmm"},
        "Random and unchanged are exchanged: 0.8 to 0.9 means random.": {"kinds": "msr"},
        "The unchanged tenth is missing: from 0.9 on the token stays.": {"kinds": "mrr"},
        "The random tenth is missing: dice from 0.8 to 0.9.": {"kinds": "mss"},
        "The random tokens overwrite the masks.": {"kinds": "rrs"},
        "Your input_ids hold -100: they are one tensor with the labels.": both_in_one,
    }
    label_mistakes = {
        "You label the masks only: all chosen tokens are predicted.": {"below": 0.8},
        "The unchanged tenth has no label: it is predicted, too.": {"below": 0.9},
        "You label every position: -100 where nothing is chosen.": lambda ids, *_: ids,
        "Your labels are the corrupted ids; take what stood there before.": both_in_one,
        "The other way round: -100 is for the rest.": lambda i, c, *_: i.where(~c, -100),
        "Put -100 where nothing is predicted: cross_entropy skips it.": {"rest": 0},
    }

    parts = [("input_ids", _corrupted, input_mistakes), ("labels", labels, label_mistakes)]
    for name, reference, mistakes in parts:
        one = partial(_part, attempt, name) if callable(attempt) else attempt
        verdict = check(one, reference, [_row(20, 4), _row(9, 103)], mistakes)
        if verdict != RIGHT:
            return f"{name}: {verdict}" if verdict.startswith(("At ", "Expected ")) else verdict
    return RIGHT


def _part(attempt, name, *case):
    """One of the two tensors that an attempt returns."""
    result = attempt(*case)
    if isinstance(result, tuple | list) and list(map(np.ndim, result)) == [1, 1]:
        return result[name == "labels"]
    return "not two" if hasattr(result, "__len__") else result
