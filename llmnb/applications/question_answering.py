"""Questions about a folder of documents: find, copy, cite, or say that it isn't there (06)."""

import functools
import math
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from llmnb import handbook
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.applications.bm25 import content_stems, coverage, identifiers, is_covered, stems
from llmnb.applications.documents import Passage, excerpt, sentence_units
from llmnb.applications.retrieval import Hit, Index
from llmnb.applications.text_generation import TextGenerator
from llmnb.generation import KeyValueCache
from llmnb.hosted import is_hosted
from llmnb.text import can_end_at, clean, numbers, printed_words

NOT_FOUND = "Not found in the documents."
THRESHOLD = 0.65  # answered from this probability on
# Logistic regression on the weighted share of the question's words in the passage, the cosine of
# question and sentence, and log(1 + words of the question). Fitted on 312 answerable and 223 other
# questions about nine tools' documentation, notes and the handbook; the threshold was chosen on
# predictions for folders that were left out.
COEFFICIENTS = (10.8, 4.4, 4.4)
INTERCEPT = -15.1
EXAMPLES = (  # text, question, answer: invented, so that nothing of them can be known
    ("The ferry carries 38 cars and leaves at 7:40.", "How many cars fit on the ferry?", "38 cars"),
    ("The bell of Orrin was cast by Hedda Voss.", "Who made the bell of Orrin?", "Hedda Voss"),
    ("Plum paste keeps if sealed with wax, not cork.", "What should close the jar?", "wax"),
    ("The setting `fast` gives each move ten seconds.", "Which setting limits a move?", "fast"),
)
PASSAGES_READ = 5  # for a question
PASSAGE_SHARE = 0.25  # weight of the question's words in a passage; the rest: in the sentence
EXACT_BONUS = 0.5  # for a sentence whose passage has the question's identifiers
KIND_BONUS = 0.3  # for a sentence with the number, time or name that is asked for
KIND_PENALTY = 1.0  # taken off the mean log p of an answer without it
MAX_ANSWER_TOKENS = 8
MAX_ANSWER_STARTS = 8  # words of a sentence at which an answer may begin
_ASKS_NUMBER = re.compile(
    r"\b(?:how (?:many|much|long|often|high|large|old|far)|when|(?:which|what)"
    r" (?:time|year|month|date|version|port)|amount|budget|costs?|deadline|fee|price)\b",
    re.I,
)
_TIME = re.compile(r"\b(?:noon|midnight|once|twice|[A-Z][a-z]+day|[a-z]+ly)\b")
_NAME = re.compile(r"(?<=[\w,.] )[A-Z][a-z]")
_ASKS_PERSON = re.compile(r"\bwho(?:se|m)?\b", re.I)


class _Start(NamedTuple):
    """A word of a sentence at which the answer may begin."""

    log_p: float  # of its first token
    ids: list[int]  # the tokens from there on, MAX_ANSWER_TOKENS at most
    offset: int  # where it begins in the sentence, in characters
    ends: list[int]  # where each of the tokens ends


@dataclass(frozen=True)
class Answer(Result):
    """A result with the sentence that fits the question best, even if it is declined."""

    sentence: str = ""
    nearest: Hit | None = None  # the passage that has the sentence

    @property
    def excerpt(self) -> str:
        """The sentence with its neighbours, which show whether the copied words answer."""
        return excerpt(self.nearest.passage.text, self.sentence) if self.nearest else self.sentence


class _Evidence(NamedTuple):
    """A sentence that may answer a question, and the passage that has it."""

    fit: float
    sentence: str
    hit: Hit
    features: tuple[float, ...]  # as COEFFICIENTS has them


