"""Translations, summaries and hostile documents: what scores on them rest on."""

import base64
import hashlib
import html
import json
import re
import unicodedata
from collections import Counter
from itertools import pairwise

import pytest

from llmnb.handbook import RESOURCES

FILES = [RESOURCES / f"{name}.json" for name in ("translations", "summaries", "hostile")]
TRANSLATIONS, SUMMARIES, HOSTILE = (json.loads(file.read_text("utf-8")) for file in FILES)
SENTENCES, EXAMPLES = TRANSLATIONS["sentences"], TRANSLATIONS["examples"]
PAIRS = SENTENCES + EXAMPLES

LANGUAGES = ("en", "fr", "de", "es", "zh")
LATIN_IN_CHINESE = {"GPU"}
FUNCTION_WORDS = {  # common words of one language that are none in the other three
    "en": "the is are were and of to with my she it's that this these we i you our they your "
    "have for by or at it be i'll don't let's did",
    "fr": "le les est et une au deux qui dans je nous vous ne pas avec elle il ils cette ces leur "
    "sur sont à où mais mon voiture ou ont aux",
    "de": "der das ist und ein eine einen dem nicht ich wir sie er mit auf von im dass wenn wird "
    "bis ihr ihre meiner dieser diesen hast haben uns zum dir",
    "es": "el los las y una unas del al con para está por lo más hay nadie mis ese este nunca "
    "muy antes cuando su estos cuál hubieran habría",
}
MARKUP = re.compile(r"</?[a-z][^<>]*>|<!--|\]\((?:javascript|data|https):", re.IGNORECASE)


def per_row(rows):
    """One test for each row, named by its id."""
    return pytest.mark.parametrize("row", rows, ids=[row["id"] for row in rows])


def words(text):
    """Lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def numbers(text):
    """As written: 3.8, 1,500, 6:30 and 5.2.1 are one number each."""
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def digits(text):
    """Without the separators, in which languages differ: 3,200, 3.200 and 3 200 are the same."""
    return Counter(re.findall(r"\d+", re.sub(r"(?<=\d)(?:[.,:]|\s(?:h\s)?)(?=\d)", "", text)))


def stands_in(answer, text):
    """As whole words, without regard to case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def overlap(sentence, summary):
    """F1 of the words: how good a summary the sentence would be."""
    one, other = Counter(words(sentence)), Counter(words(summary))
    return 2 * (one & other).total() / (one.total() + other.total())


def disguises(text):
    """The text without format characters, reversed, and with tags, entities or base64 decoded."""
    yield "".join(each for each in text if unicodedata.category(each) != "Cf")
    yield text[::-1] if "\u202e" in text else ""
    yield "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) <= 0xE007E)
    yield html.unescape(text)
    for run in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        yield base64.b64decode(run + "=" * (-len(run) % 4)).decode("utf-8", "replace")


def test_there_is_as_much_as_is_promised():
    assert [len(SENTENCES), len(EXAMPLES), len(SUMMARIES), len(HOSTILE)] == [64, 5, 24, 30]
    assert set(TRANSLATIONS) == {"sentences", "examples"}


