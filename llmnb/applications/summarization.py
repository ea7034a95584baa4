"""Summarization: a decoder with map-reduce for long texts, two baselines, and checks (notebook 06).

A summary of a small model can be fluent and false. What can be seen of that without a second
model stands in Result.warnings: numbers and names from nowhere, loops, copies, cuts.
"""

import copy
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.applications.text_generation import TextGenerator
from llmnb.text import (
    blocks,
    has_end_mark,
    ngrams,
    numbers,
    printed_words,
    sentences,
    separated,
    words,
)

# Of 7 wordings that state a length the best one on 12 texts, the first half of summaries.json: the
# differences were hardly more than luck. Examples in the prompt (few-shot) were clearly worse.
SYSTEM = (
    "Provide a concise, objective summary of the input text in at most {} words, focusing on key "
    "actions and intentions without using second or third person pronouns."
)
# For a model without a chat template. Source: Radford et al. 2019, section 3.6.
REQUEST_WITHOUT_TEMPLATE = "{}\n\nTL;DR:"

_CAPITALIZABLE = re.compile(r"(?<![\w'’])[^\W\d_][\w'’]*")
# Follows a name at the beginning of a sentence: a possessive, or another capital letter.
_NAME_AT_START = re.compile(r"\w+(?:['’]| [^\W\d_a-zß-ÿ])")


def lead(text: str) -> str:
    """The first sentence, a baseline; a heading or the like only where there is nothing else."""
    return _full_sentences(*checked([text]))[0]


def centroid(text: str) -> str:
    """The sentence nearest to the mean of the sentences' TF-IDF vectors, a baseline.

    Source: Radev et al. 2000 (centroid-based summarization), of one document.
    """
    candidates = _full_sentences(*checked([text]))
    if not re.search(r"\w", " ".join(candidates)):
        return candidates[0]  # without a word there is nothing to compare
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    vectors = vectorizer.fit_transform(candidates)  # (sentences, words), rows of length 1
    return candidates[int((vectors @ vectors.mean(axis=0).T).argmax())]


def _sentences(text: str) -> list[str]:
    """The sentences of a text, after wrapped lines are joined."""
    return sentences("\n".join(blocks(text)))


def _full_sentences(text: str) -> list[str]:
    """The sentences with an end mark; where none has one, all of them."""
    candidates = _sentences(text)
    return [sentence for sentence in candidates if has_end_mark(sentence)] or candidates


def unsupported(source: str, summary: str) -> tuple[str, ...]:
    """The numbers and names of the summary that are nowhere in the source, in their order.

    A number may be written in another way: 24,50 and 24.50, 3.8 million and 3,800,000, 3 and
    three. A name is a word with a capital letter; at the beginning of a sentence, where any word
    has one, only if it is possessive or another capital follows. For English. It can't
    see that a number belongs to something else: "9 dogs" passes where the source has 9 cats.
    """
    source = unicodedata.normalize("NFKC", separated(source))
    source_values = set().union(*(number.values for number in numbers(source, english=True)))
    source_forms = set().union(*map(_word_forms, _CAPITALIZABLE.findall(source)))
    unknown = []
    for sentence in _sentences(unicodedata.normalize("NFKC", separated(summary))):
        matches = [
            (number.start, number.written)
            for number in numbers(sentence, english=True)
            if not number.values & source_values
        ]
        for word in _CAPITALIZABLE.finditer(sentence):
            if _is_name(word) and not _word_forms(word[0]) & source_forms:
                matches.append((word.start(), word[0]))
        unknown += [written for _, written in sorted(matches)]
    return tuple(dict.fromkeys(unknown))


def _is_name(word: re.Match) -> bool:
    is_first = not re.search(r"\w", word.string[: word.start()])
    if is_first and not _NAME_AT_START.match(word.string, word.start()):
        return False
    stem = re.split("n?['’]", word[0].lower())[0]  # of don't: do
    return word[0][0].isupper() and stem not in {*ENGLISH_STOP_WORDS, "does", "did", "let"}


def _word_forms(word: str) -> set[str]:
    """The word without case, accents and possessive, with and without the endings of a plural."""
    word = re.sub("[\u0300-\u036f]|['’]s?$", "", unicodedata.normalize("NFKD", word.casefold()))
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


