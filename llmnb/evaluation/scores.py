"""The field's metrics as plain functions, which check what they are given.

The formulas of the well-known ones are those of scikit-learn, sacrebleu and rouge-score. Input that
these would let pass (no items, NaN, a probability as a class, a text without a word) raises
ValueError here. The classes at the end wrap functions as evaluate.Metric, for add_batch and
evaluate.combine. Calibration is computed in evaluation/calibration.py, intervals in uncertainty.py.
"""

import itertools
import numbers
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike
from sklearn import metrics as sklearn_metrics
from sklearn.utils import check_consistent_length

from llmnb import files
from llmnb.evaluation import calibration
from llmnb.text import normalize_answer

BLEU_TOKENIZERS = ("13a", "char", "intl", "none", "zh")  # sacrebleu's others download a model
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")


def accuracy(predictions: Sequence, references: Sequence) -> float:
    """The share of items whose class is right; classes are names or whole numbers."""
    predictions, references = _class_columns(predictions, references)
    return float(sklearn_metrics.accuracy_score(references, predictions))


def precision_recall_f1(predictions: Sequence, references: Sequence) -> dict[str, float]:
    """{"precision", "recall", "f1"}: the means over the classes (macro), 0 where undefined."""
    predictions, references = _class_columns(predictions, references)
    means = sklearn_metrics.precision_recall_fscore_support(
        references, predictions, average="macro", zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), map(float, means[:3]), strict=True))


def matthews(predictions: Sequence, references: Sequence) -> float:
    """Matthews' correlation of predictions and references, -1 to 1; 0 if there is one class."""
    predictions, references = _class_columns(predictions, references)
    if len({*predictions, *references}) == 1:  # scikit-learn would warn
        return 0.0
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction is one of the answers, both normalized, else 0.0."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def contains_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text, both normalized, and not as part of a word."""
    padded = f" {normalize_answer(text)} "
    return any(f" {normalize_answer(answer)} " in padded for answer in answers)


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words shared with the answer that shares most, 0 to 1; SQuAD 2.0's rules."""
    predicted = normalize_answer(prediction).split()
    best = 0.0
    for answer in answers:
        accepted = normalize_answer(answer).split()
        if predicted and accepted:
            n_shared = (Counter(predicted) & Counter(accepted)).total()
            f1 = 2 * n_shared / (len(predicted) + len(accepted))
        else:
            f1 = float(predicted == accepted)
        best = max(best, f1)
    return best


def bleu(predictions: Sequence, references: Sequence, tokenize: str = "13a") -> dict:
    """sacrebleu's BLEU of a corpus, 0 to 100: {"bleu", "bleu_signature"}.

    references: one text or a list of texts for each prediction. tokenize: "zh" for Chinese, where
    "13a" takes a whole sentence for one word; or "intl", "char", "none". Source: Post 2018.
    """
    from sacrebleu.metrics import BLEU

    if tokenize not in BLEU_TOKENIZERS:
        raise ValueError(f"tokenize is one of {BLEU_TOKENIZERS}, not {tokenize!r}.")
    return _sacrebleu("bleu", BLEU(tokenize=tokenize), predictions, references)


def chrf(predictions: Sequence, references: Sequence) -> dict:
    """sacrebleu's chrF of a corpus, 0 to 100: {"chrf", "chrf_signature"}.

    references: one text or a list of texts for each prediction. Source: Popović 2015.
    """
    from sacrebleu.metrics import CHRF

    return _sacrebleu("chrf", CHRF(), predictions, references)


def _sacrebleu(name: str, metric, predictions, references) -> dict:
    predictions, references = _text_columns(predictions, references)
    # One list of all first references, one of all second …; None where an item has fewer.
    columns = []
    for column in range(max(map(len, references))):
        columns.append([texts[column] if column < len(texts) else None for texts in references])
    score = metric.corpus_score(predictions, columns).score
    return {name: score, f"{name}_signature": metric.get_signature().format()}


