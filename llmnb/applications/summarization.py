"""Summarization: a decoder with map-reduce for long texts, two baselines, and checks (notebook 06).

A summary of a small model can be fluent and false. What can be seen of that without a second
model stands in Result.warnings: numbers and names from nowhere, loops, copies, cuts.
"""

import copy
import importlib.metadata
import itertools
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.applications.text_generation import TextGenerator

# What SmolLM2 was tuned with, and the length; the best wording on the first half of the test set.
SYSTEM = (
    "Extract and present the main key point of the input text in one very short sentence, "
    "including essential details like dates or locations if necessary. Use at most {} words."
)
_BARE = "{}\n\nTL;DR:"  # for a model without a chat template; Radford et al. 2019, section 3.6

_ITEM = re.compile(r"(?:[-*•–]|#+|\(?\d{1,3}[.)])(?:\s+|$)")  # what begins an item of a list
_CLOSING = r"""['"”’»)\]」』]"""
_STOP = re.compile(rf"(?<![.!?…])[.!?…]++{_CLOSING}*+ |[。！？]++{_CLOSING}*+ ?")
_WHOLE = re.compile(rf"[.!?…。！？]{_CLOSING}*$")
_MARK = re.compile('["“”]')
_GOES_ON = re.compile(  # no sentence ends here: the full stop and the first character behind it
    r"(?<!\w)(?:(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Rev|Gen|Col|Capt|Lt|vs|cf|e\.g|i\.e|ca|approx|al"
    r"|(?!I)[^\W\d_])\..?|(?:[Nn]os?|[Ff]igs?|[Ee]qs?|[Ss]ec|[Cc]h|[Vv]ol|pp?)\.\d)$"
)
_DIGITS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
_DIGITS = {word: str(n) for n, word in enumerate(_DIGITS.split(), 1)} | {"twenty": "20"}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?<![\w.,])(\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,:]\d+)*"
    rf"|\b(?:{'|'.join(_DIGITS)})\b)(?:[ \u00a0-]?({'|'.join(_SCALES)})\b)?",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<![\w'’])[^\W\d_][\w'’]*")
_MARKUP = re.compile(  # comments, fenced and indented code, directives, images, tags, addresses
    r"<!--.*?-->|^(```|~~~).*?^\1|^(?: {4}|\t|\.\. ).*?$|!\[[^\]]*\]\([^)]*\)|</?\w[^>]*>"
    r"|\]\([^)]*\)|\]\[[^\]]*\]|<?https?://\S+",
    re.DOTALL | re.MULTILINE,
)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line; headings, items and greetings are some too.

    By rules: marks that end one, less titles, initials and decimals; never within quotation marks.
    """
    return [sentence for block in _blocks(text) for sentence in _split(block)]


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs and items, each on one line; a greeting ("Dear Ada,") goes with what follows."""
    block: list[str] = []
    for line in [*(" ".join(line.split()) for line in text.splitlines()), "-"]:
        if block and (_ITEM.match(line) if line else not block[-1].endswith(",")):
            yield " ".join(block)
            block = []
        block += [line] if line else []


def _split(block: str) -> Iterator[str]:
    start = end = marks = 0
    item, paired = _ITEM.match(block), len(_MARK.findall(block)) % 2 == 0
    for stop in _STOP.finditer(block, item.end() if item else 0):
        marks += len(_MARK.findall(block, end, stop.end()))
        end, dot = stop.end(), stop.start() + 1
        after = block[end : end + 1]
        goes_on = _GOES_ON.search(block[max(0, dot - 12) : dot] + after)
        if not (goes_on or after.islower() or (paired and marks % 2)):
            yield block[start:end].strip()
            start = end
    if start < len(block):
        yield block[start:]


def lead(text: str, k: int = 1) -> str:
    """The first k sentences, a baseline; headings and the like only where there is nothing else."""
    if k < 1:
        raise ApplicationError(f"k is {k}; it is 1 or more.")
    return " ".join(_candidates(text)[:k])


def centroid(text: str) -> str:
    """The sentence nearest to the mean of the sentences' TF-IDF vectors, a baseline.

    Source: Radev et al. 2000 (centroid-based summarization), of one document.
    """
    found = _candidates(text)
    if not re.search(r"\w", " ".join(found)):
        return found[0]  # without a word there is nothing to compare
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    vectors = vectorizer.fit_transform(found)  # (sentences, words), rows of length 1
    return found[int((vectors @ vectors.mean(axis=0).T).argmax())]


def _candidates(text: str) -> list[str]:
    found = sentences(*checked([text]))
    return [sentence for sentence in found if _WHOLE.search(sentence)] or found


