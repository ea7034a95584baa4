"""The ladder: every way to a classifier, trained and measured on the same texts.

Each method is a rung; what a rung's classifier does is in baselines.py, prompting.py, encoders.py.
"""

import dataclasses
import hashlib
import importlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmnb import files, hardware, models
from llmnb.evaluation.uncertainty import Interval, bootstrap_f1, compare, holm, proportion
from llmnb.fine_tuning.base import FACTS, Classifier, FineTuningError, Settings, save

if TYPE_CHECKING:
    import datasets

METHODS = {  # the cheapest first: what it takes to train and to classify many texts
    "majority": "the most frequent class",
    "tfidf": "word counts and logistic regression",
    "frozen": "the encoder's vectors and logistic regression",
    "contrastive": "the encoder tuned on pairs of texts, and logistic regression",
    "lora": "LoRA in the encoder",
    "full": "the whole encoder fine-tuned",
    "zero_shot": "the decoder is asked, without an example",
    "few_shot": "the decoder is asked, with examples",
    "decoder_lora": "LoRA in the decoder",
    "hosted": "a hosted model is asked (openai:NAME)",
}

KINDS = {  # module and class of the methods that train by their own `fit`
    "majority": "baselines.Majority",
    "tfidf": "baselines.Tfidf",
    "frozen": "baselines.Frozen",
    "contrastive": "contrastive.Contrastive",
    "zero_shot": "prompting.Prompted",
    "few_shot": "prompting.Prompted",
    "hosted": "hosted_prompting.Hosted",
}

# The other methods, and what `encoders.train` calls them.
ENCODER_KINDS = {"full": "full", "lora": "lora", "decoder_lora": "lora"}


