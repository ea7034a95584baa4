"""Sentiment: 04's classifier, its probabilities calibrated, silent where it is unsure (06)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from llmnb import data, fine_tuning, models, profiles, tables
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.evaluation import calibration, uncertainty

UNSURE = "unsure"
_TOGETHER = 2048  # texts that are judged at once, however many there are


def reviews(profile: profiles.Profile) -> tuple[dict, tuple[str, ...]]:
    """The film reviews of 04 and 05: the splits at the profile's sizes, and the label names."""
    table = tables.load_table("rotten_tomatoes")
    return data.at_profile_size(table.splits(), profile), table.label_names


class SentimentAnalyzer(Application):
    """Names a text's label; UNSURE where its calibrated probability is under the threshold.

    A text longer than the classifier reads is cut into windows of whole words. The mean of their
    log-probabilities decides, weighted by their variance over the labels, for a window that has
    no opinion says little. The result's evidence then holds, for each window, its start and end
    in the text and its own probability of the text's likeliest label.
    """

    def __init__(self, classifier, threshold: float = 0.6, window: int = 32) -> None:
        """classifier: fine_tuning's; window: tokens, about as many as its training texts had."""
        if not (0 <= threshold <= 1 and window >= 1):
            raise ApplicationError(f"threshold {threshold}, window {window}: 0 to 1, 1 or more.")
        self.classifier, self.threshold, self.window = classifier, threshold, window
        self.temperature, self.warnings = 1.0, ("The score is not calibrated: see calibrate.",)
        base = getattr(classifier, "base", "")  # what counts words has none
        self.tokenizer = getattr(classifier, "tokenizer", base and models.load_tokenizer(base))

    @classmethod
    def load(cls, model: str = "full", profile: str = "auto", **options) -> Self:
        """model: one of fine_tuning.METHODS, a folder that 04 saved, or transformers' own.

        options: as for the class. A method is trained once: 04 and 05 share its classifier. If it
        has the reviews' labels it is calibrated on their validation texts. Raises FineTuningError,
        AssetError.
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
            self.warnings = (f"The score is not calibrated: {error}",)

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
            windows = tuple((*own, part) for own, part in zip(places, parts, strict=True))
            yield Result(name, score, windows * (len(parts) > 1), self.warnings, seconds=seconds)

    def _judged(self, texts: Iterable[str]) -> Iterator[tuple[list, NDArray, float]]:
        """Windows' places; probabilities of text and windows, (1 + windows, classes); seconds."""
        texts, n = iter(checked(texts) if isinstance(texts, str) else texts), 0
        while chunk := checked(islice(texts, _TOGETHER), n):
            start, n = time.perf_counter(), n + len(chunk)
            places = [self._windows(text) if self.tokenizer else [(0, len(text))] for text in chunk]
            parts = [text[a:b] for text, own in zip(chunk, places, strict=True) for a, b in own]
            logs = np.log(self.classifier.probabilities(parts).clip(1e-9))  # (windows, classes)
            seconds, at = (time.perf_counter() - start) / len(chunk), 0
            for own in places:
                rows, at = logs[at : at + len(own)], at + len(own)
                mean = np.average(rows, axis=0, weights=rows.var(axis=1) + 1e-9)
                rows = calibration.apply_temperature([mean, *rows], self.temperature)
                yield own, rows, seconds

    def _windows(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each; of the whole where the classifier reads it at once."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        marks = self.tokenizer(text, **options)["offset_mapping"]
        limit = min(self.classifier.settings.max_length, self.tokenizer.model_max_length)
        limit -= self.tokenizer.num_special_tokens_to_add()
        if len(marks) <= limit:
            return [(0, len(text))]
        pairs = [text[at - 1 : at + 1] for at, _ in marks]  # around the beginning of each token
        cuts = {n for n, pair in enumerate(pairs) if pair.split() != [pair]}  # with white space
        found, first = [], 0
        while first < len(marks):
            fits = range(min(first + self.window, first + limit, len(marks)), first, -1)
            last = next((n for n in fits if n in cuts or n == len(marks)), fits[0])
            found.append((marks[first][0], marks[last - 1][1]))
            first = last
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
        share = vars(uncertainty.proportion(int(kept.sum()), len(kept))) if len(kept) else {}
        rows.append({"threshold": threshold, "answered": len(kept) / len(right)} | share)
    columns = ["threshold", "answered", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "accuracy"})
