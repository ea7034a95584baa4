"""Text, cut into the units that everything else counts: words, n-grams, sentences, numbers.

Every other module takes them from here, so that a text has the same words everywhere.
"""

import re
import string
import unicodedata
from collections import Counter
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
# Invisible characters: soft hyphens, zero-width spaces, direction marks, byte order marks, and
# language tags.
_FORMAT_CHARACTERS = re.compile(
    "[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\U000e0000-\U000e007f]"
)
# One or two letters with a sign, as C# and C++; else words joined by signs, as in v2.1.3 and A-17.
_TOKEN = re.compile(rf"(?<!\w)[^\W\d_]{{1,2}}(?:#|\+\+)(?!\w)|(?:{WORD})(?:[-.,:/](?:{WORD}))*")
# A word as printed. It may begin with a currency sign, path or dashes ($5, ~/x, --strict), and end
# with a unit, sign or full stop (30%, C#, St.).
_PRINTED_WORD = re.compile(
    rf"[{NO_SPACES}]|[$€£¥~/.@#-]*[^{_BREAKS}{NO_SPACES}]"
    rf"(?:[^\s{NO_SPACES}]*[^{_BREAKS}{NO_SPACES}])?[%°#+]*(?:\.(?=\s\S))?"
)
_CAPITALIZED = re.compile(r"(?<=[\w,'’] )[A-Z][a-z]{2,}\b")
_THOUSANDS = re.compile(r"(?<=\d)[,'’](?=\d{3}(?!\d))")
_CHINESE = re.compile(f"[{_CHINESE_RANGES}]")

# A hyphen before "and", "und", … cuts no word: "Nord- und Süd".
_CUT_WORD = re.compile(
    r"(?<![\w-])([^\W\d_]+)(?:[-\u2010\u00ad]|\u00ad-)[ \t]*\n\s*"
    r"(?!(?:and|or|to|und|oder|bis|et|ou|y|o)\b)([^\W\d_]\w*)"
)
_LIST_ITEM = re.compile(r"(?:[-*•–]|#+|\(?\d{1,3}[.)])(?:\s+|$)")  # of a heading, too
_CLOSING = r"""['"”’»)\]」』]"""
_END = "[.!?…\u0964\u0965\u061f\u06d4\u1362\u104b\u17d4]"  # Hindi's, Arabic's and others' as well
_SENTENCE_END = re.compile(  # “ closes a German quotation and opens a Chinese one
    rf"(?<!{_END}){_END}++(?:{_CLOSING}|“(?=\s))*+\s++|[。！？]++{_CLOSING}*+\s*+"
)
_END_MARK = re.compile(rf"(?:{_END}|[。！？])(?:{_CLOSING}|“)*$")
_QUOTATION_MARK = re.compile('["“”„]')
_MONTHS = (
    "Jan(?:uary?|uar)?|Feb(?:ruary?|ruar)?|Mar(?:ch)?|März|Apr(?:il)?|May|Mai|June?|Juni|July?"
    "|Juli|Aug(?:ust)?|Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?"
)
# A full stop after these abbreviations ends no sentence; after those of _BEFORE_A_NUMBER only if a
# number follows.
_BEFORE_A_NAME = (
    "Mr|Mrs|Ms|Dr|Prof|St|Mt|Rev|Gen|Col|Capt|Lt|Sgt|Sen|Rep|Gov|Hon|Hr|Fr|vs|cf|ca|approx|al"
    "|e\\.g|i\\.e|[Bb]ldg|[Aa]pt|[Tt]el|bzw|vgl|ggf|evtl|inkl"
)
_BEFORE_A_NUMBER = (
    "[Nn]os?|[Nn]r|[Ff]igs?|[Ee]qs?|[Ss]ecs?|[Cc]h|[Vv]ols?|pp?|[Aa]rt|[Aa]bs|[Ee]xt|max|min"
)
# A full stop after these is ambiguous: it ends the sentence only if the next word is a starter. A
# single capital letter is an initial, unless it is "I" or a unit, as in "400 W".
_BEFORE_ANYTHING = (
    f"{_MONTHS}|Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun|Inc|Ltd|Co|Corp|Bros|Jr|Sr|etc|usw|[Dd]ept"
    "|Ave|Blvd|Rd|Str|[ap]\\.m|[A-Z]\\.[A-Z]|(?<!\\d )(?!I)[A-ZÀ-Þ]|(?<!\\.)[a-z]"
)
_STARTERS = (
    "The|This|That|These|Those|There|It|Its|He|She|We|They|You|His|Her|Our|Their|Your|If|When"
    "|While|After|Before|Then|But|And|For|From|In|On|At|As|An?|To|Please|What|Who|How|Why|Where"
    "|No|Not|Der|Die|Das|Es|Er|Sie|Wir|Ein|Eine|Im|Am"
)
# Searched in the last characters up to a full stop, then those after the space.
_ABBREVIATION = re.compile(rf"(?<!\w)(?:{_BEFORE_A_NAME})\.$")
_ABBREVIATION_OF_A_NUMBER = re.compile(
    rf"(?<!\w)(?:{_BEFORE_A_NAME}|{_BEFORE_A_NUMBER}|{_MONTHS})\.$"
)
_AMBIGUOUS = re.compile(rf"(?<!\w)(?:{_BEFORE_ANYTHING})\.$")
_STARTER = re.compile(rf"{_CLOSING}*(?:{_STARTERS})\b")
# German ordinals: "am 3. Oktober", "im 19. Jahrhundert".
_DAY = re.compile(r"(?<!\d)\d{1,2}\.$")
_MONTH = re.compile(rf"(?:{_MONTHS})\b")
_ORDINAL = re.compile(r"(?<!\w)(?:der|die|das|dem|den|des|im|zum|zur|vom|beim) \d{1,3}\.$", re.I)
_ABBREVIATION_CHARACTERS = 14  # enough of the text before a full stop for any of these

