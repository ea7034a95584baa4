"""The exercises of notebook 04."""

import numpy as np
from scipy.special import log_softmax, softmax

from llmnb.exercises import check


def _precision(labels, predictions, number) -> float:
    is_predicted = predictions == number
    return np.sum(is_predicted & (labels == number)) / max(np.sum(is_predicted), 1)


def _recall(labels, predictions, number) -> float:
    return _precision(predictions, labels, number)


def _f1(labels, predictions, number) -> float:
    hits = np.sum((labels == number) & (predictions == number))
    return 2 * hits / max(np.sum(labels == number) + np.sum(predictions == number), 1)


def check_macro_f1(attempt) -> str:
    """Exercise 1: attempt(labels, predictions, n_classes), the mean of the classes' F1."""

    def class_mean(labels, predictions, n, score=_f1, weights=lambda y, n: np.ones(n)):
        scores = [score(labels, predictions, number) for number in range(n)]
        return np.average(scores, weights=weights(labels, n))

    def f1_of_means(*case):
        precision, recall = (class_mean(*case, score=score) for score in (_precision, _recall))
        return 2 * precision * recall / (precision + recall)

    mistakes = {
        "That is the accuracy: a rare class hardly counts.": lambda y, p, n: np.mean(y == p),
        "You weigh the classes by their size; they should count the same.": {
            "weights": lambda y, n: np.bincount(y, minlength=n)
        },
        "That is the mean recall: F1 needs the precision too.": {"score": _recall},
        "That is the mean precision: F1 needs the recall too.": {"score": _precision},
        "Mean of (p + r) / 2: F1 is their harmonic mean, 2pr / (p + r).": {
            "score": lambda *case: (_precision(*case) + _recall(*case)) / 2
        },
        "You average precision and recall first: average each class's F1.": f1_of_means,
        "That is the F1 of class 1 alone: average over all.": lambda y, p, n: _f1(y, p, 1),
        "Half of it: F1 is 2 · hits / (labelled so + predicted so).": {
            "score": lambda *case: _f1(*case) / 2
        },
    }
    cases = [
        (np.array([0, 0, 0, 0, 1, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1, 2, 2, 0, 0]), 3),
        (np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0, 0, 1]), 2),
    ]
    return check(attempt, class_mean, cases, mistakes)


def check_merge(attempt) -> str:
    """Exercise 2: attempt(weight, a, b, alpha) is LoRA's merged matrix."""

    def merged(weight, a, b, alpha, scale=lambda alpha, r: alpha / r, base=1):
        return base * weight + scale(alpha, len(a)) * b @ a

    mistakes = {
        "The scale is missing: multiply the product by α / r.": {"scale": lambda alpha, r: 1},
        "You multiply by α alone: divide by the rank, the number of rows of A.": {
            "scale": lambda alpha, r: alpha
        },
        "Your scale is upside down: it is α / r.": {"scale": lambda alpha, r: r / alpha},
        "You scale by α / √r, as rank-stabilized LoRA does; take α / r.": {
            "scale": lambda alpha, r: alpha / r**0.5
        },
        "That is AᵀBᵀ, transposed: W maps a row x by x Wᵀ, so add B A.": (
            lambda weight, *rest: merged(weight.T, *rest).T
        ),
        "That is the change alone: add it to W.": {"base": 0},
        "You subtract the change.": {"scale": lambda alpha, r: -alpha / r},
    }
    numbers = np.random.default_rng(0)
    cases = []
    for rank, alpha in ((2, 16.0), (3, 4.0)):
        shapes = (6, 6), (rank, 6), (6, rank)
        weight, a, b = (numbers.normal(size=shape) for shape in shapes)
        cases.append((weight, a, b, alpha))
    return check(attempt, merged, cases, mistakes)


def check_choose(attempt) -> str:
    """Exercise 3: attempt(logits, options, usual), the probability of each option."""

    def chosen(logits, options, usual, total=np.sum, sign=-1, normalize=log_softmax, end=softmax):
        scores = []
        for rows, ids in zip(logits, options, strict=True):
            log_probs = normalize(np.asarray(rows, dtype=float), -1)
            scores.append(total(log_probs[np.arange(len(ids)), ids]))
        return end(np.array(scores) + sign * np.asarray(usual))

    mistakes = {
        "The usual scores are missing: a common label always wins.": {"sign": 0},
        "You add the usual scores: subtract them.": {"sign": 1},
        "The log-softmax is missing: logits aren't comparable across positions.": {
            "normalize": lambda rows, _: rows
        },
        "An option's log-probability is the sum over its tokens, not the mean.": {"total": np.mean},
        "Only the first token counts: add up over all tokens.": {"total": lambda x: x[0]},
        "Only the last token counts: add up over all.": {"total": lambda x: x[-1]},
        "Those are scores: take a softmax over the options.": {"end": np.asarray},
        "You return exp(score), which doesn't sum to 1.": {"end": np.exp},
    }
    numbers = np.random.default_rng(1)
    cases = []
    for lengths in ((1, 2, 3), (2, 1)):
        logits = [numbers.normal(size=(n, 7)) * 2 for n in lengths]
        options = [numbers.integers(7, size=n) for n in lengths]
        cases.append((logits, options, -numbers.random(len(lengths)) * 3))
    return check(attempt, chosen, cases, mistakes)
