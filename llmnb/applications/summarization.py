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

# The best of 7 wordings that state a length, on the first half of the texts. With 12 texts that is
# hardly more than luck; examples in the prompt (few-shot) were clearly worse.
SYSTEM = (
    "Provide a concise, objective summary of the input text in at most {} words, focusing on key "
    "actions and intentions without using second or third person pronouns."
)
_BARE = "{}\n\nTL;DR:"  # for a model without a chat template; Radford et al. 2019, section 3.6

_ITEM = re.compile(r"(?:[-*•–]|#+|\(?\d{1,3}[.)])(?:\s+|$)")  # what begins an item of a list
_CLOSING = r"""['"”’»)\]」』]"""
_STOP = re.compile(rf"(?<![.!?…])[.!?…]++{_CLOSING}*+ |[。！？]++{_CLOSING}*+ ?")
_WHOLE = re.compile(rf"[.!?…。！？]{_CLOSING}*$")
_MARK = re.compile('["“”]')
_GOES_ON = re.compile(  # no sentence ends here: the full stop and the first character behind it
    r"(?<!\w)(?:(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Rev|Gen|Col|Capt|Lt|vs|cf|e\.g|i\.e|ca|approx|al"
    r"|(?!I)[A-ZÀ-Þ])\..?|(?:[Nn]os?|[Ff]igs?|[Ee]qs?|[Ss]ec|[Cc]h|[Vv]ol|pp?)\.\d)$"
)
_COUNTS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
_COUNTS = {word: str(n) for n, word in enumerate(_COUNTS.split(), 2)}
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = rf"(?<![\w.,])(\d+(?:[.,:]\d+)*|(?:{'|'.join(_COUNTS)})\b)"
_NUMBER = re.compile(rf"{_NUMBER}(?:[ -]?({'|'.join(_SCALES)})\b)?", re.IGNORECASE)
_NAME = re.compile(r"(?<![\w'’])[^\W\d_][\w'’]*")
_NAMED = re.compile(r"\w+(?:['’]| [^\W\d_a-zß-ÿ])")  # the first word of a sentence, if it is a name
_MARKUP = re.compile(  # comments, code, underlined titles, directives, images, tags, addresses
    r"<!--.*?-->|^(```|~~~).*?^\1|^(?: {4}|\t|\.\. )[^\n]*|^[^\n]*\n[-=~^*+#|][-=~^*+#|: ]{2,}$"
    r"|!\[[^]]*\]\([^)]*\)|</?\w[^>]*>|(?<=\])[(\[][^])]*[])]|<?https?://[^\s>)]+>?|`_*|[][*|]",
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
        heading = block and block[0].startswith("#")
        if block and (heading or (_ITEM.match(line) if line else not block[-1].endswith(","))):
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
    return " ".join(_whole(*checked([text]))[:k])


def centroid(text: str) -> str:
    """The sentence nearest to the mean of the sentences' TF-IDF vectors, a baseline.

    Source: Radev et al. 2000 (centroid-based summarization), of one document.
    """
    found = _whole(*checked([text]))
    if not re.search(r"\w", " ".join(found)):
        return found[0]  # without a word there is nothing to compare
    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    vectors = vectorizer.fit_transform(found)  # (sentences, words), rows of length 1
    return found[int((vectors @ vectors.mean(axis=0).T).argmax())]


def _whole(text: str) -> list[str]:
    """The sentences that end in a mark; where none does, all: headings, greetings, signatures."""
    found = sentences(text)
    return [sentence for sentence in found if _WHOLE.search(sentence)] or found


def unsupported(source: str, summary: str) -> tuple[str, ...]:
    """The numbers and names of the summary that are nowhere in the source, in their order.

    A number may be written in another way: 24,50 and 24.50, 3.8 million and 3,800,000, 3 and
    three. A name is a word with a capital letter; at the beginning of a sentence, where any word
    has one, only if it is possessive or another capital follows. For English. What the source says
    of something else is not seen: "9 dogs" where it has 9 cats.
    """
    source, summary = (unicodedata.normalize("NFKC", text) for text in (source, summary))
    numbers = {value for match in _NUMBER.finditer(source) for value in _values(match)}
    words = {form for word in _NAME.findall(source) for form in _forms(word)}
    found = []
    for sentence in sentences(summary):
        wrong = [match for match in _NUMBER.finditer(sentence) if not numbers & _values(match)]
        for name in _NAME.finditer(sentence):
            first = not re.search(r"\w", sentence[: name.start()])
            plain = first and not _NAMED.match(sentence, name.start())
            small = re.split("['’]", name[0].lower())[0] in ENGLISH_STOP_WORDS
            if name[0][0].isupper() and not (plain or small or words & _forms(name[0])):
                wrong.append(name)
        found += [match[0] for match in sorted(wrong, key=lambda match: match.start())]
    return tuple(dict.fromkeys(found))


def _values(match: re.Match) -> set[str | float]:
    """What a number can mean: 3,800 is 3800 in London and 3.8 in Paris; 5.2.1 is only itself."""
    number, scale = match[1].lower(), _SCALES.get((match[2] or "").lower(), 0)
    *first, last = groups = re.split("[.,:]", _COUNTS.get(number, number))
    readings = ["".join(groups)] if all(len(group) == 3 for group in groups[1:]) else []
    if first and all(len(group) == 3 for group in first[1:]):
        readings.append("".join(first) + "." + last)
    return {float(f"{reading}e{scale}") for reading in readings} or {number}


def _forms(word: str) -> set[str]:
    """The word without case, accents and possessive, with and without the endings of a plural."""
    word = re.sub("[\u0300-\u036f]|['’]s?$", "", unicodedata.normalize("NFKD", word.casefold()))
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


class Summarizer(Application):
    """Summarizes with a decoder; what is too long in pieces, then the pieces' summaries, and so on.

    Result.evidence: the summaries of the pieces, level by level; none where it read the text whole.
    """

    def __init__(self, generator: TextGenerator, max_words: int = 30, max_tokens: int = 1024):
        """max_words: of a summary; max_tokens: the model reads at once. Both are upper limits."""
        if max_words < 1:
            raise ApplicationError(f"max_words is {max_words}; it is 1 or more.")
        self.generator, self.max_words, self.frame = copy.copy(generator), max_words, 0
        self.generator.system = SYSTEM.format(max_words)
        self.asked = "{}" if generator.tokenizer.chat_template else _BARE
        most, self.frame = generator.model.config.n_positions, self._size(".")
        self.room = min(max_tokens, most - generator.max_new_tokens) - self.frame
        if self.room < (least := 6 * generator.max_new_tokens):  # or pieces might never shrink
            raise ApplicationError(
                f"{self.room} tokens are left for a text, and it takes {least}, 6 times those of a "
                f"summary: raise max_tokens ({max_tokens}) or lower max_new_tokens."
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
        made = self._written([last for last, _ in steps])
        for row, (_, parts) in enumerate(steps):
            every = [*parts, made[row]]
            made[row] = replace(
                made[row],
                evidence=tuple(part.text for part in parts),
                warnings=made[row].warnings + self._seen(texts[row], made[row].text),
                tokens=sum(each.tokens for each in every),
                seconds=sum(each.seconds for each in every),
            )
        return made

    def stream(self, text: str) -> Iterator[str]:
        """The last step's text in pieces, max_words at most; it may end inside of a sentence."""
        last, _ = self._reduced(*checked([text]))
        long, said = self._size(last) > self.max_words, ""
        for piece in self.generator.stream(self.asked.format(last)) if long else [last]:
            said += piece
            if len(said.split()) > self.max_words:
                return
            yield piece

    def _reduced(self, text: str) -> tuple[str, list[Result]]:
        """What the last step reads: the text, or summaries of its pieces; and these as results."""
        if len(pieces := self._pieces(text)) == 1:
            return text, []
        parts = self._written(pieces)
        last, more = self._reduced("\n\n".join(part.text for part in parts).strip())
        return last, parts + more

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

    def _size(self, text: str) -> int:
        """Tokens of the prompt beyond those of the instruction."""
        prompt, options = self.generator.prompt(self.asked.format(text)), {"verbose": False}
        ids = self.generator.tokenizer(prompt, add_special_tokens=False, **options)["input_ids"]
        return len(ids) - self.frame

    def _written(self, texts: list[str]) -> list[Result]:
        """A summary of each; a text that is no longer than one stays as it is."""
        long = [self._size(text) > self.max_words for text in texts]
        asked = [self.asked.format(text) for text in itertools.compress(texts, long)]
        made = map(self._shortened, self.generator.batch(asked))
        kept = ("It is as short as a summary: nothing is left out.",)
        pairs = zip(texts, long, strict=True)
        return [next(made) if far else Result(text, warnings=kept) for text, far in pairs]

    def _shortened(self, said: Result) -> Result:
        """The whole sentences that max_words holds; if there is none, its words and an ellipsis."""
        found = _whole(said.text)
        ends = itertools.accumulate(len(sentence.split()) for sentence in found)
        kept = [each for each, end in zip(found, ends, strict=True) if end <= self.max_words]
        torn = said.warnings and not any(map(_WHOLE.search, kept))  # it ran out of tokens
        if kept == sentences(said.text) and not torn:
            return replace(said, text=" ".join(kept), warnings=())
        words = said.text.split()[:-1][: self.max_words]  # the last one may be half a word
        text = " ".join(words).rstrip(",;:") + "…" if torn or not kept else " ".join(kept)
        return replace(said, text=text, warnings=(f"Cut to {len(text.split())} words.",))

    def _seen(self, source: str, summary: str) -> tuple[str, ...]:
        """What is wrong with a summary, as far as its words show it."""
        unknown, said = unsupported(source, summary), _grams(summary, 4)
        told = set(_grams(self.generator.system, 5)) & set(_grams(summary, 5))
        copied = " ".join(_words(summary)) in " ".join(_words(source))
        long = self._size(source) > self.room
        found = {
            "The model wrote nothing.": not summary,
            "A sentence is longer than what the model reads at once: it was cut.": long
            and max(map(self._size, sentences(source))) > self.room,
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
        plain = _MARKUP.sub("", facts["Description"] or facts.get_payload())
        blocks = (b for b in _blocks(plain) if _WHOLE.search(b) and not _ITEM.match(b))
        text = " ".join(" ".join(b for b in blocks if len(b.split()) >= 8).split()[:250])
        n_words, words = len(text.split()), set(_words(summary))
        repeated = any(words <= set(_words(sentence)) for sentence in sentences(text))
        if n_words >= 60 and len(summary.split()) >= 4 and not repeated:
            found[summary] = (facts["Name"].lower(), text, summary)
    if min(len(found), n) < 5:
        raise ApplicationError(
            f"{len(found)} installed packages have a description and a summary to use, and n is "
            f"{n}: it takes 5. Install more packages, or use texts of your own."
        )
    chosen = random.Random(seed).sample(sorted(found.values()), min(n, len(found)))
    return [(text, summary) for _, text, summary in sorted(chosen)]
