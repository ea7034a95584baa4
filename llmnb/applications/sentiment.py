"""Sentiment (06): the classifier of 04 with calibrated probabilities; it can be unsure."""

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from llmnb import data, fine_tuning, models, profiles, tables
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.evaluation import calibration, uncertainty

UNSURE = "unsure"
CALIBRATED_ON_FILMS = (
    "The score is calibrated on film sentences, not on texts like yours: see calibrate."
)


def reviews(profile: profiles.Profile) -> tuple[dict, tuple[str, ...]]:
    """The film reviews of 04 and 05: the splits at the profile's sizes, and the label names."""
    table = tables.load_table("rotten_tomatoes")
    return data.at_profile_size(table.splits(), profile), table.label_names


class SentimentAnalyzer(Application):
    """Names a text's label; UNSURE where its calibrated probability is under the threshold.

    A text longer than the classifier reads is cut into windows of whole words. The mean of their
    log-probabilities decides, weighted by their variance over the labels, because a window that
    fits all labels equally well says little.
    """

    def __init__(self, classifier, threshold: float = 0.6, window: int = 32) -> None:
        """classifier: fine_tuning's; window: tokens, about as many as its training texts had."""
        if not (0 <= threshold <= 1 and window >= 1):
            raise ApplicationError(
                f"threshold is {threshold} (0 to 1), window {window} (1 or more)."
            )
        self.classifier = classifier
        self.threshold, self.window = threshold, window
        self.temperature = 1.0
        self.warnings = ("The score is not calibrated: see calibrate.",)
        self.tokenizer = getattr(classifier, "tokenizer", None)  # none where words are counted
        if self.tokenizer is None and getattr(classifier, "base", ""):
            self.tokenizer = models.load_tokenizer(classifier.base)

    @classmethod
    def load(cls, model: str = "full", profile: str = "auto", **options) -> Self:
        """model: one of fine_tuning.METHODS, a folder that 04 or transformers saved.

        options: as for the class. A method is trained once: 04 and 05 share its classifier. If it
        has the reviews' labels it is calibrated on their validation texts; the results of a
        saved classifier then say so. Raises FineTuningError, AssetError.
        """
        cls(None, **options)  # raises for a wrong option before any work
        model = model or "full"
        settings = profiles.resolve(profile)
        splits, label_names = reviews(settings)
        is_folder = "/" in model or Path(model).expanduser().is_dir()
        is_saved = is_folder and model not in fine_tuning.METHODS
        if is_saved:
            classifier = fine_tuning.load(model)
        else:
            chosen = fine_tuning.Settings(encoder=settings.encoder, decoder=settings.decoder)
            classifier = fine_tuning.trained(model, splits, label_names, chosen, say=print)
        app = cls(classifier, **options)
        if [name.casefold() for name in classifier.label_names] == list(label_names):
            app.calibrate(splits["validation"]["text"][:], splits["validation"]["label"][:])
            if is_saved and not app.warnings:
                app.warnings = (CALIBRATED_ON_FILMS,)
        return app

    def calibrate(self, texts: Sequence[str], labels: ArrayLike) -> None:
        """Fit the temperature on texts that the classifier hasn't seen; labels: class numbers.

        Source: Guo et al. 2017. Where no temperature is best it is 1, and each result says so.
        """
        self.temperature = 1.0
        uncalibrated = self.probabilities(texts)
        uncalibrated, labels = calibration.checked(uncalibrated, labels)
        try:
            self.temperature = calibration.fit_temperature(np.log(uncalibrated), labels)
            self.warnings = ()
        except ValueError as error:
            self.warnings = (f"The score is not calibrated: {error}",)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The labels' calibrated probabilities: (texts, classes)."""
        texts = checked(texts)
        windows = [self.windows(text) for text in texts]
        parts = []
        for text, spans in zip(texts, windows, strict=True):
            parts += [text[start:end] for start, end in spans]
        log_p = np.log(self.classifier.probabilities(parts).clip(1e-9))  # (windows, classes)
        means = np.zeros((len(texts), log_p.shape[1]))
        ends = np.cumsum([len(spans) for spans in windows])
        for row, of_text in enumerate(np.split(log_p, ends[:-1])):
            means[row] = np.average(of_text, axis=0, weights=of_text.var(axis=1) + 1e-9)
        return calibration.apply_temperature(means, self.temperature)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A label for each text, or UNSURE; the score is the likeliest label's probability."""
        start = time.perf_counter()
        probabilities = self.probabilities(texts) if len(texts) else []
        seconds = (time.perf_counter() - start) / max(1, len(texts))
        results = []
        for row in probabilities:
            score = float(row.max())
            name = self.classifier.label_names[row.argmax()] if score >= self.threshold else UNSURE
            results.append(Result(name, score, warnings=self.warnings, seconds=seconds))
        return results

    def windows(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each; of the whole text where the classifier reads it at once."""
        if self.tokenizer is None:
            return [(0, len(text))]
        offsets = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        limit = min(self.classifier.settings.max_length, self.tokenizer.model_max_length)
        limit -= self.tokenizer.num_special_tokens_to_add()
        if len(offsets) <= limit:
            return [(0, len(text))]
        word_starts = {  # tokens with white space before them, or as their first character
            n
            for n, (start, _) in enumerate(offsets)
            if re.search(r"\s", text[start - 1 : start + 1])
        }
        spans = []
        first = 0
        while first < len(offsets):
            end = min(first + self.window, first + limit, len(offsets))
            if end < len(offsets):  # cut before a word if there is one
                end = max(word_starts & set(range(first + 1, end + 1)), default=end)
            spans.append((offsets[first][0], offsets[end - 1][1]))
            first = end
        return spans


def coverage(probabilities: ArrayLike, labels: ArrayLike, thresholds: ArrayLike) -> pd.DataFrame:
    """What each threshold brings and costs; probabilities (n, classes), labels (n,).

    answered: the share at or above it; accuracy: of those, with its 95 % interval (low, high), NaN
    where there are none. Source: El-Yaniv & Wiener 2010. Raises ValueError as calibration does.
    """
    probabilities, labels = calibration.checked(probabilities, labels)
    confidence = probabilities.max(axis=1)
    is_right = probabilities.argmax(axis=1) == labels
    rows = []
    for threshold in thresholds:
        answered = is_right[confidence >= threshold]
        n = len(answered)
        interval = vars(uncertainty.proportion(int(answered.sum()), n)) if n else {}
        rows.append({"threshold": threshold, "answered": n / len(is_right)} | interval)
    columns = ["threshold", "answered", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"value": "accuracy"})