@dataclass(eq=False)
class QuestionAnswerer(Application):
    """Finds the sentence that answers a question, and copies the answer out of it.

    Of the sentence's spans the decoder picks the likeliest, by the mean log p of a token. What is
    cited is what the retriever found: nothing that a model or a document says can change it.
    """

    index: Index
    generator: TextGenerator
    threshold: float = THRESHOLD  # a score below it is answered by NOT_FOUND
    copy: bool = True  # False lets the decoder write freely
    _embedded: dict[Passage, list] = field(default_factory=dict)  # sentence, stems, vector

    @classmethod
    def load(
        cls, model: str = "", profile: str = "auto", folder: str | Path = handbook.FOLDER, **options
    ) -> Self:
        """folder: the documents'; options: as for the class.

        openai:NAME writes freely. Raises ApplicationError, AssetError, HostedError.
        """
        if is_hosted(model) and options.setdefault("copy", False):
            raise ApplicationError(f"{model} can't copy answers out of sentences: set copy=False.")
        index = Index.build(folder)
        generator = TextGenerator.load(model, profile, max_new_tokens=16, stop=["\n"])
        return cls(index, generator, **options)

    def batch(self, texts: Sequence[str]) -> list[Answer]:
        """An answer to each question with the passage it stands on, or NOT_FOUND with none."""
        start = time.perf_counter()
        questions = checked(texts)
        hits = self.index.search_all(questions, PASSAGES_READ)
        results = self.read(questions, hits, self.threshold)
        seconds = (time.perf_counter() - start) / max(len(questions), 1)
        return [replace(result, seconds=seconds) for result in results]

    def stream(self, text: str) -> Iterator[str]:
        """The answer, which is copied as a whole, in one piece."""
        yield self(text).text

    def closed_book(self, questions: Sequence[str]) -> list[Result]:
        """What the decoder writes after examples and question alone, without any text."""
        return self.generator.complete(list(map(self._prompt, checked(questions))))

    def read(
        self, questions: Sequence[str], hits: Sequence[Sequence[Hit]], threshold: float = 0.0
    ) -> list[Answer]:
        """Answers from the hits given for each question, best first; below threshold NOT_FOUND."""
        questions = [clean(question) for question in questions]
        results = self._best_sentences(questions, hits)
        rows = [row for row, result in enumerate(results) if result.score >= threshold]
        answers = self.answer_from(
            [questions[row] for row in rows], [results[row].sentence for row in rows]
        )
        for row, answer in zip(rows, answers, strict=True):
            changes = {"text": answer.text, "tokens": answer.tokens}
            results[row] = replace(results[row], evidence=(results[row].nearest,), **changes)
        return results

    def answer_from(self, questions: Sequence[str], texts: Sequence[str]) -> list[Result]:
        """An answer to each question from the text beside it, without search or declining.

        texts: one a question; a sentence, as `read` hands over, or a whole document.
        Raises ApplicationError for a text that the model has no room for.
        """
        pairs = list(zip(questions, texts, strict=True))
        prompts = [self._prompt(*pair) for pair in pairs]
        self.generator.prompt_sizes(prompts)  # refuses one that is too long before any work
        if self.copy:
            return [self._copied(*pair) for pair in pairs]
        return self.generator.complete(prompts)

    def _best_sentences(self, questions, hits) -> list[Answer]:
        """For each question the best sentence, by cosine plus share of the question's words.

        The score is the probability that it answers the question, estimated by a logistic
        regression. It is 0 where the question has an identifier or a name that no document has.
        """
        self._embed_sentences([hit.passage for ranking in hits for hit in ranking])
        answers = []
        vectors = self.index.embed(questions)
        for question, vector, ranking in zip(questions, vectors, hits, strict=True):
            best = max(self._candidates(question, vector, ranking), key=lambda c: c.fit)
            logit = float(np.dot(best.features, COEFFICIENTS)) + INTERCEPT
            score, warnings = 1 / (1 + math.exp(-logit)), ()
            if missing := self.index.bm25.missing(question):
                score, warnings = 0.0, (f"Not in the documents: {', '.join(missing)}.",)
            answer = Answer(NOT_FOUND, score, warnings=warnings)
            answers.append(replace(answer, sentence=best.sentence, nearest=best.hit))
        return answers

    def _candidates(self, question, vector, ranking: Sequence[Hit]) -> Iterator[_Evidence]:
        """The passages' sentences; of two that fit equally the first one counts.

        Those that only repeat the question come last. What the passage has of the question counts
        too, most of all its identifiers, for "Invoice 17. Its customer is Lindt.".
        """
        weights = self.index.bm25.term_weights(question)
        exact_terms = identifiers(question)
        question_stems = set(stems(question))
        for hit in ranking:
            rows = self._embedded[hit.passage]
            in_any = set().union(*(available for _, available, _ in rows))
            in_passage = coverage(weights, in_any)
            exact = {term for term in exact_terms if is_covered(term, in_any)}
            bonus = EXACT_BONUS * len(exact) / max(len(exact_terms), 1)
            for sentence, available, sentence_vector in rows:
                cosine = max(float(vector @ sentence_vector), 0.0)
                in_sentence = coverage(weights, available)
                features = (in_passage, cosine, math.log1p(len(weights)))
                fit = cosine + in_sentence + PASSAGE_SHARE * (in_passage - in_sentence)
                fit += bonus + KIND_BONUS * _has_kind(question, sentence)
                fit -= set(stems(sentence)) <= question_stems
                yield _Evidence(fit, sentence, hit, features)

    def _embed_sentences(self, passages: Sequence[Passage]) -> None:
        """Embed each sentence behind its title and heading, once for each passage."""
        new = {p: sentence_units(p.text) for p in passages if p not in self._embedded}
        texts = [f"{p.title}: {p.heading}. {unit}" for p, units in new.items() for unit in units]
        rows = iter(zip(map(set, map(stems, texts)), self.index.embed(texts), strict=True))
        for passage, units in new.items():
            self._embedded[passage] = [(unit, *next(rows)) for unit in units]

    @torch.inference_mode()
    def _copied(self, question: str, sentence: str) -> Result:
        """The span with the best mean log p, less the share of its words that the question has.

        What only repeats the question's words is no answer. If the question asks for a number, a
        time or a name, and the sentence has one, a span without it loses KIND_PENALTY.
        """
        request_ids = self._ids("\n" + self._request(question, sentence))
        log_p, cache = self._log_p([request_ids], self._examples_cache, last_only=True)
        starts = self._starts(sentence, log_p[0, -1])
        if not starts:  # there is no word in it
            return Result(sentence)
        log_p, _ = self._log_p([start.ids for start in starts], cache)
        newline = self._ids("\n")[0]  # the answer ends there
        ends = [end for _, end in printed_words(sentence)]
        word_ends = {end for end in ends if can_end_at(sentence, end)}
        best = (-math.inf, 0, "")  # its value, tokens, answer
        for row, start in enumerate(starts):
            total = start.log_p
            for n, end in enumerate(start.ends):
                if n > 0:
                    total += float(log_p[row, n - 1, start.ids[n]])
                mean = (total + float(log_p[row, n, newline])) / (n + 2)
                answer = sentence[start.offset : end]
                if end in word_ends and not set(stems(answer)) <= set(stems(question)):
                    best = max(best, (mean - _misfit(question, sentence, answer), n + 1, answer))
        _, n_tokens, answer = best
        return Result(answer or sentence, tokens=n_tokens)

    def _starts(self, sentence: str, log_p: torch.Tensor) -> list[_Start]:
        """Where the answer is likeliest to begin; log_p: of its first token, (vocab,)."""
        starts = []
        for word_start, _ in printed_words(sentence):
            rest = " " + sentence[word_start:]
            options = {"add_special_tokens": False, "return_offsets_mapping": True}
            encoded = self.generator.tokenizer(rest, **options)
            ids = encoded["input_ids"][:MAX_ANSWER_TOKENS]
            offsets = encoded["offset_mapping"][:MAX_ANSWER_TOKENS]
            ends = [word_start + end - 1 for _, end in offsets]  # without the space
            starts.append(_Start(float(log_p[ids[0]]), ids, word_start, ends))
        return sorted(starts, reverse=True)[:MAX_ANSWER_STARTS]

    def _log_p(
        self, rows: list[list[int]], prefix: KeyValueCache | None, last_only: bool = False
    ) -> tuple[torch.Tensor, KeyValueCache]:
        """log p of each next token, (rows, seq, vocab), the rows behind the prefix; the cache."""
        model = self.generator.model
        weight = model.embedding.weight
        width = max(map(len, rows))
        padded = [row + row[-1:] * (width - len(row)) for row in rows]
        ids = torch.tensor(padded, device=weight.device)
        length = width + (prefix.length if prefix else 0)
        cache = KeyValueCache(model.config, len(rows), length, like=weight)
        if prefix:
            cache.copy_prefix(prefix)
        logits = model(ids, cache=cache, last_only=last_only)
        return logits.float().log_softmax(-1).cpu(), cache

    @functools.cached_property
    def _examples_cache(self) -> KeyValueCache:
        examples = _examples().removesuffix("\n")  # tokenizers cut two newlines before a word apart
        _, cache = self._log_p([self._ids(examples)], prefix=None, last_only=True)
        return cache

    def _request(self, question: str, sentence: str = "") -> str:
        return _request(*map(self.generator.without_control_tokens, (question, sentence)))

    def _prompt(self, question: str, sentence: str = "") -> str:
        return _examples(closed_book=not sentence) + self._request(question, sentence)

    def _ids(self, text: str) -> list[int]:
        return self.generator.tokenizer(text, add_special_tokens=False)["input_ids"]