_TWO_TO_FIFTEEN = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)
_NUMBER_WORDS = {word: str(value) for value, word in enumerate(_TWO_TO_FIFTEEN.split(), 2)}
_EXPONENTS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_NUMBER = re.compile(
    r"(?<![A-Za-z\d_])"
    r"(?:(\d{1,3}(?:[ '’]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,:]\d+)*)"  # 3 200,50 or 3,200.50
    rf"|((?a:{'|'.join(_NUMBER_WORDS)}))\b)(?:[ -]?((?a:{'|'.join(_EXPONENTS)}))\b)?",
    re.IGNORECASE,
)
_DAY_BEFORE_A_NUMBER = re.compile(rf"(\b(?:{_MONTHS})\.? \d{{1,2}}) (?=\d{{3}}(?!\d))")
_RAISED_AFTER_DIGIT = re.compile("(?<=\\d)(?=[²³¹⁰-⁹¼-¾⅐-⅞])")


def clean(text: str) -> str:
    """The text in Unicode's composed form (NFC), without invisible format characters."""
    return unicodedata.normalize("NFC", _FORMAT_CHARACTERS.sub("", text))


def separated(text: str) -> str:
    """The text with a space between a digit and a raised one: 500¹ is 500 ¹, for NFKC not 5001."""
    return _RAISED_AFTER_DIGIT.sub(" ", text)


def folded(text: str) -> str:
    """The text for comparing words: NFKC, without case and invisible format characters."""
    return unicodedata.normalize("NFKC", _FORMAT_CHARACTERS.sub("", text)).casefold()


def words(text: str) -> list[str]:
    """The words without case and punctuation; single characters where a script has no spaces."""
    return _WORD.findall(folded(separated(text)))


def is_identifier(term: str) -> bool:
    """Whether it is a number or a name with a digit, an underscore or a sign: A-17, C#."""
    return any(c.isdigit() or c in "_#+" for c in term)


def parts(term: str) -> list[str]:
    """The words in an identifier: max and length in max_length, none in C#."""
    return _WORD.findall(term.replace("_", " ")) if term[-1] not in "#+" else []


def names(text: str) -> list[str]:
    """Capitalized words that begin no sentence; none in a title, where most have a capital."""
    capitals = _CAPITALIZED.findall(text)
    return capitals if 2 * len(capitals) < len(text.split()) else []


def terms(text: str) -> list[str]:
    """The words, and identifiers as a whole before their parts: v2.1.3 is v2.1.3, v2, 1, 3.

    Separators of thousands are removed, so 1,508 is 1508, and "two" to "fifteen" become digits.
    """
    result = []
    for token in _TOKEN.findall(_THOUSANDS.sub("", folded(separated(text)))):
        pieces = [_NUMBER_WORDS.get(part, part) for part in parts(token)]
        result += [token, *pieces] if is_identifier(token) and pieces != [token] else pieces
    return result


def is_chinese(character: str) -> bool:
    """Whether it is a Chinese character, which Japanese texts have as well."""
    return bool(_CHINESE.match(character))


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order; none where there are fewer tokens than n."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line; a line break ends one.

    A paragraph that was wrapped is one line first, see `blocks`.
    """
    lines = (" ".join(line.split()) for line in text.splitlines())
    return [sentence for line in lines if line for sentence in split_sentences(line)]


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
    return [on_one_line("\n".join(block)) for block in result if block]


def has_cut_words(text: str) -> bool:
    """Whether a hyphen at a line's end cuts a word in two."""
    return any(match[2][0].islower() for match in _CUT_WORD.finditer(text))


def on_one_line(text: str) -> str:
    """The lines of a paragraph joined to one, and the words that hyphens at line ends cut in two.

    A hyphen stays, as in "well-known", if both parts are words of the text.
    """
    counts = Counter(_WORD.findall(text) if has_cut_words(text) else ())

    def whole(match: re.Match) -> str:
        if not match[2][0].islower():
            return match[0]
        are_words = min(counts[match[1]], counts[match[2]]) > 1
        return f"{match[1]}-{match[2]}" if are_words else match[1] + match[2]

    return " ".join(_CUT_WORD.sub(whole, text).split())


