"""Test items that stand in the training texts: how to find them, and what they do to a score.

Overlap says that a text was there to be learned; a score higher on the overlapping items than on
the clean ones says that it was. Where the training texts are secret, neither can be measured.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import fisher_exact

from llmnb.data import fingerprint
from llmnb.evaluation.uncertainty import Interval, proportion
from llmnb.text import ngrams, words

SHARE = 0.7  # of a text's n-grams, from which on it overlaps: Chowdhery et al. 2022, section 8


def overlap(test_texts: Sequence[str], train_texts: Sequence[str], n: int = 8) -> pd.DataFrame:
    """How much of each test text stands in the training texts: one row a test text.

    share: of its different n-grams of words, NaN where it has fewer than n words;
    grams: how many these are, 0 for such a short text; duplicate: the same text, by fingerprint,
    whatever its length; overlapping: a duplicate, or a share of at least SHARE.
    Only the test texts' n-grams are kept, as 64-bit hashes: memory does not grow with the training
    texts. Raises ValueError for no texts, what is no text, or n below 1.
    """
    test, train = _texts("test_texts", test_texts), _texts("train_texts", train_texts)
    if n < 1:
        raise ValueError(f"n is {n}; an n-gram has at least 1 word.")

    def hashed_ngrams(text: str) -> set[int]:
        return set(map(hash, ngrams(words(text), n)))

    own = [hashed_ngrams(text) for text in test]
    wanted, seen = set().union(*own), set()
    for text in train:
        seen |= hashed_ngrams(text) & wanted
    prints = set(map(fingerprint, train))
    rows = {
        "share": [len(each & seen) / len(each) if each else math.nan for each in own],
        "grams": list(map(len, own)),
        "duplicate": [fingerprint(text) in prints for text in test],
    }
    table = pd.DataFrame(rows)
    return table.assign(overlapping=table["duplicate"] | (table["share"] >= SHARE))


def _texts(name: str, texts) -> list[str]:
    if isinstance(texts, str) or not (texts := list(texts)):
        raise ValueError(f"{name} is a list of texts, one or more.")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{name} holds {wrong[0]!r}, which is no text.")
    return texts


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
    texts, labels = list(test["text"]), np.asarray(test["label"])
    if bad := [k for k in counts if not 0 <= k <= len(texts)]:
        raise ValueError(f"{bad[0]} items can't leak: the test set has {len(texts)}.")
    order = np.random.default_rng(seed).permutation(len(texts))

    def right(k: int) -> NDArray[np.bool_]:
        more = order[:k]
        fed = [*train["text"], *(texts[i] for i in more)], [*train["label"], *labels[more].tolist()]
        return _classes(fit(*fed)(texts), len(texts)) == labels

    before, rows = right(0), []
    for k in counts:
        after = right(k) if k else before
        for name, part in (("all", order), ("leaked", order[:k]), ("clean", order[k:])):
            if len(part):
                score = proportion(int(after[part].sum()), len(part))
                row = {"k": k, "items": name, "n": len(part), "accuracy": score.value}
                row |= {"low": score.low, "high": score.high, "before": before[part].mean()}
                rows.append(row)
    return pd.DataFrame(rows)


def _classes(predicted: ArrayLike, n: int) -> NDArray:
    predicted = np.asarray(predicted)
    if len(predicted) != n or predicted.ndim not in (1, 2):
        raise ValueError(f"The model made {predicted.shape} of {n} texts: one class or row a text.")
    return predicted.argmax(axis=1) if predicted.ndim == 2 else predicted


@dataclass(frozen=True)
class Verdict:
    """Is the score on the overlapping items higher than on the clean ones?"""

    leak: bool
    p: float  # NaN where there is nothing to compare
    overlapping: Interval | None
    clean: Interval | None
    text: str


def verdict(overlapping: ArrayLike, correct: ArrayLike, alpha: float = 0.05) -> Verdict:
    """A leak, if accuracy is significantly higher on the overlapping items than on the clean ones.

    overlapping, correct: 0/1 per test item, (n,) each. The test of the two independent samples is
    Fisher's exact one, one-sided: never more than alpha false alarms. What overlaps may also be
    easier by itself; only a model that did not see it could tell (`leak`'s column `before`).
    Raises ValueError for other than 0/1, or lengths that differ.
    """
    flags, right = np.asarray(overlapping), np.asarray(correct)
    if flags.shape != right.shape or flags.ndim != 1 or not np.isin([flags, right], (0, 1)).all():
        raise ValueError("overlapping and correct are lists of the same length, 0 or 1 per item.")
    flags, right = flags.astype(bool), right.astype(bool)
    groups = [(int(right[part].sum()), int(part.sum())) for part in (flags, ~flags)]
    found, rest = [proportion(*group) if group[1] else None for group in groups]
    if found is None or rest is None:
        which = "All items overlap" if found else "No item overlaps"
        return Verdict(False, math.nan, found, rest, f"{which}: there is nothing to compare.")
    p = float(fisher_exact([[k, n - k] for k, n in groups], alternative="greater").pvalue)
    start = "A leak" if p < alpha else "No leak is shown"
    text = f"{start}: accuracy {found} on the {groups[0][1]} overlapping items, "
    text += f"{rest} on the {groups[1][1]} clean ones, p = {p:.2g}."
    return Verdict(p < alpha, p, found, rest, text)