@dataclass(frozen=True, eq=False)
class Result:
    """A trained classifier, its probabilities on the test texts, and what it cost."""

    classifier: Classifier
    labels: NDArray[np.integer]  # (texts,), the true classes
    probabilities: NDArray[np.float64]  # (texts, classes)
    train_seconds: float
    ms_per_text: float
    bytes_on_disk: int  # without the pretrained model, if only an adapter was trained

    @property
    def method(self) -> str:
        """Its name in METHODS."""
        return self.classifier.method

    @property
    def predictions(self) -> NDArray[np.integer]:
        """The most probable class of each text: (texts,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each prediction is right: (texts,)."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> Interval:
        """The share of right predictions, with its 95 % interval."""
        return proportion(int(self.correct.sum()), len(self.labels))

    def macro_f1(self) -> Interval:
        """The mean of the classes' F1, with its 95 % interval from 10,000 bootstrap resamples.

        A class that is never predicted correctly counts as 0.
        """
        return bootstrap_f1(self.labels, self.predictions)

    def row(self) -> dict[str, str | int | float]:
        """A row of the table that compares all methods."""
        return {
            "method": self.method,
            "accuracy": str(self.accuracy),
            "macro-F1": round(self.macro_f1().value, 3),
            "training (s)": round(self.train_seconds, 1),
            "weights trained": self.classifier.trainable_parameters,
            "ms a text": round(self.ms_per_text, 2),
            "MB of its own": round(self.bytes_on_disk / 1e6, 2),
        }


@dataclass(frozen=True)
class Difference:
    """How much more accurate one rung is than another, on the same texts."""

    method: str
    other: str
    interval: Interval  # the accuracy of method minus that of other
    p: float  # McNemar's, adjusted by Holm for all the differences that were tested

    @property
    def is_shown(self) -> bool:
        """Whether chance is an unlikely explanation."""
        return self.p < 0.05


@dataclass(frozen=True)
class Recommendation:
    """Which rung to take, and the differences behind it."""

    best: str  # right on the most texts
    method: str  # the cheapest rung that is not shown to be worse than the best
    differences: tuple[Difference, ...]


def recommend(results: Mapping[str, Result]) -> Recommendation:
    """The cheapest rung, in the order of METHODS, that no test shows to be worse than the best.

    The best is compared with every other rung, and all of them with word counts (tfidf). The
    majority is never the best, even where too few texts show that another is better.
    Raises FineTuningError without results, or where the rungs were tested on different texts.
    """
    labels = [result.labels for result in results.values()]
    if not labels or not all(np.array_equal(labels[0], others) for others in labels):
        raise FineTuningError(
            "A recommendation takes results of one rung or more, all on the same texts."
        )
    names = [name for name in METHODS if name in results]
    candidates = [name for name in names if name != "majority"] or names
    best = max(candidates, key=lambda name: results[name].correct.sum())  # the cheapest of equals
    pairs = [(best, name) for name in names if name != best]
    if "tfidf" in names and best != "tfidf":
        pairs += [(name, "tfidf") for name in names if name not in (best, "tfidf")]
    tests = [compare(results[a].correct, results[b].correct) for a, b in pairs]
    adjusted = holm([test.p for test in tests]) if tests else []
    differences = tuple(
        Difference(*pair, test.difference, float(p))
        for pair, test, p in zip(pairs, tests, adjusted, strict=True)
    )
    worse = {d.other for d in differences if d.method == best and d.is_shown}
    method = next(name for name in candidates if name not in worse)
    return Recommendation(best, method, differences)


def run(
    method: str,
    splits: "Mapping[str, datasets.Dataset]",
    label_names: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
    say: Callable[[str], None] = lambda line: None,
    keep: bool = False,
) -> Result:
    """Train by one method on splits["train"], choose on "validation", measure on "test".

    The splits have the columns text and label (0, 1, …, as label_names). say: is called with
    lines about the progress. keep: the classifier is stored in the cache, where `trained` finds
    it. Raises FineTuningError, AssetError.
    """
    _check(method, splits, label_names)
    parts = {name: (part["text"][:], np.array(part["label"][:])) for name, part in splits.items()}
    start = time.perf_counter()
    classifier = _train(method, parts, label_names, settings, say)
    classifier.method = method
    train_seconds = time.perf_counter() - start
    texts, labels = parts["test"]
    classifier.probabilities(texts[:8])  # loads a model that isn't loaded yet, outside the timing
    start = time.perf_counter()
    probabilities = classifier.probabilities(texts)
    ms_per_text = 1e3 * (time.perf_counter() - start) / len(texts)
    bytes_on_disk = classifier.bytes_on_disk()
    result = Result(classifier, labels, probabilities, train_seconds, ms_per_text, bytes_on_disk)
    if keep:
        folder = _cache_folder(method, splits, label_names, settings)
        files.build(folder, lambda temporary: _save(result, temporary))
    return result


def _check(method: str, splits: Mapping, label_names: Sequence[str]) -> None:
    if method not in METHODS:
        raise FineTuningError(
            f"No method is called {method!r}.{files.did_you_mean(method, METHODS)} "
            f"There are {', '.join(METHODS)}."
        )
    if missing := {"train", "validation", "test"} - set(splits):
        raise FineTuningError(f"The splits lack {', '.join(sorted(missing))}.")
    if len(label_names) < 2:
        raise FineTuningError(f"A classifier needs two labels or more; there are {label_names}.")
    if len(set(splits["train"]["label"])) < 2:
        raise FineTuningError("The training texts are all of one class: give more of them.")


def _train(method, parts, label_names, settings, say) -> Classifier:
    """parts: for each split, its texts and labels."""
    if method == "zero_shot":
        settings = dataclasses.replace(settings, shots=0)
    if method in KINDS:
        return _imported(KINDS[method])(label_names, settings).fit(*parts["train"])
    from llmnb.fine_tuning import encoders

    return encoders.train(
        ENCODER_KINDS[method], _base(method, settings), parts, label_names, settings, say
    )


def _base(method: str, settings: Settings) -> str:
    """The name of the pretrained model that a method uses; "" where it uses none."""
    if method in ("majority", "tfidf", "hosted"):
        return ""
    uses_decoder = method in ("zero_shot", "few_shot", "decoder_lora")
    return settings.decoder if uses_decoder else settings.encoder


def trained(
    method: str,
    splits: "Mapping[str, datasets.Dataset]",
    label_names: Sequence[str],
    settings: Settings = Settings(),  # noqa: B008 - it is frozen
    say: Callable[[str], None] = lambda line: None,
) -> Classifier:
    """The classifier of `run`, trained once and kept in the cache for the other notebooks.

    It is trained again when anything changes that decides the result: the method, settings,
    texts and labels of training and validation, code, the files of the pretrained model, or the
    precision. method: one of METHODS; or a folder or Hub id, whose classifier is loaded as it is.
    Raises FineTuningError for one with other labels than label_names.
    """
    if method not in METHODS and (Path(method).expanduser().is_dir() or "/" in method):
        classifier = load(method)
        if classifier.label_names != tuple(label_names):
            raise FineTuningError(
                f"{method!r} has the labels {', '.join(classifier.label_names[:8])}; the table has "
                f"{', '.join(label_names[:8])}. They must be the same, in the same order."
            )
        return classifier
    _check(method, splits, label_names)

    def make(temporary: Path) -> None:
        _save(run(method, splits, label_names, settings, say=say), temporary)

    folder = files.build(_cache_folder(method, splits, label_names, settings), make)
    return load(folder / "classifier")


def _cache_folder(method, splits, label_names, settings) -> Path:
    """The folder for a classifier, named after everything that decides what it predicts."""
    texts = [
        [splits[name]["text"][:], splits[name]["label"][:]] for name in ("train", "validation")
    ]
    key = [method, dataclasses.asdict(settings), list(label_names), texts, code_digests()]
    if base := _base(method, settings):
        key += [models.digest(base), str(hardware.dtype(settings.dtype))]
    digest = hashlib.sha256(json.dumps(key).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return files.cache_dir() / "derived" / f"classifier-{method}-{digest}"


def _save(result: Result, folder: Path) -> None:
    metrics = {"accuracy": str(result.accuracy), "macro-F1": str(result.macro_f1())}
    save(result.classifier, folder / "classifier", metrics)


def code_digests() -> dict[str, str]:
    """The sha256 of the source files that may decide what a classifier predicts, by file name."""
    package = Path(__file__).parents[1]
    sources = sorted([*package.glob("*.py"), *package.glob("fine_tuning/*.py")])
    return {str(file.relative_to(package)): files.sha256_of(file) for file in sources}


def load(name: str | Path) -> Classifier:
    """A classifier that `save` or plain transformers wrote: its folder or Hub id.

    Raises FineTuningError where there is none, AssetError where its weights can't be loaded.
    """
    folder = Path(name).expanduser()
    is_of_transformers = (folder / "config.json").is_file() and not (folder / FACTS).is_file()
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)) and not Path(name).exists()
    if is_of_transformers or is_hub_id:
        from llmnb.fine_tuning import encoders

        return encoders.pretrained(str(name))
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        paths = {path.split(".")[1]: path for path in (*KINDS.values(), "encoders.Encoded")}
        kind = _imported(paths[facts["kind"]])
        classifier = kind(facts["label_names"], Settings(**facts["settings"]))
        classifier.method = facts["method"]
        classifier.trainable_parameters = facts["trainable_parameters"]
        classifier.unsure_below = facts.get("unsure_below", 0.0)
        base_digest = facts.get("base_digest")
        if base_digest and base_digest != models.digest(classifier.base):
            raise FineTuningError(
                f"{str(folder)!r} was trained on another {classifier.base!r}, whose files have "
                f"changed since: train it again."
            )
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


def _imported(path: str) -> type[Classifier]:
    """The class of a path as in KINDS; only its module is imported, as some take a second."""
    module, name = path.split(".")
    return getattr(importlib.import_module(f"llmnb.fine_tuning.{module}"), name)
