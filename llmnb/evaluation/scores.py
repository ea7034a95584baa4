"""The field's metrics as evaluate.Metric: compute, add_batch and evaluate.combine, all offline.

The formulas of the well known ones are scikit-learn's, sacrebleu's and rouge-score's. What they
would let pass (no items, NaN, a probability as a class, a text without a word) is an error.
"""

import math
import re
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as ListOf
from sklearn import metrics as sklearn_metrics

from llmnb import concepts, files
from llmnb.evaluation import calibration
from llmnb.text import normalize_answer

_TOKENIZERS = ("13a", "char", "intl", "none", "zh")  # sacrebleu's others download a model


def _rows(name: str, values) -> list:
    """Anything with items in it as a list of plain Python values."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise ValueError(f"{name} is a list with one entry an item, not {values!r}.")
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _class(value) -> str:
    if isinstance(value, str):
        return value
    try:
        if value == int(value):
            return str(int(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{value!r} is no class: it takes names or whole numbers.")


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text.")
    return value


def _texts(value) -> list[str]:
    texts = [value] if isinstance(value, str) else [_text(each) for each in value or ()]
    if not any(text.strip() for text in texts):
        raise ValueError("An item has no reference, or only an empty one.")
    return texts


def _number(value) -> float:
    try:
        if 0 <= float(value) < math.inf:
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{value!r} is no finite number from 0 on.")


def _probabilities(value) -> list[float]:
    if np.iterable(value):
        return [_number(each) for each in value]
    return [1 - _number(value), _number(value)]  # it is that of class 1


_STRING, _FLOAT = Value("string"), Value("float64")


class _Metric(evaluate.Metric):
    """What all have in common: columns are checked before they are stored, in memory."""

    columns: ClassVar[dict[str, tuple[Any, Callable]]]  # name: (feature, how a value is checked)

    def __init__(self, **options) -> None:
        """options: evaluate.Metric's. Several processes share num_process and experiment_id."""
        # Two runs that share an id share a file. One process needs no file at all.
        defaults = {"experiment_id": uuid.uuid4().hex, "cache_dir": files.cache_dir() / "metrics"}
        defaults["keep_in_memory"] = options.get("num_process", 1) == 1
        super().__init__(**defaults | options)

    def _info(self) -> evaluate.MetricInfo:
        features = Features({name: feature for name, (feature, _) in self.columns.items()})
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", inputs_description="", features=features
        )

    def add_batch(self, **columns) -> None:
        """Add items. Raises ValueError, and adds none, if one can't be scored."""
        missing = [name for name in self.columns if columns.get(name) is None]
        if missing:
            raise ValueError(
                f"{type(self).__name__} needs {list(self.columns)}; missing: {missing}."
            )
        rows = {name: _rows(name, columns[name]) for name in self.columns}
        if len({len(values) for values in rows.values()}) != 1:
            lengths = {name: len(values) for name, values in rows.items()}
            raise ValueError(f"The columns have different numbers of items: {lengths}.")
        if not next(iter(rows.values())):
            raise ValueError("There are no items in this batch.")
        checks = {name: check for name, (_, check) in self.columns.items()}
        clean = {name: [checks[name](value) for value in rows[name]] for name in rows}
        self._check(rows, clean)
        super().add_batch(**clean)

    def _check(self, rows: dict[str, list], clean: dict[str, list]) -> None:
        """What can be seen only with all columns in view."""

    def add(self, *, prediction=None, reference=None, **columns) -> None:
        """Add one item."""
        one = {"predictions": prediction, "references": reference, **columns}
        self.add_batch(**{name: [value] for name, value in one.items() if value is not None})

    def compute(self, **columns) -> dict[str, Any] | None:
        """The result over what was added and `columns`. Raises ValueError if that is nothing."""
        given = {name: values for name, values in columns.items() if values is not None}
        if unknown := set(given) - {"predictions", "references", "nats", "tokens", "n_bytes"}:
            raise ValueError(f"compute takes columns only, not {sorted(unknown)}.")
        if given:
            self.add_batch(**given)
        if not len(self):
            raise ValueError("There are no items to score.")
        return super().compute()