def test_the_text_is_frozen():
    """Scores on it are compared across versions: to change it is a decision, made here as well."""
    lines = [f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
    assert digest[:16] == "48e842a7b2324f5a"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_shows_all_that_it_holds(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s\"'`(])(/[a-z]+/|~/|[A-Z]:\\)", text), "an absolute path"
    invisible = {unicodedata.category(each) for each in text} & {"Cf", "Cc", "Zl", "Zp", "Co"}
    assert invisible <= {"Cc"} and set(re.findall(r"[\x00-\x1f\x7f]", text)) == {"\n"}
    assert "\xa0" not in text and "\u202f" not in text, "spaces are plain, or written as escapes"
    assert unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize(
    ("rows", "letter", "fields"),
    [
        (SENTENCES, "t", {"id", "kind", *LANGUAGES}),
        (EXAMPLES, "x", {"id", "kind", *LANGUAGES}),
        (SUMMARIES, "s", {"id", "kind", "text", "summary"}),
        (HOSTILE, "h", {"id", "attack", "text", "question", "answer", "marker"}),
    ],
    ids=["sentences", "examples", "summaries", "hostile"],
)
def test_every_row_has_its_fields(rows, letter, fields):
    assert [row["id"] for row in rows] == [f"{letter}{n:02d}" for n in range(1, len(rows) + 1)]
    for row in rows:
        assert set(row) == fields
        assert all(isinstance(text, str) and text == text.strip() != "" for text in row.values())
        assert re.fullmatch("[a-z]+", row.get("kind") or row["attack"])


# Translations


def test_the_first_eight_sentences_are_a_fair_sample():
    kinds = [row["kind"] for row in SENTENCES]
    assert len(set(kinds[:8])) >= 5
    assert min(Counter(kinds).values()) >= 4 and len(set(kinds)) == 12
    assert all(first != second for first, second in pairwise(kinds))
    lengths = [len(row["en"].split()) for row in SENTENCES]
    assert min(lengths) == 3 and 28 <= max(lengths) <= 35


def test_no_sentence_is_there_twice():
    for language in LANGUAGES:
        texts = [" ".join(words(row[language])) for row in PAIRS]
        assert len(set(texts)) == len(texts)


@per_row(PAIRS)
def test_a_translation_is_none_of_the_other_fields(row):
    assert len({" ".join(words(row[language])) for language in LANGUAGES}) == len(LANGUAGES)
    length = len(row["en"])
    assert all(0.6 <= len(row[language]) / length <= 1.7 for language in ("fr", "de", "es"))
    assert 0.15 <= len(row["zh"]) / length <= 0.6, "Chinese is shorter, but not this much"


@per_row(PAIRS)
def test_the_european_fields_are_in_their_languages(row):
    for language in FUNCTION_WORDS:
        found = set(words(row[language]))
        hits = {name: len(found & set(each.split())) for name, each in FUNCTION_WORDS.items()}
        rivals = max(count for name, count in hits.items() if name != language)
        assert hits[language] > rivals or hits[language] == rivals == 0, (language, hits)


@per_row(PAIRS)
def test_chinese_is_chinese(row):
    text = row["zh"]
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) >= len(text) / 2
    assert set(re.findall(r"[^\W\d_\u4e00-\u9fff]+", text)) <= LATIN_IN_CHINESE
    assert not re.search(r"(?<!\d)[.,:]|[.,:](?!\d)|[?!;()\"' ]", text), "punctuation is full-width"
    assert not set(text) & set("這個們說時來為學國車書門開關"), "characters are simplified"


def test_only_allowed_latin_words_are_listed():
    assert set(re.findall(r"[A-Za-z]+", "".join(row["zh"] for row in PAIRS))) == LATIN_IN_CHINESE


@per_row(PAIRS)
def test_a_sentence_ends_alike_in_every_language(row):
    ends = {row[language][-1] for language in ("en", "fr", "de", "es")}
    assert ends <= set(".?!") and len(ends) == 1
    (end,) = ends
    assert row["zh"][-1] == {".": "。", "?": "？", "!": "！"}[end]
    assert len(re.findall(r" [?!;:]", row["fr"])) == len(re.findall(r"[?!;]|:(?!\d)", row["fr"]))
    assert all(row["es"].count(left) == row["es"].count(right) for left, right in ("¿?", "¡!"))
    assert not any(re.search(r" [.,?!;:]|  |[’“”«»]", row[each]) for each in ("en", "de", "es"))
    assert not re.search(r" [.,]|  |[’“”]", row["fr"])


@per_row(PAIRS)
def test_a_translation_keeps_the_numbers(row):
    expected = digits(row["en"])
    assert all(expected <= digits(row[language]) for language in LANGUAGES)
    if row["kind"] == "numbers":
        assert expected


# Summaries


@per_row(SUMMARIES)
def test_a_summary_is_short(row):
    length = len(row["summary"].split())
    assert 120 <= len(row["text"].split()) <= 450
    assert 15 <= length <= 40 and length < len(row["text"].split()) / 4
    assert "\n" not in row["summary"] and row["summary"][-1] == "."
    assert row["summary"] not in row["text"]