class Summarizer(Application):
    """Summarizes with a decoder.

    A long text is cut into pieces; each is summarized, then the joined summaries are, until the
    rest fits.

    Result.evidence: the summaries of the pieces, level by level; empty for a text read whole.
    """

    def __init__(
        self, generator: TextGenerator, max_words: int = 30, max_tokens: int = 1024
    ) -> None:
        """max_words: of the longest summary; max_tokens: of the longest prompt."""
        if max_words < 1:
            raise ApplicationError(f"max_words is {max_words}; it is 1 or more.")
        self.max_words = max_words
        self.generator = copy.copy(generator)
        self.generator.system = SYSTEM.format(max_words)
        self.request = "{}" if generator.is_chat_model else REQUEST_WITHOUT_TEMPLATE
        self.instruction_tokens = self._prompt_tokens(".")
        context = generator.context_tokens - generator.max_new_tokens
        self.max_text_tokens = min(max_tokens, context) - self.instruction_tokens
        needed = 6 * generator.max_new_tokens  # with less the pieces might never shrink
        if self.max_text_tokens < needed:
            raise ApplicationError(
                f"{self.max_text_tokens} tokens are left for a text, and it takes {needed}, 6 "
                f"times those of a summary: raise max_tokens ({max_tokens}) or lower "
                "max_new_tokens."
            )

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> Self:
        """options: arguments of Summarizer or TextGenerator.

        max_new_tokens is the profile's if it isn't given.
        """
        limits = {name: options.pop(name) for name in {"max_words", "max_tokens"} & {*options}}
        return cls(TextGenerator.load(model, profile, **options), **limits)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A summary of each text; its warnings say what can be seen to be wrong with it."""
        texts = checked(texts)
        reduced = [self._reduce(text) for text in texts]
        summaries = self._summarize([short for short, _ in reduced])
        results = []
        for text, (_, parts), summary in zip(texts, reduced, summaries, strict=True):
            steps = [*parts, summary]
            result = replace(
                summary,
                evidence=tuple(part.text for part in parts),
                warnings=summary.warnings + self._problems(text, summary.text),
                tokens=sum(step.tokens for step in steps),
                seconds=sum(step.seconds for step in steps),
            )
            results.append(result)
        return results

    def stream(self, text: str) -> Iterator[str]:
        """The last step's text as it comes, max_words at most; it may end inside a sentence."""
        short, _ = self._reduce(*checked([text]))
        if self._text_tokens(short) <= self.max_words:
            yield short
            return
        written = ""
        for piece in self.generator.stream(self.request.format(short)):
            written += piece
            if len(printed_words(written)) > self.max_words:
                return
            yield piece

    def _reduce(self, text: str) -> tuple[str, list[Result]]:
        """A text that fits, and the results of the pieces so far; none if the text itself fits."""
        pieces = self._pieces(text)
        if len(pieces) == 1:
            return text, []
        parts = self._summarize(pieces)
        short, more = self._reduce("\n\n".join(part.text for part in parts).strip())
        return short, parts + more

    def _pieces(self, text: str) -> list[str]:
        """Halves of halves until each fits."""
        if self._text_tokens(text) <= self.max_text_tokens:
            return [text]
        gap, units = _units(text)
        ends = list(itertools.accumulate(map(len, units)))
        cut = min(range(1, len(units)), key=lambda n: abs(ends[n - 1] - ends[-1] / 2))
        return self._pieces(gap.join(units[:cut])) + self._pieces(gap.join(units[cut:]))

    def _prompt_tokens(self, text: str) -> int:
        return self.generator.n_tokens(self.generator.prompt(self.request.format(text)))

    def _text_tokens(self, text: str) -> int:
        return self._prompt_tokens(text) - self.instruction_tokens

    def _summarize(self, texts: list[str]) -> list[Result]:
        """A summary of each; a text of max_words tokens or fewer stays as it is."""
        warnings = ("It is as short as a summary: nothing is left out.",)
        results = [Result(text, warnings=warnings) for text in texts]
        rows = [row for row, text in enumerate(texts) if self._text_tokens(text) > self.max_words]
        answers = self.generator.batch([self.request.format(texts[row]) for row in rows])
        for row, answer in zip(rows, answers, strict=True):
            results[row] = self._shorten(answer)
        return results

    def _shorten(self, answer: Result) -> Result:
        """The first sentences that fit into max_words; if none does, the first words and "…"."""
        candidates = _full_sentences(answer.text)
        ends = itertools.accumulate(len(printed_words(sentence)) for sentence in candidates)
        n_fitting = sum(end <= self.max_words for end in ends)
        fitting = candidates[:n_fitting]
        is_unfinished = bool(answer.warnings) and not any(map(has_end_mark, fitting))
        if fitting == _sentences(answer.text) and not is_unfinished:
            return replace(answer, text=" ".join(fitting), warnings=())
        if is_unfinished or not fitting:
            whole_words = printed_words(answer.text)[:-1]  # the last one may be half a word
            ends = [end for _, end in whole_words[: self.max_words]]
            text = " ".join(answer.text[: ends[-1] if ends else 0].split()) + "…"
        else:
            text = " ".join(fitting)
        return replace(answer, text=text, warnings=(f"Cut to {len(printed_words(text))} words.",))

    def _problems(self, source: str, summary: str) -> tuple[str, ...]:
        """What is wrong with a summary, as far as its words show it."""
        source_words = words(source)
        summary_words = words(summary)
        four_grams = ngrams(summary_words, 4)
        instruction = set(ngrams(words(self.generator.system), 5)) - set(ngrams(source_words, 5))
        is_shorter = 0 < len(summary) < len(source)
        problems = []
        if not summary:
            problems.append("The model wrote nothing.")
        if self.max_text_tokens < max(map(self._text_tokens, _sentences(source))):
            problems.append("A sentence is longer than what the model reads at once: it was cut.")
        if unknown := unsupported(source, summary):
            problems.append(f"Not in the text: {', '.join(unknown)}.")
        is_part = f" {' '.join(summary_words)} " in f" {' '.join(source_words)} "
        if is_shorter and summary_words and is_part:
            problems.append("It is copied from the text word for word.")
        if len(four_grams) > len(set(four_grams)):
            problems.append("It repeats itself.")
        if instruction & set(ngrams(summary_words, 5)):
            problems.append("It repeats the instruction.")
        return tuple(problems)


def _units(text: str) -> tuple[str, list[str]]:
    """Units between which a text may be cut, with the gap: paragraphs, sentences, or words."""
    for gap, units in (("\n\n", blocks(text)), (" ", _sentences(text))):
        if len(units) > 1:
            return gap, units
    middle = len(text) // 2
    cut = text.rfind(" ", middle // 2, middle) + 1 or middle
    return "", [text[:cut], text[cut:]]
