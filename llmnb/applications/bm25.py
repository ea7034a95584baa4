"""Words in common: BM25, and how much each word of a question says (notebook 06)."""

import functools
import math
import re
from collections.abc import Mapping, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from llmnb import models
from llmnb.text import is_identifier, names, parts, terms, words

IDENTIFIER_WEIGHT = (
    2.0  # an identifier such as A-17 weighs this much more than an equally rare word
)
MAX_COUNT = 15  # a larger number in a question is an identifier, as 202400037 is
# A word's frequency is estimated from the index's texts and as many imagined ones in English.
BACKGROUND_TEXTS = 1000
WORDS_PER_TEXT = 50
FUNCTION_WORDS = (
    "a an the of in on at to for from by with as into about over under between out up down off"
    " and or but if than then so nor is are was were be been being am do does did done has have"
    " had having can could may might must shall should will would how what which who whom whose"
    " when where why that this these those there here it its he she they him her them his their"
    " we our us you your i me my no not any some all much many long often please tell s t"
)
# A question with one of these is taken to be English.
ENGLISH_WORDS = "the of is what which who whose when where why how does did"
ENGLISH_VOCABULARY = "all-MiniLM-L6-v2"  # the encoder's is sorted by frequency


@functools.cache
def _stem(word: str) -> str:
    """The word without its commonest English ending, cut to six letters: "stopping" is "stop"."""
    word = re.sub(r"(?<=\w\w)(?<!s)s$", "", word)
    word = re.sub(r"(?<=\w\w)(?:ing|ed|e)$", "", word)
    return re.sub(r"y$", "i", re.sub(r"(\w)\1$", r"\1", word))[:6]


def stems(text: str) -> list[str]:
    """The words' stems, by a crude stemmer, and identifiers as they are."""
    return [term if is_identifier(term) else _stem(term) for term in terms(text)]


def content_stems(text: str) -> set[str]:
    """The stems of a text without those of function words, such as "the" and "which"."""
    return set(stems(text)) - _function_stems()


def identifiers(text: str) -> list[str]:
    """A text's identifiers, but not their parts, nor numbers up to MAX_COUNT, often counts."""
    candidates = [term for term in stems(text) if is_identifier(term)]
    inner_stems = set().union(*map(_inner_stems, candidates))
    return [
        term
        for term in dict.fromkeys(candidates)
        if term not in inner_stems and not (term.isdecimal() and int(term) <= MAX_COUNT)
    ]


class Bm25:
    """How well texts match a question's words. Source: Robertson & Zaragoza 2009, section 3."""

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75) -> None:
        """k1: how soon a word's repetition stops counting; b: how much long texts are held back.

        An identifier counts IDENTIFIER_WEIGHT times as much as a word that is as rare.
        """
        from sklearn.feature_extraction.text import CountVectorizer

        self.vectorizer = CountVectorizer(analyzer=stems)
        counts = self.vectorizer.fit_transform(texts).astype(float)  # (texts, vocabulary), sparse
        self.n_texts, n_words = counts.shape
        self.document_frequency = np.bincount(counts.indices, minlength=n_words)  # (vocabulary,)
        with_word = self.document_frequency + 0.5
        self.idf = np.log1p((self.n_texts + 1 - with_word) / with_word)
        for term, index in self.vectorizer.vocabulary_.items():
            if is_identifier(term):
                self.idf[index] *= IDENTIFIER_WEIGHT
        lengths = np.asarray(counts.sum(axis=1))[:, 0]
        relative_lengths = np.repeat(lengths, np.diff(counts.indptr)) / lengths.mean()
        saturation = counts.data + k1 * (1 - b + b * relative_lengths)
        counts.data = self.idf[counts.indices] * counts.data * (k1 + 1) / saturation
        self.weights = counts

    def scores(self, questions: Sequence[str]) -> NDArray[np.float64]:
        """(questions, texts), from 0 on; a word that a question repeats counts once."""
        has_word = (self.vectorizer.transform(questions) > 0).astype(float)
        return (has_word @ self.weights.T).toarray()

    def term_weights(self, question: str) -> dict[str, float]:
        """How much each of a question's words says: the rarer, the more; function words nothing.

        A word's frequency is that in English and in these texts together, as if BACKGROUND_TEXTS
        further ones had been counted. So a weight means the same for one text and for a thousand.
        A word that no text has weighs as much as one that a single text has.
        """
        ranks = _english_ranks()
        question_stems = content_stems(question)
        weights = {}
        for term in question_stems.difference(*map(_inner_stems, question_stems)):
            index = self.vectorizer.vocabulary_.get(term)
            n_texts_with = 1 if index is None else self.document_frequency[index]
            english_share = min(WORDS_PER_TEXT / ranks.get(term, len(ranks)) / 10, 1)  # Zipf's law
            n_with = n_texts_with + english_share * BACKGROUND_TEXTS
            weights[term] = math.log((self.n_texts + BACKGROUND_TEXTS) / n_with)
            if is_identifier(term):
                weights[term] *= IDENTIFIER_WEIGHT
        return weights

    def missing(self, question: str) -> list[str]:
        """The question's identifiers and names that no text has, so that none answers it."""
        vocabulary = self.vectorizer.vocabulary_.keys()
        unknown = [term for term in identifiers(question) if not is_covered(term, vocabulary)]
        if set(words(question)) & set(ENGLISH_WORDS.split()):  # a German noun has a capital letter
            unknown += [name for name in names(question) if not vocabulary & set(stems(name))]
        return unknown


def is_covered(term: str, available: Set[str]) -> bool:
    """Whether a stem is there, or all parts of an identifier: "24 months" for 24-month.

    One part has to be a word: "a 17" is no A-17.
    """
    inner_stems = _inner_stems(term)
    has_word = any(len(stem) > 1 and stem.isalpha() for stem in inner_stems)
    return term in available or (has_word and inner_stems <= available)


def coverage(weights: Mapping[str, float], available: Set[str]) -> float:
    """The share of a question's words, weighted, that is among the stems of a text: 0 to 1."""
    covered = sum(weight for term, weight in weights.items() if is_covered(term, available))
    return covered / (sum(weights.values()) or 1)


def _inner_stems(term: str) -> set[str]:
    """The stems of the words inside an identifier; empty for anything else."""
    return set(stems(" ".join(parts(term)))) - {term} if is_identifier(term) else set()


@functools.cache
def _function_stems() -> frozenset[str]:
    return frozenset(map(_stem, FUNCTION_WORDS.split()))


@functools.cache
def _english_ranks() -> dict[str, int]:
    """The rank of each English word's stem by frequency, by which the vocabulary is sorted."""
    vocabulary = models.load_tokenizer(ENGLISH_VOCABULARY).get_vocab()
    first = vocabulary["the"]  # before it stand special tokens and characters
    ranks: dict[str, int] = {}
    for word in sorted(vocabulary, key=vocabulary.get)[first:]:
        if word.isalpha():
            ranks.setdefault(_stem(word), vocabulary[word] - first + 1)
    return ranks