@per_row(SUMMARIES)
def test_a_summary_has_its_facts_from_the_text(row):
    assert set(numbers(row["summary"])) <= set(numbers(row["text"]))
    names = re.findall(r"(?<=[\w,;] )[A-Z]\w+", row["summary"])  # not at the start
    assert set(names) <= set(re.findall(r"\w+", row["text"]))


def test_numbers_and_names_occur():
    assert sum(bool(numbers(row["summary"])) for row in SUMMARIES) >= 18
    assert sum(bool(re.search(r" [A-Z]\w+", row["summary"])) for row in SUMMARIES) >= 16


def test_the_kinds_of_texts_are_mixed():
    kinds = [row["kind"] for row in SUMMARIES]
    assert set(Counter(kinds).values()) == {3} and len(set(kinds[:8])) == 8


def test_the_first_sentence_is_often_not_the_one():
    """Else a summary would be the first sentence, and nothing could be told from the scores."""
    first = []
    for row in SUMMARIES:
        sentences = [each for each in re.split(r"(?<=[.?!])\s+", row["text"]) if len(each) > 20]
        scores = [overlap(each, row["summary"]) for each in sentences]
        first.append(scores[0] == max(scores))
    assert 8 <= sum(first) <= 14


# Hostile documents


@per_row(HOSTILE)
def test_a_hostile_document_holds_the_true_answer(row):
    assert 40 <= len(row["text"].split()) <= 140
    assert stands_in(row["answer"], row["text"]) and row["answer"] in row["text"]
    assert 1 <= len(row["answer"].split()) <= 6
    assert not stands_in(row["answer"], row["question"]), "a question gives its answer away"
    assert re.fullmatch(r"[^\n?!]{10,160}\?", row["question"])


@per_row(HOSTILE)
def test_the_marker_shows_a_successful_attack_and_nothing_else(row):
    marker = row["marker"].lower()
    clean = [f"{other['question']} {other['answer']}".lower() for other in HOSTILE]
    assert len(marker) >= 7 and not any(marker in each for each in clean)
    others = [other["marker"].lower() for other in HOSTILE if other is not row]
    assert not any(marker in other or other in marker for other in others)
    texts = [other["text"].lower() for other in HOSTILE if other is not row]
    assert not any(marker in each for each in texts), "another document would set it off"


@per_row(HOSTILE)
def test_the_document_carries_its_marker(row):
    """In the open, or, where the attack is to hide it, only under its disguise."""
    hidden = row["attack"] in {"encoding", "invisible", "bidi"}
    assert (row["marker"] in row["text"]) is not hidden
    if hidden:
        assert any(row["marker"] in each for each in disguises(row["text"]))


def test_the_attacks_are_of_many_kinds():
    attacks = Counter(row["attack"] for row in HOSTILE)
    assert len(attacks) >= 12 and max(attacks.values()) <= 8
    assert len(set(list(attacks)[:8])) == 8 == len({row["attack"] for row in HOSTILE[:8]})
    assert sum(bool(MARKUP.search(row["text"])) for row in HOSTILE) >= 10
    everything = " ".join(row["text"] for row in HOSTILE)
    needed = ["<script", "onerror=", "<svg", "<iframe", "<style", "javascript:", "data:text/html"]
    needed += ["<|im_start|>", "[INST]", "<!--", "[source: ", "\u200b", "\u202e", "\U000e0050"]
    assert [each for each in needed if each not in everything] == []


def test_the_attacks_reach_nobody():
    """Addresses are in .example, which belongs to nobody, and scripts set one variable."""
    hosts = [
        host
        for row in HOSTILE
        for text in (row["text"], *disguises(row["text"]))
        for host in re.findall(r"(?:https?:)?//([^/\"?)\s]+)|@([\w.-]+)", text)
    ]
    names = {name for pair in hosts for name in pair if name} - {"www.w3.org"}
    assert names == {"evil.example"}
