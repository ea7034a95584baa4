"""What all classifiers share: their settings, their methods, and how they are saved.

ladder.py trains and compares them, and loads what was saved here.
"""

import dataclasses
import itertools
import json
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmnb import LlmnbError, card, files, models

FACTS = "llmnb.json"  # a file beside the weights: method, label names, settings, metrics
LEARNED_FILE = "learned.json"

_CAVEATS = """It has learned the labels of that data, mistakes and prejudice included. On other
kinds of text it can be much worse than these figures, which were measured on held-out texts."""


class FineTuningError(LlmnbError, ValueError):
    """A setting, a folder or a model can't be used; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """The settings of all rungs; each rung uses those that concern it.

    Raises FineTuningError for a value that makes no sense.
    """

    encoder: str = "all-MiniLM-L6-v2"  # a known model, a folder or a Hub id
    decoder: str = "SmolLM2-135M-Instruct-q4_1"  # likewise
    hosted: str = ""  # openai:NAME, for the method hosted
    epochs: float = 2.0  # how often each training text is read
    lr: float = 0.0  # learning rate; 0 means encoders.LEARNING_RATE of the method
    batch_size: int = 32  # training texts per step
    max_length: int = 128  # tokens read of each text
    keep: str = "head"  # what is read of a longer text: "head", or "head+tail", half from each end
    lora_rank: int = 8  # r of LoRA's matrices
    lora_alpha: float = 0.0  # LoRA's change is scaled by lora_alpha / lora_rank; 0 means 2r
    balanced: bool = False  # whether a rare class weighs as much as a frequent one
    shots: int = 1  # examples per class in a few-shot prompt
    patience: int = 2  # stop after so many evaluations without a better validation macro-F1
    dtype: str = "auto"  # or fp32, bf16, fp16
    seed: int = 0

    def __post_init__(self) -> None:
        minimum = dict.fromkeys(("epochs", "lr", "lora_alpha", "shots", "seed"), 0)
        minimum |= {"batch_size": 1, "max_length": 8, "lora_rank": 1, "patience": 1}
        for name, low in minimum.items():
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not low <= value < float("inf"):
                raise FineTuningError(f"{name} is {value!r}; it must be a number, {low} or more.")
        if self.keep not in ("head", "head+tail"):
            raise FineTuningError(f'keep is {self.keep!r}; it must be "head" or "head+tail".')
        if self.lr > 0.1:
            raise FineTuningError(f"lr is {self.lr:g}, which is too high: use 2e-5 to 2e-3.")


class Classifier(ABC):
    """Texts to probabilities of the classes, which label_names names in their order.

    A subclass trains itself (in `fit`, or encoders.train) and has `probabilities`. `save` writes a
    folder from which ladder.load builds the classifier again: it calls the class with the label
    names and settings, then `read`.
    """

    method: str = ""  # its name in ladder.METHODS
    base: str = ""  # the pretrained model's name, if there is one
    needs_base: bool = False  # whether it reads that model again where it is loaded
    trainable_parameters: int = 0
    learned: tuple[str, ...] = ()  # the attributes that `fit` sets, if JSON can hold them
    unsure_below: float = 0.0  # less probable predictions are marked as unsure, see scoring.py

    def __init__(self, label_names: Sequence[str], settings: Settings) -> None:
        self.label_names = tuple(label_names)
        self.settings = settings

    @abstractmethod
    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes), each row sums to 1."""

    def write(self, folder: Path) -> None:
        """Write what training has added to label names and settings, which `save` writes."""
        state = {name: getattr(self, name) for name in self.learned}
        files.write_json(folder / LEARNED_FILE, state)

    def read(self, folder: Path) -> None:
        """Restore what `write` wrote."""
        state = json.loads((folder / LEARNED_FILE).read_text(encoding="utf-8"))
        for name in self.learned:
            setattr(self, name, state[name])

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The most probable label of each text."""
        return [self.label_names[i] for i in self.probabilities(texts).argmax(axis=1)]

    def bytes_on_disk(self) -> int:
        """The size of what `write` writes. For an adapter, without the pretrained model."""
        with tempfile.TemporaryDirectory() as folder:
            self.write(Path(folder))
            return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def with_lora(model, task_type: str, rank: int, alpha: float = 0.0, dropout: float = 0.0):
    """The model with LoRA in all linear layers, as Dettmers et al. 2023 (QLoRA) found best.

    task_type: peft's, such as "CAUSAL_LM"; alpha: 0 means 2 · rank. Source: Hu et al. 2022.
    """
    import peft

    # peft calls a method of transformers that is deprecated.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    config = peft.LoraConfig(
        task_type=task_type,
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
    )
    return peft.get_peft_model(model, config)


def example_rows(labels: NDArray[np.integer], n_classes: int, shots: int) -> list[int]:
    """The rows of the first `shots` texts of each class, one of each class in turn."""
    by_class = [np.flatnonzero(labels == number)[:shots].tolist() for number in range(n_classes)]
    turns = itertools.zip_longest(*by_class)
    return [row for turn in turns for row in turn if row is not None]


def save(
    classifier: Classifier,
    folder: str | Path,
    metrics: Mapping[str, Any] | None = None,
    data: str = "a table",
) -> Path:
    """Write the classifier, its model card and its facts; returns the folder.

    data: where the labels came from. An older classifier's files are replaced, and others stay.
    Raises CardError for a folder with other files and no classifier of ours, or with files of it
    that somebody has changed.
    """
    facts = {
        "kind": type(classifier).__name__,
        "method": classifier.method,
        "label_names": classifier.label_names,
        "metrics": dict(metrics or {}),
        "data": data,
        "trainable_parameters": classifier.trainable_parameters,
        "unsure_below": classifier.unsure_below,
        "settings": dataclasses.asdict(classifier.settings),
        "base_digest": models.digest(classifier.base) if classifier.needs_base else "",
    }

    def write(partial: Path) -> None:
        classifier.write(partial)
        page = _model_card(classifier, facts, Path(folder).expanduser().resolve().name)
        files.write_text(partial / "README.md", page)

    return card.write_result(folder, FACTS, facts, write)


def _model_card(classifier: Classifier, facts: Mapping[str, Any], folder: str) -> str:
    on_base = f" on `{card.plain(classifier.base)}`" if classifier.base else ""
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
