"""What every rung of the ladder is in the end: texts in, probabilities out, a folder on disk."""

import dataclasses
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmnb import LlmnbError, card, files

FACTS = "llmnb.json"  # beside the weights: method, label names, metrics, where the data came from

_CAVEATS = """It has learned the labels of that data, mistakes and prejudice included; on texts of
another kind it can be much worse than the figures say. They were measured on texts it never saw."""


class FineTuningError(LlmnbError, ValueError):
    """A setting, a folder or a model can't be used; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """What the rungs need to know; each takes what concerns it."""

    encoder: str = "all-MiniLM-L6-v2"  # an asset, a folder or a Hub id
    decoder: str = "SmolLM2-135M-Instruct-q4_1"
    epochs: float = 2.0
    lr: float = 0.0  # 0: the method's own
    batch_size: int = 32
    max_length: int = 128  # tokens of a text that are read
    keep: str = "head"  # of a longer one: its head, or head+tail, half of each
    lora_rank: int = 8
    balanced: bool = False  # rare classes weigh as much as frequent ones
    shots: int = 1  # examples a class in a few-shot prompt
    patience: int = 2  # evaluations without a better validation F1, then training stops
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises FineTuningError for what can't be meant."""
        least = {"epochs": 0, "lr": 0, "batch_size": 1, "max_length": 8, "lora_rank": 1}
        for name, low in {**least, "shots": 0, "patience": 1, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value < float("inf"):
                raise FineTuningError(f"{name} is {value!r}; it is a number, {low} or more.")
        if self.keep not in ("head", "head+tail"):
            raise FineTuningError(f'keep is {self.keep!r}; it is "head" or "head+tail".')
        if self.lr > 0.1:
            raise FineTuningError(f"lr is {self.lr:g}; usual are 2e-5 to 2e-3.")


class Classifier(ABC):
    """Texts to probabilities of the classes that its label names name."""

    method: str = ""
    trainable_parameters: int = 0

    def __init__(self, label_names: Sequence[str], settings: Settings) -> None:
        self.label_names, self.settings = tuple(label_names), settings

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes), each row sums to 1."""

    @abstractmethod
    def write(self, folder: Path) -> None:
        """Leave in the folder what `read` needs, beyond method, label names and settings."""

    @abstractmethod
    def read(self, folder: Path) -> None:
        """Take it from there."""

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text."""
        return [self.label_names[i] for i in self.probabilities(texts).argmax(axis=1)]

    def bytes_on_disk(self) -> int:
        """What this classifier adds to the pretrained model that it stands on."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def save(
    classifier: Classifier,
    folder: str | Path,
    metrics: Mapping[str, Any] | None = None,
    data: str = "a table",
) -> Path:
    """Write the classifier, its model card and its facts; returns the folder.

    data: where the labels came from. Raises CardError for a folder with other files in it;
    one with an older classifier is replaced as a whole.
    """
    folder = Path(folder).expanduser()
    card.check_folder(folder, replaces=FACTS)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        classifier.write(partial)
        facts = {"kind": type(classifier).__name__, "method": classifier.method}
        facts |= {"label_names": classifier.label_names, "metrics": dict(metrics or {})}
        facts |= {"data": data, "trainable_parameters": classifier.trainable_parameters}
        facts |= {"settings": dataclasses.asdict(classifier.settings)}
        files.write_json(partial / FACTS, facts)
        files.write_text(partial / "README.md", _model_card(classifier, facts, folder.name))
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _model_card(classifier: Classifier, facts: Mapping[str, Any], folder: str) -> str:
    base = getattr(classifier, "base", "")
    on_base = f" on `{card.plain(base)}`" if base else ""
    rows = {"classes": len(classifier.label_names), **facts["metrics"]}
    rows["trained parameters"] = f"{classifier.trainable_parameters:,}"
    return card.model_card(
        f"A classifier: {', '.join(classifier.label_names[:8])}",
        rows,
        intro=f"Made by the method `{classifier.method}`{on_base}, "
        f"from {card.plain(facts['data'])}.",
        usage=f"from llmnb import fine_tuning\n"
        f"classifier = fine_tuning.load({folder!r})\n"
        f'classifier.predict(["a text", "another"])',
        caveats=_CAVEATS,
        tags={"pipeline_tag": "text-classification"},
    )