def rouge(predictions: Sequence, references: Sequence) -> dict[str, float]:
    """Mean F1, 0 to 1, against the best reference: {"rouge1", "rouge2", "rougeL"}.

    references: one text or a list of texts for each prediction, in Latin letters: the tokenizer
    drops all others. Source: Lin 2004.
    """
    from rouge_score.rouge_scorer import RougeScorer

    predictions, references = _text_columns(predictions, references)
    scorer = RougeScorer(ROUGE_KINDS)
    rows = []
    for prediction, texts in zip(predictions, references, strict=True):
        if not any(re.search("[a-z0-9]", text.lower()) for text in texts):
            raise ValueError(f"ROUGE's tokenizer finds no word in {texts!r}: take chrF.")
        rows.append(scorer.score_multi(texts, prediction))
    return {kind: float(np.mean([row[kind].fmeasure for row in rows])) for kind in ROUGE_KINDS}


def brier(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean squared error of the probabilities, (n, classes) or (n,) of class 1.

    Summed over the classes, 0 to 2; for two classes of one of them, 0 to 1, as is usual.
    Source: Brier 1950.
    """
    probabilities, labels = calibration.checked(probabilities, labels)
    n_classes = probabilities.shape[1]
    squares = (probabilities - np.eye(n_classes)[labels]) ** 2
    mean = float(squares.sum(axis=1).mean())
    return mean / 2 if n_classes == 2 else mean


def _columns(predictions, references) -> list[list]:
    """The columns as lists of plain Python values, with equally many items each."""
    columns = []
    for name, values in (("predictions", predictions), ("references", references)):
        if isinstance(values, str) or not hasattr(values, "__len__"):
            raise ValueError(f"{name} is a list with one entry an item, not {values!r}.")
        columns.append(values.tolist() if hasattr(values, "tolist") else list(values))
    check_consistent_length(*columns)
    if not columns[0]:
        raise ValueError("There are no items to score.")
    return columns


def _class_columns(predictions, references) -> tuple[list[str], list[str]]:
    predictions, references = _columns(predictions, references)
    if len({isinstance(value, str) for value in predictions + references}) > 1:
        raise ValueError("Some classes are names and some are numbers: they would never match.")
    return list(map(_class_name, predictions)), list(map(_class_name, references))


def _class_name(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Real) and float(value).is_integer():
        return str(int(value))
    raise ValueError(f"{value!r} is no class: it takes names or whole numbers.")


def _text_columns(predictions, references) -> tuple[list[str], list[list[str]]]:
    predictions, references = _columns(predictions, references)
    references = [[value] if isinstance(value, str) else list(value or ()) for value in references]
    for text in itertools.chain(predictions, *references):
        if not isinstance(text, str):
            raise ValueError(f"{text!r} is no text.")
    if not all(any(text.strip() for text in texts) for texts in references):
        raise ValueError("An item has no reference, or only an empty one.")
    return predictions, references


class _Classification(evaluate.Metric):
    """A function of classes as evaluate.Metric; add_batch refuses what the function would."""

    function: ClassVar[Callable]

    def __init__(self) -> None:
        """No file is written, but evaluate makes its folder."""
        super().__init__(keep_in_memory=True, cache_dir=files.cache_dir() / "metrics")

    def _info(self) -> evaluate.MetricInfo:
        text = Value("string")
        return evaluate.MetricInfo(
            description=self.function.__doc__,
            citation="",
            inputs_description="",
            features=Features({"predictions": text, "references": text}),
        )

    def add_batch(self, *, predictions, references) -> None:
        """Add items. Raises ValueError, and adds none, if one can't be scored."""
        predictions, references = _class_columns(predictions, references)
        super().add_batch(predictions=predictions, references=references)

    def _compute(self, predictions, references) -> dict[str, float]:
        result = type(self).function(predictions, references)
        return result if isinstance(result, dict) else {self.function.__name__: result}


class Accuracy(_Classification):
    """{"accuracy"}: see accuracy."""

    function = staticmethod(accuracy)


class PrecisionRecallF1(_Classification):
    """{"precision", "recall", "f1"}, averaged over the classes: see precision_recall_f1."""

    function = staticmethod(precision_recall_f1)


class Matthews(_Classification):
    """{"matthews"}: see matthews."""

    function = staticmethod(matthews)