class _Classification(_Metric):
    columns: ClassVar = {"predictions": (_STRING, _class), "references": (_STRING, _class)}

    def _check(self, rows, clean):
        if len({isinstance(value, str) for values in rows.values() for value in values}) > 1:
            raise ValueError("Some classes are names and some are numbers: they would never match.")


class Accuracy(_Classification):
    """The share of items whose class is right: {"accuracy"}. Classes are names or numbers."""

    def _compute(self, predictions, references):
        return {"accuracy": float(sklearn_metrics.accuracy_score(references, predictions))}


class PrecisionRecallF1(_Classification):
    """{"precision", "recall", "f1"} of one class, or averaged over classes; 0 where undefined."""

    def __init__(self, average: str = "macro", positive: str | int = 1, **options) -> None:
        """average: "macro", "micro", "weighted", or "binary": of the class `positive` alone."""
        if average not in ("macro", "micro", "weighted", "binary"):
            raise ValueError(f"average is macro, micro, weighted or binary, not {average!r}.")
        self.average, self.positive = average, _class(positive)
        super().__init__(**options)

    def _compute(self, predictions, references):
        options = {"average": self.average, "pos_label": self.positive, "zero_division": 0}
        if self.average != "binary":
            del options["pos_label"]
        found = sklearn_metrics.precision_recall_fscore_support(references, predictions, **options)
        return {k: float(v) for k, v in zip(("precision", "recall", "f1"), found, strict=False)}


class Matthews(_Classification):
    """Matthews' correlation of labels and predictions, -1 to 1: {"matthews"}; 0 for one class."""

    def _compute(self, predictions, references):
        if len({*predictions, *references}) == 1:  # scikit-learn would warn
            return {"matthews": 0.0}
        return {"matthews": float(sklearn_metrics.matthews_corrcoef(references, predictions))}


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers, both normalized, else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words shared with the answer that shares most, 0 to 1; SQuAD 2.0's rules."""

    def f1(answer: str) -> float:
        found, wanted = normalize_answer(prediction).split(), normalize_answer(answer).split()
        if not found or not wanted:
            return float(found == wanted)
        return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))

    return max(map(f1, answers))


class _Text(_Metric):
    columns: ClassVar = {"predictions": (_STRING, _text), "references": (ListOf(_STRING), _texts)}

    def _mean(self, score: Callable[[str, list[str]], float], predictions, references) -> float:
        return float(np.mean([score(*row) for row in zip(predictions, references, strict=True)]))


class ExactMatch(_Text):
    """The mean of exact_match: {"exact_match"}. A reference is an answer or a list of them."""

    def _compute(self, predictions, references):
        return {"exact_match": self._mean(exact_match, predictions, references)}


class TokenF1(_Text):
    """The mean of token_f1: {"token_f1"}. A reference is an answer or a list of them."""

    def _compute(self, predictions, references):
        return {"token_f1": self._mean(token_f1, predictions, references)}


class Bleu(_Text):
    """sacrebleu's BLEU of a corpus, 0 to 100: {"bleu", "bleu_signature"}. Source: Post 2018."""

    def __init__(self, tokenize: str = "13a", **options) -> None:
        """tokenize: "13a"; "zh" for Chinese, where 13a sees sentences as words; "intl", "char"."""
        if tokenize not in _TOKENIZERS:
            raise ValueError(f"tokenize is one of {_TOKENIZERS}, not {tokenize!r}.")
        self.tokenize = tokenize
        super().__init__(**options)

    def _compute(self, predictions, references):
        from sacrebleu.metrics import BLEU

        return _sacrebleu("bleu", BLEU(tokenize=self.tokenize), predictions, references)


