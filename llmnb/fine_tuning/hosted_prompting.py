"""No training here: ask a hosted model, and read the label in its answer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmnb import hosted
from llmnb.fine_tuning.base import Classifier, FineTuningError, example_rows

MAX_TEXT_CHARACTERS = 4000  # of a text that is sent


class Hosted(Classifier):
    """The label that a hosted model names, with probability 1: it gives no probabilities.

    Where its answer names no label, or several, the text gets the training texts' class shares,
    and is counted in `n_without_label`.
    """

    learned = ("instruction", "shares")
    instruction: str = ""
    shares: list[float]  # of the classes among the training texts
    n_without_label: int = 0

    @property
    def base(self) -> str:
        """The hosted model's name."""
        return self.settings.hosted

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Hosted":
        """Write the prompt: the labels, then the first settings.shots texts of each class."""
        if not hosted.is_hosted(self.base):
            raise FineTuningError(
                f"The method hosted asks a hosted model: set hosted to {hosted.PREFIX}NAME, not "
                f"{self.base!r}."
            )
        names = self.label_names
        parts = [
            f"Classify the last text as {', '.join(names[:-1])} or {names[-1]}. "
            "Reply with the label and nothing else."
        ]
        for row in example_rows(labels, len(names), self.settings.shots):
            parts.append(f"Text: {_shortened(texts[row])}\nLabel: {names[labels[row]]}")
        self.instruction = "\n\n".join(parts)
        counts = np.bincount(labels, minlength=len(names))
        self.shares = (counts / counts.sum()).tolist()
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes). Raises HostedError; answers to earlier prompts come from the cache."""
        self.n_without_label = 0  # of these texts
        model = hosted.connect(self.base)
        prompts = [f"{self.instruction}\n\nText: {_shortened(text)}\nLabel:" for text in texts]
        rows = np.zeros((len(texts), len(self.label_names)))
        for row, label in zip(rows, hosted.choose(model, prompts, self.label_names), strict=True):
            if label is None:
                self.n_without_label += 1
                row[:] = self.shares
            else:
                row[self.label_names.index(label)] = 1.0
        return rows


def _shortened(text: str) -> str:
    return " ".join(text.split())[:MAX_TEXT_CHARACTERS]