def split_sentences(paragraph: str) -> list[str]:
    """The sentences of one paragraph.

    A sentence ends at a mark such as a full stop, but not at that of a title, an initial, an
    abbreviation or a number, nor within quotation marks, nor before a small letter (unless the
    whole paragraph is written in small letters).
    """
    is_all_lower = paragraph.islower()
    item = _LIST_ITEM.match(paragraph)
    quotes_are_paired = len(_QUOTATION_MARK.findall(paragraph)) % 2 == 0
    parts = []
    start = position = n_quotes = 0
    for end in _SENTENCE_END.finditer(paragraph, item.end() if item else 0):
        n_quotes += len(_QUOTATION_MARK.findall(paragraph, position, end.end()))
        position = end.end()
        before = paragraph[max(0, end.start() - _ABBREVIATION_CHARACTERS) : end.start() + 1]
        is_quoted = quotes_are_paired and n_quotes % 2 == 1
        after = paragraph[position : position + 20]
        if not (is_quoted or _goes_on(before, after.capitalize() if is_all_lower else after)):
            parts.append(paragraph[start:position].strip())
            start = position
    if start < len(paragraph):
        parts.append(paragraph[start:])
    return parts


def _goes_on(before: str, after: str) -> bool:
    """Whether the full stop at the end of before ends no sentence; after follows the space."""
    if after[:1].islower() or _is_abbreviation(before, after):
        return True
    if _ORDINAL.search(before) or (_DAY.search(before) and _MONTH.match(after)):
        return True
    return bool(_AMBIGUOUS.search(before)) and not _STARTER.match(after)


def _is_abbreviation(before: str, after: str) -> bool:
    """Whether before ends in Dr., or in No. with a number after it."""
    ends_in_one = _ABBREVIATION_OF_A_NUMBER if after[:1].isdigit() else _ABBREVIATION
    return bool(ends_in_one.search(before))


def printed_words(sentence: str) -> list[tuple[int, int]]:
    """Where each word of a sentence begins and ends: St., $5, 30%, C#, --strict, single 字."""
    return [match.span() for match in _PRINTED_WORD.finditer(sentence)]


def can_end_at(sentence: str, end: int) -> bool:
    """Whether a phrase can end there: not after the Dr. of a name or the No. of a number."""
    before = sentence[max(0, end - _ABBREVIATION_CHARACTERS) : end]
    return not _is_abbreviation(before, sentence[end:].lstrip())


def has_end_mark(sentence: str) -> bool:
    """Whether it ends as a sentence does; headings, greetings and signatures don't."""
    return bool(_END_MARK.search(sentence))


class StopStrings:
    """Passes on a text piece by piece, up to the first of some strings, which it leaves out."""

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self.stop_strings = tuple(stop_strings)
        self.pending = ""  # held back, because it could be the beginning of a stop string
        self.is_finished = False

    def push(self, piece: str) -> str:
        """Pending text and piece, without what is or could become a stop string."""
        text = self.pending + piece
        self.pending = ""
        starts = [text.find(stop) for stop in self.stop_strings if stop in text]
        if starts:
            self.is_finished = True
            return text[: min(starts)]
        longest_start = max(map(len, self.stop_strings), default=1) - 1
        for n in range(min(len(text), longest_start), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stop_strings):
                self.pending = text[-n:]
                return text[:-n]
        return text

    def close(self) -> str:
        """What was held back: nothing follows any more."""
        text, self.pending = self.pending, ""
        self.is_finished = True
        return text


class Number(NamedTuple):
    """A number in a text."""

    start: int  # where it stands in the NFKC form of the text
    written: str
    values: set[float | str]  # all that it can mean: 3,800 is 3800 in London and 3.8 in Paris


def numbers(text: str, english: bool = False) -> list[Number]:
    """The numbers of a text, in their order.

    english: whether "three" is one as well, and "3.8 million" is 3,800,000. What can't be read as a
    number, such as 5.2.1, has the string as its only value.
    """
    result = []
    # In "May 5 200 people came" the space separates no thousands.
    text = _DAY_BEFORE_A_NUMBER.sub(r"\1\n", unicodedata.normalize("NFKC", separated(text)))
    for match in _NUMBER.finditer(text):
        digits, word, scale = match.groups(default="")
        exponent = _EXPONENTS[scale.lower()] if scale and english else 0
        if english or digits:
            values = _values(digits or _NUMBER_WORDS[word.lower()], exponent)
            result.append(Number(match.start(), match[0], values))
    return result


def _values(digits: str, exponent: int) -> set[float | str]:
    """All readings: with separators of thousands (3,800 is 3800), with a decimal point (3.8)."""
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