def unsupported(source: str, summary: str) -> tuple[str, ...]:
    """The numbers and names of the summary that are nowhere in the source, in their order.

    A number may be written in another way: 24,50 and 24.50, 3.8 million and 3,800,000, 3 and
    three. A name is a word with a capital letter; at the beginning of a sentence, where any word
    has one, small words don't count. For English. What the source says of something else is not
    seen: "9 dogs" where it has 9 cats.
    """
    source, summary = (unicodedata.normalize("NFKC", text) for text in (source, summary))
    numbers = {value for match in _NUMBER.finditer(source) for value in _values(match)}
    words = {form for word in _NAME.findall(source) for form in _forms(word)}
    found = {m.start(): m[0] for m in _NUMBER.finditer(summary) if not numbers & _values(m)}
    for name in _NAME.finditer(summary):
        small = name[0].lower() in ENGLISH_STOP_WORDS
        if name[0][0].isupper() and not small and not words & _forms(name[0]):
            found[name.start()] = name[0]
    return tuple(dict.fromkeys(found[start] for start in sorted(found)))


def _values(match: re.Match) -> set[str | float]:
    """What a number can mean: 3,800 is 3800 in London and 3.8 in Paris; 5.2.1 is only itself."""
    number, scale = match[1].lower(), _SCALES.get((match[2] or "").lower(), 0)
    groups = re.split("[.,:]", re.sub("[ \u00a0\u202f'’]", "", _DIGITS.get(number, number)))
    threes = [len(group) == 3 for group in groups]
    readings = {"".join(groups)} if all(threes[1:]) else set()
    if len(groups) > 1 and all(threes[1:-1]):
        readings.add("".join(groups[:-1]) + "." + groups[-1])
    return {float(f"{reading}e{scale}") for reading in readings} or {number}


def _forms(word: str) -> set[str]:
    """The word without case, accents and possessive, with and without the endings of a plural."""
    word = re.sub("[\u0300-\u036f]|['’]s?$", "", unicodedata.normalize("NFKD", word.casefold()))
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


