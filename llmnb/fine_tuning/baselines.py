"""The rungs that train no network: the majority, word counts, a frozen encoder's features.

encoders.py has the rungs that train one, prompting.py those that only ask a decoder.
"""

import json
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy.sparse import hstack
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from llmnb import embedding, models
from llmnb.fine_tuning.base import Classifier
from llmnb.text import WORD, folded

if TYPE_CHECKING:
    import transformers

WEIGHTS_FILE = "head.safetensors"
MAX_CHARACTERS_FOR_PIECES = (
    400  # mean length of a text; in longer ones pieces take minutes and don't help
)


class Majority(Classifier):
    """For every text, the classes' shares in the training set: the baseline of every other rung."""

    learned = ("shares",)
    shares: list[float]

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Majority":
        """Count the classes."""
        counts = np.bincount(labels, minlength=len(self.label_names))
        self.shares = (counts / len(labels)).tolist()
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """The same row for every text: (texts, classes)."""
        return np.tile(self.shares, (len(texts), 1))


class _Linear(Classifier):
    """Logistic regression; a subclass turns the texts into features."""

    weight: NDArray[np.float64]  # (classes, features)
    bias: NDArray[np.float64]  # (classes,)
    penalty: float  # scikit-learn's C: the inverse of the regularization's strength

    @abstractmethod
    def features(self, texts: Sequence[str]):
        """(texts, features), dense or sparse."""

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]):
        """Maximize the penalized likelihood. With two classes their weights are opposite."""
        class_weight = "balanced" if self.settings.balanced else None
        regression = LogisticRegression(C=self.penalty, max_iter=300, class_weight=class_weight)
        with warnings.catch_warnings():  # a little short of the optimum is as good here
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(self.features(texts), labels)
        weight = regression.coef_
        bias = regression.intercept_
        if len(regression.classes_) == 2:
            weight = np.vstack([-weight, weight]) / 2
            bias = np.concatenate([-bias, bias]) / 2
        self.weight = np.zeros((len(self.label_names), weight.shape[1]))
        self.weight[regression.classes_] = weight
        self.bias = np.full(len(self.label_names), -np.inf)  # a class without training texts
        self.bias[regression.classes_] = bias
        self.trainable_parameters = regression.coef_.size + regression.intercept_.size
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """softmax(W x + b): (texts, classes)"""
        if not len(texts):
            return np.zeros((0, len(self.label_names)))
        return softmax(np.asarray(self.features(texts) @ self.weight.T) + self.bias, axis=1)

    def write(self, folder: Path) -> None:
        """Weights and bias. The weights in fp32, which is precise enough and half as large."""
        head = {"weight": self.weight.astype(np.float32), "bias": self.bias}
        save_file(head, folder / WEIGHTS_FILE)

    def read(self, folder: Path) -> None:
        """Weights and bias."""
        head = load_file(folder / WEIGHTS_FILE)
        self.weight = head["weight"].astype(np.float64)
        self.bias = head["bias"]


class Tfidf(_Linear):
    """Words and pairs of words, weighted by how rare they are; in short texts pieces of words too.

    A piece has 2 to 6 letters, so "unfunny" is understood by its parts, even if it is new.
    Source: Salton & Buckley 1988.
    """

    vectorizers: list[TfidfVectorizer]

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Tfidf":
        """Collect the vocabulary from the training texts, then train the weights."""
        is_short = sum(map(len, texts)) < MAX_CHARACTERS_FOR_PIECES * len(texts)
        min_texts = 2 if len(texts) >= 1000 else 1  # leaves out what stands in one text only
        if is_short:
            self.vectorizers = [_word_vectorizer(), _piece_vectorizer(min_df=min_texts)]
        else:
            self.vectorizers = [_word_vectorizer(min_df=min_texts)]
        self.penalty = (
            3.0 if is_short else 30.0
        )  # chosen on held-out data, like the lengths of the pieces
        for vectorizer in self.vectorizers:
            vectorizer.fit(texts)
        return super().fit(texts, labels)

    def features(self, texts: Sequence[str]):
        """(texts, vocabulary), sparse."""
        return hstack([vectorizer.transform(texts) for vectorizer in self.vectorizers], "csr")

    def write(self, folder: Path) -> None:
        """Weights, vocabularies, and the inverse document frequency (idf) of each entry."""
        super().write(folder)
        vocabularies = [list(vectorizer.get_feature_names_out()) for vectorizer in self.vectorizers]
        text = json.dumps(vocabularies, ensure_ascii=False)
        (folder / "vocabulary.json").write_text(text, encoding="utf-8", errors="surrogatepass")
        idf = {str(n): v.idf_.astype(np.float32) for n, v in enumerate(self.vectorizers)}
        save_file(idf, folder / "idf.safetensors")

    def read(self, folder: Path) -> None:
        """Weights, vocabularies and idf."""
        super().read(folder)
        text = (folder / "vocabulary.json").read_text(encoding="utf-8", errors="surrogatepass")
        idf = load_file(folder / "idf.safetensors")
        self.vectorizers = []
        for number, vocabulary in enumerate(json.loads(text)):
            make_vectorizer = _piece_vectorizer if number else _word_vectorizer
            vectorizer = make_vectorizer(vocabulary=vocabulary)
            vectorizer.idf_ = idf[str(number)].astype(np.float64)
            self.vectorizers.append(vectorizer)


def _word_vectorizer(**options) -> TfidfVectorizer:
    options |= {"preprocessor": folded, "sublinear_tf": True}
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD, **options)


def _piece_vectorizer(**options) -> TfidfVectorizer:
    options |= {"preprocessor": folded, "sublinear_tf": True}
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 6), **options)


class Frozen(_Linear):
    """The pretrained encoder as it is: a text's features are the mean of its last hidden states.

    Source: Reimers & Gurevych 2019, section 3 (mean pooling).
    """

    needs_base = True
    penalty = 0.01
    model: "transformers.PreTrainedModel | None" = None

    @property
    def base(self) -> str:
        """The encoder's name."""
        return self.settings.encoder

    def features(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, d_model), each of length √d_model, so that one penalty fits every width."""
        if self.model is None:
            self._load(self.base, self.settings.dtype)
        encoded, _ = embedding.encode(
            self.tokenizer, texts, self.settings.max_length, self.settings.keep
        )
        means = embedding.mean_pooled(self.model, self.tokenizer, encoded)
        return means / np.linalg.norm(means, axis=1, keepdims=True) * means.shape[1] ** 0.5

    def _load(self, name: str, dtype: str) -> None:
        self.tokenizer = models.load_tokenizer(name)
        self.model = models.load_encoder(name, dtype)
