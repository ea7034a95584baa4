"""The exercises of notebook 03."""

from functools import partial
from math import cos, log, pi

import numpy as np
import torch
import torch.nn.functional as F

from llmnb.exercises import RIGHT, check


def _read(seq: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and ids, such that a mistake gives one number, in whichever way it is made.

    Each position gives half to the token it has read: a mean over all positions or all but one is
    the same. The last has low logits: for a softmax over the positions it makes no difference.
    """
    ids = torch.arange(seq)[:, None] * 3 % vocab
    logits = torch.arange(seq * vocab).sin().view(seq, vocab).scatter(1, ids, -torch.inf)
    logits = logits.scatter(1, ids, logits.logsumexp(1, keepdim=True))
    return logits - 20 * (torch.arange(seq)[:, None] == seq - 1), ids[:, 0]


def check_loss(attempt) -> str:
    """Exercise 1: attempt(logits, ids) is the mean of -log P(w_t | w_<t), in nats."""

    def loss(read=slice(-1), told=slice(1, None), dim=-1, by=lambda seq: 1):
        return lambda x, ids: by(len(ids)) * F.nll_loss(x.log_softmax(dim)[read], ids[told])

    mistakes = {
        "No shift: the logits at t have read token t; they go with t + 1.": loss(told=slice(-1)),
        "Shifted the wrong way: logits at t go with token t + 1.": loss(slice(1, None), slice(-1)),
        "That is the sum: divide by the number of tokens predicted.": loss(by=lambda seq: seq - 1),
        "You divide by seq; nothing predicts the first token.": loss(by=lambda seq: 1 - 1 / seq),
        "Those are bits: take the natural logarithm, not log2.": loss(by=lambda seq: 1 / log(2)),
        "The minus is missing: a loss is positive.": loss(by=lambda seq: -1),
        "Your softmax goes over the positions; over the vocabulary is dim=-1.": loss(dim=0),
        "The softmax is missing: those are logits.": lambda x, ids: F.nll_loss(x[:-1], ids[1:]),
    }
    return check(attempt, loss(), [_read(5, 7), _read(8, 4)], mistakes)


def check_schedule(attempt) -> str:
    """Exercise 2: attempt(step, steps, warmup) is the rate's share: up, then down a cosine."""

    def share(fall=lambda way: (1 + cos(pi * way)) / 2, first=1, since=1, less=1, end=0):
        def rate(step, steps, warmup):
            way = (step - since * warmup) / (steps - less * warmup - end)
            return (step + first) / warmup if step < warmup else fall(way)

        return rate

    mistakes = {
        "Step 0 gets 0, a wasted step: it should get 1 / warmup.": share(first=0),
        "Your cosine starts at step 0; it should where the warm-up ends.": share(since=0, less=0),
        "Too slow to reach 0: the cosine has steps - warmup steps for its way.": share(less=0),
        "Your last step gets 0, a wasted step: 0 belongs to step = steps.": share(end=1),
        "That falls in a straight line; wanted is a cosine.": share(lambda way: 1 - way),
        "Your cosine falls to -1: add 1, and halve.": share(lambda way: cos(pi * way)),
        "A quarter of a wave: take half a wave, add 1, halve.": share(lambda x: cos(pi / 2 * x)),
        "cos takes radians: half a wave is π, not 180.": share(lambda x: (1 + cos(180 * x)) / 2),
    }
    cases = [(step, steps, warmup) for steps, warmup in ((12, 4), (9, 2)) for step in range(steps)]
    return check(attempt, share(), cases, mistakes)


def _row(seq: int, mask_id: int) -> tuple:
    """ids, chosen, dice, others, mask_id: in 20 positions all dice are met, chosen and not."""
    i = torch.arange(seq)
    return i + 20, i % 4 != 3, torch.tensor([0.79, 0.81, 0.91, 0.89, 0.2])[i % 5], i + 60, mask_id


def check_corrupt(attempt) -> str:
    """Exercise 3: attempt(ids, chosen, dice, others, mask_id) is (input_ids, labels)."""

    def made(kinds="mrs"):  # of a chosen token: masked, random or the same, as the dice rise
        def corrupt(ids, chosen, dice, others, mask_id):
            low, middle, high = ({"m": mask_id + 0 * ids, "r": others, "s": ids}[k] for k in kinds)
            return low.where(dice < 0.8, middle.where(dice < 0.9, high)).where(chosen, ids)

        return corrupt

    def labelled(below=1.0, rest=-100):
        return lambda ids, chosen, dice, *_: torch.where(chosen & (dice < below), ids, rest)

    def shown(*case):
        return torch.where(case[1], made()(*case), -100)

    in_ids = {
        "Return two tensors, input_ids and labels, (seq,) each.": lambda *case: "not two",
        "The dice are for the chosen positions.": lambda i, c, *rest: made()(i, c | True, *rest),
        "You mask all that are chosen: a tenth becomes random, a tenth stays.": made("mmm"),
        "Random and unchanged are exchanged: dice from 0.8 to 0.9 mean random.": made("msr"),
        "The unchanged tenth is missing: dice of 0.9 and more leave the token.": made("mrr"),
        "The random tenth is missing: dice from 0.8 to 0.9.": made("mss"),
        "The random tokens overwrite the masks: dice below 0.8 are below 0.9, too.": made("rrs"),
        "Your input_ids hold -100: they are one tensor with the labels. Clone it first.": shown,
    }
    in_labels = {
        "You label the masks only: the other chosen fifth is to be guessed, too.": labelled(0.8),
        "The unchanged tenth has no label: it is to be guessed, too.": labelled(0.9),
        "You label every position: -100 wherever nothing was chosen.": lambda ids, *rest: ids,
        "Your labels are what the model reads; wanted is what stood there before.": shown,
        "The other way round: -100 is for the rest.": lambda i, c, *_: torch.where(c, -100, i),
        "Put -100 where nothing is to be guessed: cross_entropy skips that.": labelled(rest=0),
    }

    def part(name, *case):
        result = attempt(*case)
        if isinstance(result, tuple | list) and [np.ndim(each) for each in result] == [1, 1]:
            return result[name == "labels"]
        return "not two" if hasattr(result, "__len__") else result

    for name, right, wrong in (("input_ids", made(), in_ids), ("labels", labelled(), in_labels)):
        one = partial(part, name) if callable(attempt) else attempt
        verdict = check(one, right, [_row(20, 4), _row(9, 103)], wrong)
        if verdict != RIGHT:
            return f"{name}: {verdict}" if verdict.startswith(("At ", "Expected ")) else verdict
    return RIGHT