class Summarizer(Application):
    """Summarizes with a decoder; what is too long in pieces, then the pieces' summaries, and so on.

    Result.evidence: the summaries of pieces that the last step read; none where it read the text.
    """

    def __init__(self, generator: TextGenerator, max_words: int = 30, max_tokens: int = 1024):
        """max_words: of a summary; max_tokens: the model reads at once. Both are upper limits."""
        if max_words < 1:
            raise ApplicationError(f"max_words is {max_words}; it is 1 or more.")
        self.generator, self.max_words, self.frame = copy.copy(generator), max_words, 0
        self.generator.system = SYSTEM.format(max_words)
        most, self.frame = generator.model.config.n_positions, self._size(".")
        self.room = min(max_tokens, most - generator.max_new_tokens) - self.frame
        if self.room < (least := 8 * generator.max_new_tokens):  # or pieces shrink too slowly
            raise ApplicationError(
                f"{self.room} tokens are left for a text, and with summaries of an eighth of that "
                f"it takes {least}: raise max_tokens ({max_tokens}) or lower max_new_tokens."
            )

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> Self:
        """options: the class's and TextGenerator's; max_new_tokens is the profile's."""
        own = {name: options.pop(name) for name in ("max_words", "max_tokens") if name in options}
        return cls(TextGenerator.load(model, profile, **options), **own)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A summary of each text; its warnings say what can be seen to be wrong with it."""
        texts = checked(texts)
        steps = [self._reduced(text) for text in texts]
        made = self._written([step.text for step in steps])
        for row, (step, last) in enumerate(zip(steps, made, strict=True)):
            warnings = step.warnings + last.warnings + self._seen(texts[row], last.text)
            spent = {"tokens": step.tokens + last.tokens, "seconds": step.seconds + last.seconds}
            made[row] = replace(step, text=last.text, warnings=warnings, **spent)
        return made

    def stream(self, text: str) -> Iterator[str]:
        """The last step's text in pieces, max_words at most; it may end inside of a sentence."""
        (text,), said = checked([text]), ""
        for piece in self.generator.stream(self._asked(self._reduced(text).text)):
            said += piece
            if len(said.split()) > self.max_words:
                return
            yield piece

    def _reduced(self, text: str) -> Result:
        """What the last step reads: the text, or the summaries of its pieces."""
        pieces = self._pieces(text)
        if len(pieces) == 1:
            return Result(text)
        broken = max(map(self._size, sentences(text))) > self.room
        parts = self._written(pieces)
        told = tuple(part.text for part in parts if part.text)
        last = self._reduced("\n\n".join(told))
        return Result(
            last.text,
            evidence=last.evidence or told,
            warnings=("A sentence was too long for the model: it was cut.",) * broken,
            tokens=last.tokens + sum(part.tokens for part in parts),
            seconds=last.seconds + sum(part.seconds for part in parts),
        )

    def _pieces(self, text: str) -> list[str]:
        """Halves of halves until each fits, cut between paragraphs, else sentences, else words."""
        if self._size(text) <= self.room:
            return [text]
        space = text.rfind(" ", len(text) // 4, len(text) // 2) + 1 or len(text) // 2
        ways = (("\n\n", list(_blocks(text))), (" ", sentences(text)))
        words = ("", [text[:space], text[space:]])
        gap, units = next((way for way in ways if len(way[1]) > 1), words)
        ends = list(itertools.accumulate(map(len, units)))
        cut = min(range(1, len(units)), key=lambda n: abs(ends[n - 1] - ends[-1] / 2))
        return self._pieces(gap.join(units[:cut])) + self._pieces(gap.join(units[cut:]))

    def _asked(self, text: str) -> str:
        return text if self.generator.tokenizer.chat_template else _BARE.format(text)

    def _size(self, text: str) -> int:
        """Tokens of the prompt beyond those of the instruction."""
        prompt, options = self.generator.prompt(self._asked(text)), {"add_special_tokens": False}
        ids = self.generator.tokenizer(prompt, verbose=False, **options)["input_ids"]
        return len(ids) - self.frame

    def _written(self, texts: list[str]) -> list[Result]:
        """A summary of each; a text that is no longer than one stays as it is."""
        long = [self._size(text) > self.max_words for text in texts]
        asked = [self._asked(text) for text in itertools.compress(texts, long)]
        made = map(self._shortened, self.generator.batch(asked))
        kept = "It is as short as a summary: nothing is left out."
        pairs = zip(texts, long, strict=True)
        return [next(made) if far else Result(text, warnings=(kept,)) for text, far in pairs]

    def _shortened(self, said: Result) -> Result:
        """The whole sentences that max_words holds; if there is none, its words and an ellipsis."""
        text, end = "", "at the end of a sentence"
        for sentence in sentences(said.text):
            longer = f"{text} {sentence}".strip()
            torn = said.warnings and not _WHOLE.search(sentence)  # it ran out of tokens
            if torn or len(longer.split()) > self.max_words:
                break
            text = longer
        else:
            return replace(said, text=text, warnings=())
        if not text:
            words = said.text.split()[:-1][: self.max_words]  # the last one may be half a word
            text, end = " ".join(words).rstrip(",;:") + "…", "inside of a sentence"
        return replace(said, text=text, warnings=(f"Cut to {len(text.split())} words, {end}.",))

    def _seen(self, source: str, summary: str) -> tuple[str, ...]:
        """What is wrong with a summary, as far as its words show it."""
        unknown, said = unsupported(source, summary), _grams(summary, 4)
        told = set(_grams(self.generator.system, 5)) & set(_grams(summary, 5))
        copied = " ".join(_words(summary)) in " ".join(_words(source))
        found = {
            "The model wrote nothing.": not summary,
            f"Not in the text: {', '.join(unknown)}.": unknown,
            "It is copied from the text word for word.": copied and 0 < len(summary) < len(source),
            "It repeats itself.": len(said) > len(set(said)),
            "It repeats the instruction.": told - set(_grams(source, 5)),
        }
        return tuple(warning for warning, seen in found.items() if seen)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = _words(text)
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def package_pairs(n: int = 20, seed: int = 0) -> list[tuple[str, str]]:
    """(description, one-line summary) of installed Python packages, n at most, by name.

    People's own pairs, cleaned of Markdown and reStructuredText: paragraphs of prose, 250 words at
    most. Left out: what is then under 60 words, summaries of under 4, and those that stand in their
    description. They differ between machines, and nobody has checked them: untrusted text.
    Raises ApplicationError if there are fewer than 5.
    """
    found = {}
    for facts in (each.metadata for each in importlib.metadata.distributions()):
        summary = " ".join((facts["Summary"] or "").split())
        plain = re.sub(r"[][`*|]", "", _MARKUP.sub("", facts["Description"] or facts.get_payload()))
        blocks = (b for b in _blocks(plain) if _WHOLE.search(b) and not _ITEM.match(b))
        words = " ".join(block for block in blocks if len(block.split()) >= 8).split()
        repeated = " ".join(_words(summary)) in " ".join(_words(" ".join(words)))
        if len(words) >= 60 and len(summary.split()) >= 4 and not repeated:
            found[summary] = (facts["Name"].lower(), " ".join(words[:250]), summary)
    if min(len(found), n) < 5:
        raise ApplicationError(
            f"{len(found)} installed packages have a description and a summary to use, and n is "
            f"{n}: it takes 5. Install more packages, or use texts of your own."
        )
    chosen = random.Random(seed).sample(sorted(found.values()), min(n, len(found)))
    return [(text, summary) for _, text, summary in sorted(chosen)]
