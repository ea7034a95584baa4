"""Test items that stand in the training texts: how to find them, and what they do to a score.

Overlap shows that a text could be learned by heart. A higher score on the overlapping items than on
the clean ones shows that it was. Where the training texts are secret, neither can be measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import fisher_exact

from llmnb.data import fingerprint
from llmnb.evaluation import checked_texts
from llmnb.evaluation.uncertainty import ALPHA, Interval, proportion, zeros_and_ones
from llmnb.text import ngrams, words

SHARE = 0.7  # a text overlaps from this share of its n-grams on: Chowdhery et al. 2022, section 8


def overlap(test_texts: Sequence[str], train_texts: Sequence[str], n: int = 8) -> pd.DataFrame:
    """How much of each test text stands in the training texts: one row a test text.

    share: of its different n-grams of words, NaN where it has fewer than n words;
    grams: how many these are, 0 for such a short text; duplicate: the same text, by fingerprint,
    whatever its length; overlapping: a duplicate, or a share of at least SHARE.
    Only the test texts' n-grams are kept, as 64-bit hashes: memory does not grow with the training
    texts. Raises ValueError for no texts, what is no text, or n below 1.
    """
    test_texts = checked_texts("test_texts", test_texts)
    train_texts = checked_texts("train_texts", train_texts)
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 word.")

    def hashed_ngrams(text: str) -> set[int]:
        return set(map(hash, ngrams(words(text), n)))

    test_ngrams = [hashed_ngrams(text) for text in test_texts]
    candidates = set().union(*test_ngrams)
    leaked = set()
    for text in train_texts:
        leaked |= hashed_ngrams(text) & candidates
    train_fingerprints = set(map(fingerprint, train_texts))
    rows = []
    for text, grams in zip(test_texts, test_ngrams, strict=True):
        share = len(grams & leaked) / len(grams) if grams else math.nan
        is_duplicate = fingerprint(text) in train_fingerprints
        row = {"share": share, "grams": len(grams), "duplicate": is_duplicate}
        rows.append(row | {"overlapping": is_duplicate or share >= SHARE})
    return pd.DataFrame(rows)


def leak(
    fit: Callable[[list[str], list], Callable[[list[str]], ArrayLike]],
    train: Mapping[str, Sequence],
    test: Mapping[str, Sequence],
    counts: Sequence[int],
    seed: int = 0,
) -> pd.DataFrame:
    """What it does to the score when k test items, with their labels, are trained on too.

    fit(texts, labels) gives a function from texts to classes, (n,), or probabilities, (n, classes).
    train, test: columns "text" and "label", of a Dataset, DataFrame or dict. The k items are drawn
    at random; a larger k holds those of a smaller one. A row for each k and each of items = "all",
    "leaked", "clean": n, accuracy, low, high (Wilson), and `before`, what the model that saw none
    of them scores on the same items. Raises ValueError for a count that is no part of the test.
    """
    texts = list(test["text"])
    labels = np.asarray(test["label"])
    for k in counts:
        if not 0 <= k <= len(texts):
            raise ValueError(f"{k} items can't leak: the test set has {len(texts)}.")
    order = np.random.default_rng(seed).permutation(len(texts))

    def is_right_after(k: int) -> NDArray[np.bool_]:
        fit_texts = [*train["text"], *(texts[index] for index in order[:k])]
        fit_labels = [*train["label"], *labels[order[:k]].tolist()]
        predicted = np.asarray(fit(fit_texts, fit_labels)(texts))
        if len(predicted) != len(texts):
            raise ValueError(f"Shape {predicted.shape} for {len(texts)} texts: one row a text.")
        return (predicted.argmax(axis=1) if predicted.ndim == 2 else predicted) == labels

    before = is_right_after(0)
    rows = []
    for k in counts:
        after = is_right_after(k) if k else before
        for name, part in (("all", order), ("leaked", order[:k]), ("clean", order[k:])):
            if len(part):
                score = proportion(int(after[part].sum()), len(part))
                row = {"k": k, "items": name, "n": len(part), "accuracy": score.value}
                row |= {"low": score.low, "high": score.high, "before": before[part].mean()}
                rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Verdict:
    """Is the score on the overlapping items higher than on the clean ones?"""

    leak: bool
    p: float  # NaN where there is nothing to compare
    overlapping: Interval | None
    clean: Interval | None
    text: str


def verdict(overlapping: ArrayLike, correct: ArrayLike) -> Verdict:
    """A leak, if accuracy is significantly higher on the overlapping items than on the clean ones.

    overlapping, correct: 0/1 per test item, (n,) each. The test of the two independent samples is
    Fisher's exact one, one-sided: never more than 5 % false alarms. What overlaps may also be
    easier by itself; only a model that did not see it could tell (`leak`'s column `before`).
    Raises ValueError for other than 0/1, or lengths that differ.
    """
    flags, right = zeros_and_ones(overlapping=overlapping, correct=correct)
    table = [[(right & part).sum(), (~right & part).sum()] for part in (flags, ~flags)]
    dirty, clean = (proportion(k, k + wrong) if k + wrong else None for k, wrong in table)
    if dirty is None or clean is None:
        which = "All items overlap" if dirty else "No item overlaps"
        return Verdict(False, math.nan, dirty, clean, f"{which}: there is nothing to compare.")
    p = float(fisher_exact(table, alternative="greater").pvalue)
    start = "A leak" if p < ALPHA else "No leak is shown"
    text = (
        f"{start}: accuracy {dirty} on the {flags.sum()} overlapping items, "
        f"{clean} on the {(~flags).sum()} clean ones, p = {p:.2g}."
    )
    return Verdict(p < ALPHA, p, dirty, clean, text)
