"""The rungs without gradient descent in a network: the majority, word counts, frozen features."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.sparse import hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llmnb import embedding, models
from llmnb.fine_tuning.base import Classifier
from llmnb.text import WORD

_HEAD = "head.safetensors"
_LONG = 400  # characters; in longer texts pieces of words cost minutes and bring nothing


class Majority(Classifier):
    """Always the training set's shares: what any other rung must beat."""

    shares: NDArray[np.float64]

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Majority":
        """Count the classes."""
        self.shares = np.bincount(labels, minlength=len(self.label_names)) / len(labels)
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The same row for every text: (texts, classes)."""
        return np.tile(self.shares, (len(texts), 1))

    def write(self, folder: Path) -> None:
        """The shares."""
        save_file({"shares": self.shares}, folder / _HEAD)

    def read(self, folder: Path) -> None:
        """The shares."""
        self.shares = load_file(folder / _HEAD)["shares"]


class _Linear(Classifier):
    """Logistic regression on features that a subclass makes of the texts."""

    weight: NDArray[np.float64]  # (classes, features)
    bias: NDArray[np.float64]  # (classes,)
    penalty: float  # scikit-learn's C: the inverse of the regularization's strength

    def features(self, texts: Sequence[str]):
        """(texts, features)"""
        raise NotImplementedError

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]):
        """Maximize the penalized likelihood; two classes get opposite weights."""
        weights = "balanced" if self.settings.balanced else None
        regression = LogisticRegression(C=self.penalty, max_iter=300, class_weight=weights)
        with warnings.catch_warnings():  # a little short of the optimum is as good here
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(self.features(texts), labels)
        weight, bias = regression.coef_, regression.intercept_
        if len(regression.classes_) == 2 and len(weight) == 1:
            weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        self.weight = np.zeros((len(self.label_names), weight.shape[1]))
        self.bias = np.full(len(self.label_names), -np.inf)  # a class without examples
        self.weight[regression.classes_], self.bias[regression.classes_] = weight, bias
        self.trainable_parameters = regression.coef_.size + regression.intercept_.size
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """softmax(W x + b): (texts, classes)"""
        if not len(texts):
            return np.zeros((0, len(self.label_names)))
        scores = np.asarray(self.features(texts) @ self.weight.T) + self.bias
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def write(self, folder: Path) -> None:
        """Weights in half the bytes: the ranking of the classes doesn't need more."""
        head = {"weight": self.weight.astype(np.float32), "bias": self.bias}
        save_file(head, folder / _HEAD)

    def read(self, folder: Path) -> None:
        """Weights and bias."""
        head = load_file(folder / _HEAD)
        self.weight, self.bias = head["weight"].astype(np.float64), head["bias"]


class Tfidf(_Linear):
    """Words and pairs of words, weighed by how rare they are; in short texts pieces of words too.

    Source: Salton & Buckley 1988. The pieces, 2 to 6 letters, know "unfunny" by its parts.
    """

    vectorizers: list[TfidfVectorizer]

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Tfidf":
        """Collect the vocabulary from the training texts, then the weights."""
        short = sum(map(len, texts)) < _LONG * len(texts)
        twice = {"min_df": 2 if len(texts) >= 1000 else 1}  # not what stands in one text only
        self.vectorizers = [_words(), _pieces(**twice)] if short else [_words(**twice)]
        self.penalty = 3.0 if short else 30.0  # like the pieces' lengths: by cross-validation
        for vectorizer in self.vectorizers:
            vectorizer.fit(texts)
        return super().fit(texts, labels)

    def features(self, texts: Sequence[str]):
        """(texts, vocabulary), sparse"""
        return hstack([vectorizer.transform(texts) for vectorizer in self.vectorizers], "csr")

    def write(self, folder: Path) -> None:
        """Vocabularies, rarities, weights."""
        super().write(folder)
        words = [list(vectorizer.get_feature_names_out()) for vectorizer in self.vectorizers]
        text = json.dumps(words, ensure_ascii=False)
        (folder / "vocabulary.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        rarities = {str(n): v.idf_.astype(np.float32) for n, v in enumerate(self.vectorizers)}
        save_file(rarities, folder / "idf.safetensors")

    def read(self, folder: Path) -> None:
        """Vocabularies, rarities, weights."""
        super().read(folder)
        text = (folder / "vocabulary.json").read_text(encoding="utf-8", errors="surrogatepass")
        rarities = load_file(folder / "idf.safetensors")
        kept = json.loads(text)
        made = (_words, _pieces)[: len(kept)]
        self.vectorizers = []
        for number, (make, words) in enumerate(zip(made, kept, strict=True)):
            self.vectorizers.append(make(vocabulary=words))
            self.vectorizers[-1].idf_ = rarities[str(number)].astype(np.float64)


def _words(**options) -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=WORD, **options)


def _pieces(**options) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 6), sublinear_tf=True, **options)


class Frozen(_Linear):
    """The pretrained encoder as it is: the mean of its last vectors is a text's features.

    Source: Reimers & Gurevych 2019, section 3 (mean pooling).
    """

    penalty = 0.01
    _model = None

    @property
    def base(self) -> str:
        """The encoder's name."""
        return self.settings.encoder

    def features(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, d_model), each of length √d_model, so that one penalty fits every width"""
        if self._model is None:
            self._tokenizer = models.load_tokenizer(self.base)
            self._model = models.load_encoder(self.base, self.settings.dtype)
        encoded, _ = embedding.encode(
            self._tokenizer, texts, self.settings.max_length, self.settings.keep
        )
        means = embedding.mean_pooled(self._model, self._tokenizer, encoded)
        return means / np.linalg.norm(means, axis=1, keepdims=True) * means.shape[1] ** 0.5
