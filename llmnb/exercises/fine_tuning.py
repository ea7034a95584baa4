"""The exercises of notebook 04."""

import numpy as np

from llmnb.exercises import check


def _f1(labels, predictions, number) -> float:
    hits = np.sum((labels == number) & (predictions == number))
    return 2 * hits / max(np.sum(labels == number) + np.sum(predictions == number), 1)


def check_macro_f1(attempt) -> str:
    """Exercise 1: attempt(labels, predictions, n_classes) is the mean of the classes' F1."""

    def mean(of=_f1, weigh=lambda labels, n: np.ones(n)):
        def score(labels, predictions, n):
            each = [of(labels, predictions, number) for number in range(n)]
            return np.average(each, weights=weigh(labels, n))

        return score

    def precision(labels, predictions, number):
        said = predictions == number
        return np.sum(said & (labels == number)) / max(np.sum(said), 1)

    def recall(labels, predictions, number):
        return precision(predictions, labels, number)

    def of_means(labels, predictions, n):
        p, r = (mean(of)(labels, predictions, n) for of in (precision, recall))
        return 2 * p * r / (p + r)

    mistakes = {
        "That is the accuracy: a rare class hardly counts in it.": lambda y, p, n: np.mean(y == p),
        "You weigh the classes by their size; macro means that each counts the same.": mean(
            weigh=lambda labels, n: np.bincount(labels, minlength=n)
        ),
        "That is the mean recall: a class's F1 needs its precision too.": mean(recall),
        "That is the mean precision: a class's F1 needs its recall too.": mean(precision),
        "Mean of (precision + recall) / 2: F1 is their harmonic mean, 2pr / (p + r).": mean(
            lambda *case: (precision(*case) + recall(*case)) / 2
        ),
        "You average precision and recall first: take each class's F1, then the mean.": of_means,
        "That is the F1 of class 1 alone: average over all classes.": lambda y, p, n: _f1(y, p, 1),
        "Half of it: F1 is 2 · hits / (labelled so + predicted so).": lambda *case: (
            mean()(*case) / 2
        ),
    }
    cases = [
        (np.array([0, 0, 0, 0, 1, 1, 2, 0, 1]), np.array([0, 0, 0, 1, 1, 2, 2, 0, 0]), 3),
        (np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 1, 0, 0, 0, 1]), 2),
    ]
    return check(attempt, mean(), cases, mistakes)


def check_merge(attempt) -> str:
    """Exercise 2: attempt(weight, a, b, alpha) is the matrix that LoRA's three make together."""

    def merged(scale=lambda alpha, rank: alpha / rank, product=lambda a, b: b @ a, base=1):
        def matrix(weight, a, b, alpha):
            return base * weight + scale(alpha, len(a)) * product(a, b)

        return matrix

    mistakes = {
        "The scale is missing: the product is multiplied by α / r.": merged(lambda alpha, r: 1),
        "You multiply by α alone: divide by the rank, the number of rows of A.": merged(
            lambda alpha, r: alpha
        ),
        "Your scale is upside down: it is α / r.": merged(lambda alpha, r: r / alpha),
        "You scale by α / √r, as rank-stabilized LoRA does; the formula here has α / r.": merged(
            lambda alpha, r: alpha / r**0.5
        ),
        "That is AᵀBᵀ, transposed: W maps a row x by x Wᵀ, so add B A.": merged(
            product=lambda a, b: (b @ a).T
        ),
        "That is the change alone: add it to W.": merged(base=0),
        "You subtract the change.": merged(lambda alpha, r: -alpha / r),
    }
    numbers = np.random.default_rng(0)
    cases = [
        (*(numbers.normal(size=shape) for shape in ((6, 6), (rank, 6), (6, rank))), alpha)
        for rank, alpha in ((2, 16.0), (3, 4.0))
    ]
    return check(attempt, merged(), cases, mistakes)


def check_choose(attempt) -> str:
    """Exercise 3: attempt(logits, options, usual) is each option's probability as the answer."""

    def softmax(scores):
        odds = np.exp(scores - np.max(scores))
        return odds / odds.sum()

    def chosen(total=np.sum, sign=-1.0, logs=True, tokens=slice(None), end=softmax):
        def probabilities(logits, options, usual):
            scores = []
            for rows, ids in zip(logits, options, strict=True):
                rows = np.asarray(rows, dtype=float)
                if logs:
                    rows = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
                scores.append(total(rows[np.arange(len(ids)), ids][tokens]))
            return end(np.array(scores) + sign * np.asarray(usual))

        return probabilities

    mistakes = {
        "The usual scores are missing: a label that is always likely would always win.": chosen(
            sign=0.0
        ),
        "You add the usual scores: subtract them.": chosen(sign=1.0),
        "The log-softmax is missing: logits of different positions can't be compared.": chosen(
            logs=False
        ),
        "The mean of an option's tokens is not its log-probability: that is their sum.": chosen(
            np.mean
        ),
        "Only the first token counts in your answer: sum over all of an option's tokens.": chosen(
            tokens=slice(1)
        ),
        "Only the last token counts in your answer: sum over all of an option's tokens.": chosen(
            tokens=slice(-1, None)
        ),
        "Those are scores: a softmax over the options makes probabilities of them.": chosen(
            end=lambda scores: scores
        ),
        "You return exp(score), which doesn't sum to 1: divide by the sum.": chosen(end=np.exp),
    }
    numbers = np.random.default_rng(1)
    cases = []
    for lengths in ((1, 2, 3), (2, 1)):
        logits = [numbers.normal(size=(n, 7)) * 2 for n in lengths]
        options = [numbers.integers(7, size=n) for n in lengths]
        cases.append((logits, options, -numbers.random(len(lengths)) * 3))
    return check(attempt, chosen(), cases, mistakes)