def _misfit(question: str, sentence: str, answer: str) -> float:
    """How little a span looks like an answer, in nats: 0 to 1 + KIND_PENALTY."""
    words = content_stems(answer)
    repeated = len(words & set(stems(question))) / len(words) if words else 1.0
    lacks_kind = _has_kind(question, sentence) and not _has_kind(question, f"it {answer}")
    return repeated + KIND_PENALTY * lacks_kind


def _has_kind(question: str, sentence: str) -> bool:
    """Whether the sentence has what an English question asks for: a number, a time, a name."""
    if _ASKS_NUMBER.search(question):
        return bool(numbers(sentence, english=True) or _TIME.search(sentence))
    return bool(_ASKS_PERSON.search(question) and _NAME.search(sentence))


def _request(question: str, sentence: str = "") -> str:
    text = f"Text: {sentence}\n" if sentence else ""
    return f"{text}Question: {' '.join(question.split())}\nAnswer:"


def _examples(closed_book: bool = False) -> str:
    examples = ""
    for text, question, answer in EXAMPLES:
        examples += f"{_request(question, '' if closed_book else text)} {answer}\n\n"
    return examples


def tune(scores: ArrayLike, answerable: ArrayLike) -> float:
    """The threshold with the best mean of two shares: answerable kept, unanswerable declined.

    It lies midway between two scores; of equals it is the lowest, which answers most.
    Raises ApplicationError unless there are questions of both kinds.
    """
    scores = np.asarray(scores, float)
    answerable = np.asarray(answerable, bool)
    is_valid = scores.shape == answerable.shape and scores.ndim == 1 and np.isfinite(scores).all()
    if not is_valid or answerable.all() or not answerable.any():
        raise ApplicationError(
            "tune takes a score and True or False for each question, and one of each at least."
        )
    levels = np.unique(scores)
    cuts = np.concatenate([levels[:1], (levels[1:] + levels[:-1]) / 2])
    yes, no = scores[answerable], scores[~answerable]
    balance = [(yes >= cut).mean() + (no < cut).mean() for cut in cuts]
    return float(cuts[int(np.argmax(balance))])
