"""Sentiment: 04's classifier, its probabilities calibrated, silent where it is unsure (06)."""

import itertools
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from llmnb import assets, fine_tuning, profiles, tables
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.evaluation import calibration, uncertainty

UNSURE = "unsure"
_TOGETHER = 2048  # texts that are judged at once, however many there are
_WORD = re.compile(r"\s*\S{1,32}")  # a longer one is cut: some scripts have no spaces


def reviews(profile: profiles.Profile) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The film reviews of 04 and 05, split and cut to the profile's sizes; their label names."""
    table = tables.load_table("rotten_tomatoes")
    most = {"train": profile.train_texts}  # of the others: test_texts
    splits = {
        name: part.select(range(min(most.get(name, profile.test_texts), len(part))))
        for name, part in table.splits().items()
    }
    return splits, table.label_names


class SentimentAnalyzer(Application):
    """Names a text's label; UNSURE where its calibrated probability is under the threshold.

    A text longer than the classifier reads is cut into windows, at the ends of sentences where it
    can be; the mean of their log-probabilities decides. Then the result's evidence holds of each
    window its start and end in the text, and its own probability of the text's likeliest label.
    """

    def __init__(
        self, classifier: fine_tuning.Classifier, threshold: float = 0.6, window: int = 32
    ) -> None:
        """window: tokens, about as many as the classifier's training texts had."""
        if not (0 <= threshold <= 1 and window >= 1):
            raise ApplicationError(f"threshold {threshold}, window {window}: 0 to 1, 1 or more.")
        self.classifier, self.threshold, self.window = classifier, threshold, window
        self.temperature, self.warnings = 1.0, ("Its score is not calibrated.",)
        base = getattr(classifier, "base", "")  # what counts words has none
        self.tokenizer = getattr(classifier, "tokenizer", base and assets.load_tokenizer(base))

    @classmethod
    def load(cls, model: str = "full", profile: str = "auto", **options) -> Self:
        """model: one of fine_tuning.METHODS, a folder that 04 saved, or transformers' own.

        options: as for the class. A method is trained once: 04 and 05 share the classifier. It is
        calibrated on the reviews' validation texts, if it has their labels; if not, call
        `calibrate`. Raises FineTuningError, AssetError.
        """
        cls(None, **options)  # wrong ones are told before any work
        settings, model = profiles.resolve(profile), model or "full"
        splits, label_names = reviews(settings)
        if "/" in model or Path(model).expanduser().is_dir():
            classifier = fine_tuning.load(model)
        else:
            chosen = fine_tuning.Settings(encoder=settings.encoder, decoder=settings.decoder)
            classifier = fine_tuning.trained(model, splits, label_names, chosen, say=print)
        made = cls(classifier, **options)
        if [name.casefold() for name in classifier.label_names] == [*label_names]:
            made.calibrate(*(splits["validation"][column][:] for column in ("text", "label")))
        return made

    def calibrate(self, texts: Sequence[str], labels: ArrayLike) -> None:
        """Fit the temperature on texts that the classifier hasn't seen; labels: class numbers.

        Source: Guo et al. 2017. Where no temperature is best it is 1, and each result says so.
        """
        self.temperature = 1.0
        said, labels = calibration.checked(self.probabilities(checked(texts)), labels)
        try:
            self.temperature, self.warnings = calibration.fit_temperature(np.log(said), labels), ()
        except ValueError as error:
            self.warnings = (f"Its score is not calibrated: {error}",)

    def probabilities(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """The labels' calibrated probabilities: (texts, classes)."""
        return np.array([rows[0] for _, rows, _ in self._judged(texts)])

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A label for each text, or UNSURE; the score is the likeliest label's probability."""
        return list(self.stream_batch(checked(texts)))

    def stream_batch(self, texts: Iterable[str]) -> Iterator[Result]:
        """The same, one by one, of texts that needn't all be in memory."""
        for places, rows, seconds in self._judged(texts):
            label = rows[0].argmax()
            score, *parts = rows[:, label].tolist()
            name = self.classifier.label_names[label] if score >= self.threshold else UNSURE
            evidence = tuple((*place, p) for place, p in zip(places, parts, strict=True))
            found = evidence if len(parts) > 1 else ()
            yield Result(name, score, found, self.warnings, seconds=seconds)

    def _judged(self, texts: Iterable[str]) -> Iterator[tuple[list, NDArray, float]]:
        """The windows' places, the probabilities of text and windows (1 + windows, classes), s."""
        texts = iter(checked(texts) if isinstance(texts, str) else texts)
        for first in itertools.count(0, _TOGETHER):
            start, chunk = time.perf_counter(), list(itertools.islice(texts, _TOGETHER))
            if not checked(chunk, first):
                return
            places = [self._windows(text) for text in chunk]
            parts = [text[a:b] for text, own in zip(chunk, places, strict=True) for a, b in own]
            logs = iter(np.log(self.classifier.probabilities(parts).clip(1e-9)))
            share = (time.perf_counter() - start) / len(chunk)
            for own in places:
                rows = np.array(list(itertools.islice(logs, len(own))))  # (windows, classes)
                rows = np.vstack([rows.mean(axis=0), rows])
                yield own, calibration.apply_temperature(rows, self.temperature), share

    def _windows(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each; of a text that the classifier reads at once, of the whole."""
        if not self.tokenizer:
            return [(0, len(text))]
        words = [match.span() for match in _WORD.finditer(text)]
        parts = [text[start:end] for start, end in words]
        ids = self.tokenizer(parts, add_special_tokens=False, verbose=False)["input_ids"]
        ends = np.cumsum([len(each) for each in ids])  # tokens up to each word's end
        limit = min(self.classifier.settings.max_length, self.tokenizer.model_max_length)
        limit -= self.tokenizer.num_special_tokens_to_add()
        if ends[-1] <= limit:
            return [(0, len(text))]
        found, first, before = [], 0, 0  # before: tokens up to the first word
        while first < len(words):
            room = before + min(self.window, limit)
            last = max(first, int(np.searchsorted(ends, room, "right")) - 1)
            likely = range(last, (first + last) // 2, -1) if last < len(words) - 1 else ()
            last = next((n for n in likely if parts[n].endswith((".", "!", "?"))), last)
            found.append((words[first][0], words[last][1]))
            first, before = last + 1, ends[last]
        return found


def coverage(probabilities: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> pd.DataFrame:
    """What a threshold brings and costs, a row each; probabilities (n, classes), labels (n,).

    answered: the share at or above it; accuracy: of those, with its 95 % interval (low, high), NaN
    where there are none. Source: El-Yaniv & Wiener 2010. Raises ValueError as calibration does.
    """
    probabilities, labels = calibration.checked(probabilities, labels)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    rows = []
    for threshold in thresholds:
        kept = right[sure >= threshold]
        rows.append({"threshold": threshold, "answered": len(kept) / len(right), "n": len(kept)})
        rows[-1] |= vars(uncertainty.proportion(int(kept.sum()), len(kept))) if len(kept) else {}
    columns = ["threshold", "answered", "n", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "accuracy"})
