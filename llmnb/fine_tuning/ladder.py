"""Every way to a classifier on the same texts, measured alike: one function, one result type."""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmnb import files
from llmnb.evaluation.uncertainty import Interval, bootstrap_f1, proportion
from llmnb.fine_tuning.base import FACTS, Classifier, FineTuningError, Settings, save
from llmnb.fine_tuning.baselines import Frozen, Majority, Tfidf

if TYPE_CHECKING:
    import datasets

METHODS = {  # by what they cost, the cheapest first
    "majority": "the most frequent class",
    "tfidf": "word counts and logistic regression",
    "zero_shot": "the decoder asked, without an example",
    "few_shot": "the decoder asked, with examples",
    "frozen": "the encoder's vectors and logistic regression",
    "lora": "LoRA in the encoder",
    "full": "the whole encoder fine-tuned",
    "decoder_lora": "LoRA in the decoder",
}


@dataclass(frozen=True, eq=False)
class Result:
    """A rung: the classifier, what it says of the test texts, and what it cost."""

    classifier: Classifier
    labels: NDArray[np.integer]  # (texts,), the true classes
    probabilities: NDArray[np.float64]  # (texts, classes)
    train_seconds: float
    ms_per_text: float
    bytes_on_disk: int  # that it adds to the pretrained model

    @property
    def method(self) -> str:
        """Its name in METHODS."""
        return self.classifier.method

    @property
    def predictions(self) -> NDArray[np.integer]:
        """(texts,)"""
        return self.probabilities.argmax(axis=1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(texts,)"""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> Interval:
        """The share that is right."""
        return proportion(int(self.correct.sum()), len(self.labels))

    @property
    def macro_f1(self) -> Interval:
        """The mean of the classes' F1: a class that is never found counts 0."""
        return bootstrap_f1(self.labels, self.predictions)

    def row(self) -> dict[str, str | int | float]:
        """What a table shows."""
        return {
            "method": self.method,
            "accuracy": str(self.accuracy),
            "macro-F1": round(self.macro_f1.value, 3),
            "training (s)": round(self.train_seconds, 1),
            "weights trained": self.classifier.trainable_parameters,
            "ms a text": round(self.ms_per_text, 2),
            "MB on disk": round(self.bytes_on_disk / 1e6, 2),
        }


def run(
    method: str,
    splits: "Mapping[str, datasets.Dataset]",
    label_names: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
    checkpoints: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Result:
    """Train by one method on splits["train"], choose on "validation", measure on "test".

    The splits have the columns text and label (0, 1, …, as label_names). checkpoints: see
    encoders.train. Raises FineTuningError, AssetError.
    """
    check(method, splits, label_names)
    parts = {name: (part["text"][:], np.array(part["label"][:])) for name, part in splits.items()}
    start = time.perf_counter()
    made = _fitted(method, parts, label_names, settings, checkpoints, say)
    made.method = method
    train_seconds = time.perf_counter() - start
    texts, labels = parts["test"]
    made.probabilities(texts[:8])  # a prompt or an encoder is read once: that is no text's cost
    start = time.perf_counter()
    probabilities = made.probabilities(texts)
    per_text = 1e3 * (time.perf_counter() - start) / len(texts)
    return Result(made, labels, probabilities, train_seconds, per_text, made.bytes_on_disk())


def check(method: str, splits: Mapping, label_names: Sequence[str]) -> None:
    """Raises FineTuningError where `run` would, before any work."""
    if method not in METHODS:
        suggestion = files.did_you_mean(method, METHODS)
        raise FineTuningError(
            f"No method is called {method!r}.{suggestion} Known: {', '.join(METHODS)}."
        )
    if missing := {"train", "validation", "test"} - set(splits):
        raise FineTuningError(f"The splits lack {', '.join(sorted(missing))}.")
    if len(label_names) < 2:
        raise FineTuningError(f"There is nothing to tell apart: the classes are {label_names}.")
    if len(set(splits["train"]["label"])) < 2:
        raise FineTuningError("The training texts are all of one class: give more of them.")


def _fitted(method, parts, label_names, settings, checkpoints, say) -> Classifier:
    simple = {"majority": Majority, "tfidf": Tfidf, "frozen": Frozen}
    if method in simple:
        return simple[method](label_names, settings).fit(*parts["train"])
    if method in ("zero_shot", "few_shot"):
        from llmnb.fine_tuning.prompting import Prompted

        if method == "zero_shot":
            settings = dataclasses.replace(settings, shots=0)
        return Prompted(label_names, settings).fit(*parts["train"])
    from llmnb.fine_tuning import encoders

    base = settings.decoder if method == "decoder_lora" else settings.encoder
    known = {name: parts[name] for name in ("train", "validation")}
    kind = "full" if method == "full" else "lora"
    folder = None if checkpoints is None else Path(checkpoints)
    return encoders.train(kind, base, known, label_names, settings, folder, say)


def trained(
    method: str,
    splits: "Mapping[str, datasets.Dataset]",
    label_names: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
    say: Callable[[str], None] = lambda line: None,
) -> Classifier:
    """The classifier of `run`, made once and kept in the cache: what other notebooks build on.

    The cache's key is all that decides the result: method, settings, texts, labels and code.
    method: one of METHODS; or a folder or Hub id, whose classifier is taken as it is. Raises
    FineTuningError for one with other labels than label_names.
    """
    if method not in METHODS and (Path(method).expanduser().is_dir() or "/" in method):
        found = load(method)
        if found.label_names != tuple(label_names):
            raise FineTuningError(
                f"{method!r} tells apart {', '.join(found.label_names[:8])}; the table has the "
                f"labels {', '.join(label_names[:8])}. They must be the same, in the same order."
            )
        return found
    check(method, splits, label_names)
    texts = {name: [part["text"][:], part["label"][:]] for name, part in splits.items()}
    code = [file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.py"))]
    key = [method, dataclasses.asdict(settings), list(label_names), texts, code]
    digest = hashlib.sha256(json.dumps(key).encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def make(folder: Path) -> None:
        result = run(method, splits, label_names, settings, say=say)
        metrics = {"accuracy": str(result.accuracy), "macro-F1": str(result.macro_f1)}
        save(result.classifier, folder / "classifier", metrics)

    folder = files.build(files.cache_dir() / "derived" / f"classifier-{method}-{digest}", make)
    return load(folder / "classifier")


def load(name: str | Path) -> Classifier:
    """The classifier that `save` wrote, or one of plain transformers: its folder or Hub id.

    Raises FineTuningError where there is none, AssetError where its weights can't be loaded.
    """
    folder = Path(name).expanduser()
    if ((folder / "config.json").is_file() and not (folder / FACTS).is_file()) or _on_the_hub(name):
        from llmnb.fine_tuning import encoders

        return encoders.pretrained(str(name))
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        classifier = _class_of(facts["kind"])(facts["label_names"], Settings(**facts["settings"]))
        classifier.method = facts["method"]
        classifier.trainable_parameters = facts["trainable_parameters"]
        classifier.read(folder)
    except FileNotFoundError as error:
        missing = Path(error.filename or FACTS).name
        raise FineTuningError(
            f"{str(folder)!r} holds no classifier that llmnb saved ({missing} is missing)."
        ) from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise FineTuningError(
            f"{folder / FACTS} is damaged ({type(error).__name__}: {error})."
        ) from error
    return classifier


def _class_of(kind: str) -> type[Classifier]:
    """The class that `save` noted; only the module that it needs is imported."""
    known = {"Majority": Majority, "Tfidf": Tfidf, "Frozen": Frozen}
    if kind in known:
        return known[kind]
    if kind == "Encoded":
        from llmnb.fine_tuning.encoders import Encoded

        return Encoded
    if kind == "Prompted":
        from llmnb.fine_tuning.prompting import Prompted

        return Prompted
    raise KeyError(f"kind {kind!r}")


def _on_the_hub(name: str | Path) -> bool:
    """owner/name, as the Hub has them, and nothing here is called so."""
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", str(name))) and not Path(name).exists()