class Chrf(_Text):
    """sacrebleu's chrF of a corpus, 0 to 100: {"chrf", "chrf_signature"}. Source: Popović 2015."""

    def _compute(self, predictions, references):
        from sacrebleu.metrics import CHRF

        return _sacrebleu("chrf", CHRF(), predictions, references)


def _sacrebleu(name, metric, predictions, references) -> dict[str, Any]:
    most = max(map(len, references))
    # One list for the first references, one for the second …; None where an item has fewer.
    columns = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    score = metric.corpus_score(predictions, columns).score
    return {name: score, f"{name}_signature": metric.get_signature().format()}


class Rouge(_Text):
    """Mean F1 of {"rouge1", "rouge2", "rougeL"}, 0 to 1, with the best reference. Source: Lin 2004.

    For text in Latin letters: the tokenizer drops all others.
    """

    def __init__(self, stemmer: bool = False, **options) -> None:
        """stemmer: cut English endings off first."""
        self.stemmer = stemmer
        super().__init__(**options)

    def _check(self, rows, clean):
        for texts in clean["references"]:
            if not any(re.search("[a-z0-9]", text.lower()) for text in texts):
                raise ValueError(f"ROUGE's tokenizer finds no word in {texts!r}: take chrF.")

    def _compute(self, predictions, references):
        from rouge_score.rouge_scorer import RougeScorer

        names = ("rouge1", "rouge2", "rougeL")
        scorer = RougeScorer(names, use_stemmer=self.stemmer)
        pairs = zip(references, predictions, strict=True)
        found = [scorer.score_multi(*pair) for pair in pairs]
        return {name: float(np.mean([item[name].fmeasure for item in found])) for name in names}


class Perplexity(_Metric):
    """exp(all nats / all tokens): {"perplexity"}. Columns: nats and tokens of each text."""

    columns: ClassVar = {"nats": (_FLOAT, _number), "tokens": (_FLOAT, _number)}

    def _compute(self, nats, tokens):
        if not sum(tokens):
            raise ValueError("There are no tokens.")
        return {"perplexity": math.exp(sum(nats) / sum(tokens))}


class BitsPerByte(_Metric):
    """All bits over all bytes: {"bits_per_byte"}. Columns: nats and n_bytes of each text."""

    columns: ClassVar = {"nats": (_FLOAT, _number), "n_bytes": (_FLOAT, _number)}

    def _compute(self, nats, n_bytes):
        if not sum(n_bytes):
            raise ValueError("There are no bytes.")
        return {"bits_per_byte": concepts.bits_per_byte(np.array(nats) / math.log(2), n_bytes)}


class _Probabilities(_Metric):
    columns: ClassVar = {
        "predictions": (ListOf(_FLOAT), _probabilities),  # (classes,), or the one of class 1
        "references": (_FLOAT, _number),
    }

    def _check(self, rows, clean):
        if len(set(map(len, clean["predictions"]))) > 1:
            raise ValueError("Some items have more classes than others.")
        calibration.checked(clean["predictions"], clean["references"])


class ExpectedCalibrationError(_Probabilities):
    """calibration.calibration_error: {"ece"}, 0 to 1. References are class numbers."""

    def __init__(self, bins: int = 10, equal_mass: bool = False, **options) -> None:
        """bins, equal_mass: as for calibration.reliability."""
        self.bins, self.equal_mass = bins, equal_mass
        super().__init__(**options)

    def _compute(self, predictions, references):
        error = calibration.calibration_error(predictions, references, self.bins, self.equal_mass)
        return {"ece": error}


class Brier(_Probabilities):
    """Mean squared error of the probabilities: {"brier"}. Source: Brier 1950.

    Summed over the classes, 0 to 2; for two classes of one of them, 0 to 1, as is usual.
    """

    def _compute(self, predictions, references):
        probabilities, labels = calibration.checked(predictions, references)
        squares = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
        total = squares.sum(axis=1).mean()
        return {"brier": float(total / 2 if probabilities.shape[1] == 2 else total)}
