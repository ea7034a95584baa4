"""Text, cut into the units that everything else counts: words, n-grams, sentences, numbers.

Every other module takes them from here, so that a text has the same words everywhere.
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

# Ranges for a character class. Chinese first, then Thai, Lao, Burmese, Khmer and Japanese.
_CHINESE_RANGES = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# These put no spaces between words, so each character counts as a word.
NO_SPACES = f"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff{_CHINESE_RANGES}"
# A word is what stands between spaces and punctuation; \w would cut Hindi at its vowel signs.
# An underscore belongs to the word, as in max_length.
_BREAKS = r"\s!-/:-@\[-^`{-~\u00a1-\u00bf\u0964\u0965\u2000-\u206f\u3000-\u303f"
WORD = f"[{NO_SPACES}]|[^{_BREAKS}{NO_SPACES}]+"
_WORD = re.compile(WORD)
_CHINESE = re.compile(f"[{_CHINESE_RANGES}]")

_LIST_ITEM = re.compile(r"(?:[-*•–]|#+|\(?\d{1,3}[.)])(?:\s+|$)")  # of a heading, too
_CLOSING = r"""['"”’»)\]」』]"""
_SENTENCE_END = re.compile(rf"(?<![.!?…])[.!?…]++{_CLOSING}*+\s++|[。！？]++{_CLOSING}*+\s*+")
_END_MARK = re.compile(rf"[.!?…。！？]{_CLOSING}*$")
_QUOTATION_MARK = re.compile('["“”]')
# Searched in the text up to a full stop plus the character after the space, which is a digit in
# "No. 5". A single capital letter is an initial, unless it is "I" or a unit, as in "400 W".
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:(?:Mr|Mrs|Ms|Dr|Prof|St|Mt|Rev|Gen|Col|Capt|Lt|vs|cf|e\.g|i\.e|ca|approx|al"
    r"|(?<!\d )(?!I)[A-ZÀ-Þ])\..?|(?:[Nn]os?|[Ff]igs?|[Ee]qs?|[Ss]ec|[Cc]h|[Vv]ol|pp?)\.\d)$"
)

_TWO_TO_FIFTEEN = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_TWO_TO_FIFTEEN.split(), 2)}
_EXPONENTS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?<![A-Za-z\d_])"
    r"(?:(\d{1,3}(?:[\s'’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,:]\d+)*)"  # 3 200,50 or 3,200.50
    rf"|({'|'.join(_NUMBER_WORDS)})\b)(?:[ -]?({'|'.join(_EXPONENTS)})\b)?",
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words without case and punctuation; single characters where a script has no spaces."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def is_chinese(character: str) -> bool:
    """Whether it is a Chinese character, which Japanese texts have as well."""
    return bool(_CHINESE.match(character))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer tokens than n."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line; a heading, list item or greeting counts as one."""
    return [sentence for block in blocks(text) for sentence in split_sentences(block)]


def blocks(text: str) -> list[str]:
    """Paragraphs, headings and list items, each on one line.

    A greeting ("Dear Ada,") goes with the paragraph after it.
    """
    result: list[list[str]] = [[]]  # the lines of each block
    for line in text.splitlines():
        line = " ".join(line.split())
        block = result[-1]
        if block:
            is_new = _LIST_ITEM.match(line) if line else not block[-1].endswith(",")
            if is_new or block[0].startswith("#"):
                result.append([])
        if line:
            result[-1].append(line)
    return [" ".join(block) for block in result if block]


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph.

    A sentence ends at a mark such as a full stop, but not at that of a title, an initial or a
    number, nor within quotation marks.
    """
    item = _LIST_ITEM.match(paragraph)
    quotes_are_paired = len(_QUOTATION_MARK.findall(paragraph)) % 2 == 0
    parts = []
    start = position = n_quotes = 0
    for end in _SENTENCE_END.finditer(paragraph, item.end() if item else 0):
        n_quotes += len(_QUOTATION_MARK.findall(paragraph, position, end.end()))
        position = end.end()
        after = paragraph[position : position + 1]
        before = paragraph[max(0, end.start() - 11) : end.start() + 1]
        is_quoted = quotes_are_paired and n_quotes % 2 == 1
        if not (is_quoted or after.islower() or _ABBREVIATION.search(before + after)):
            parts.append(paragraph[start:position].strip())
            start = position
    if start < len(paragraph):
        parts.append(paragraph[start:])
    return parts


def has_end_mark(sentence: str) -> bool:
    """Whether it ends as a sentence does; headings, greetings and signatures don't."""
    return bool(_END_MARK.search(sentence))


class Number(NamedTuple):
    """A number in a text."""

    start: int  # where it stands in the NFKC form of the text
    written: str
    values: set[float | str]  # all that it can mean: 3,800 is 3800 in London and 3.8 in Paris


def numbers(text: str, english: bool = False) -> list[Number]:
    """The numbers of a text, in their order.

    english: whether "three" is one as well, and "3.8 million" is 3,800,000. What has no value, as
    version 5.2.1, means only itself.
    """
    result = []
    for match in _NUMBER.finditer(unicodedata.normalize("NFKC", text)):
        digits, word, scale = match.groups(default="")
        exponent = _EXPONENTS[scale.lower()] if scale and english else 0
        if english or digits:
            values = _values(digits or _NUMBER_WORDS[word.lower()], exponent)
            result.append(Number(match.start(), match[0], values))
    return result


def _values(digits: str, exponent: int) -> set[float | str]:
    """As a whole number where all groups behind the first have three digits, and as a decimal."""
    groups = re.split(r"[.,:\s'’]", digits)
    readings = []
    if all(len(group) == 3 for group in groups[1:]):
        readings.append("".join(groups))
    if len(groups) > 1 and all(len(group) == 3 for group in groups[1:-1]):
        readings.append(f"{''.join(groups[:-1])}.{groups[-1]}")
    return {float(f"{reading}e{exponent}") for reading in readings} or {digits}


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra spaces.

    Source: Rajpurkar et al. 2016 (SQuAD), the official evaluation script.
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())
