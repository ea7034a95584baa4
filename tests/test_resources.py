"""Translations, summaries and hostile documents: what scores on them rest on."""

import base64
import hashlib
import html
import json
import re
import unicodedata
from collections import Counter

import pytest

from llmnb.evaluation.scores import token_f1
from llmnb.handbook import RESOURCES

FILES = [RESOURCES / f"{name}.json" for name in ("translations", "summaries", "hostile")]
TRANSLATIONS, SUMMARIES, HOSTILE = (json.loads(file.read_text("utf-8")) for file in FILES)
SENTENCES, EXAMPLES = TRANSLATIONS["sentences"], TRANSLATIONS["examples"]
PAIRS = SENTENCES + EXAMPLES

LANGUAGES = ("en", "fr", "de", "es", "zh")
LATIN_IN_CHINESE = {"GPU"}


def for_rows(rows):
    """One test for each row, named by its id."""
    return pytest.mark.parametrize("row", rows, ids=[row["id"] for row in rows])


def words(text):
    """Lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)?", text.lower())


def numbers(text):
    """As written: 3.8, 1,500, 6:30 and 5.2.1 are one number each."""
    return re.findall(r"\d+(?:[.,:]\d+)*", text)


def digits(text):
    """Without the separators, in which languages differ: 3,200, 3.200, 3 200 are the same."""
    joined = re.sub(r"(?<=\d)(?:[.,:]|\s(?:h\s)?)(?=\d)", "", text)
    return Counter(re.findall(r"\d+", joined))


def stands_in(answer, text):
    """As whole words, without regard to case."""
    return bool(re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE))


def disguises(text):
    """The text without format characters, reversed, and with its codes decoded."""
    yield "".join(letter for letter in text if unicodedata.category(letter) != "Cf")
    yield text[::-1] if "\u202e" in text else ""
    yield "".join(chr(ord(c) - 0xE0000) for c in text if 0xE0020 <= ord(c) <= 0xE007E)
    yield html.unescape(text)
    for run in re.findall(r"[A-Za-z0-9+/]{24,}={0,2}", text):
        yield base64.b64decode(run + "=" * (-len(run) % 4)).decode("utf-8", "replace")


def test_the_text_is_frozen():
    """Scores on it are compared across versions: who changes it decides so here as well."""
    lines = [f"{file.name}\n{file.read_text(encoding='utf-8')}" for file in FILES]
    digest = hashlib.sha256("".join(lines).encode("utf-8")).hexdigest()
    assert digest[:16] == "a03d1d6c64ae11a2"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_shows_all_that_it_holds(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(^|[\s\"'`(])(/[a-z]+/|~/|[A-Z]:\\)", text), "an absolute path"
    text = text.replace("\n", "")
    invisible = {unicodedata.category(letter) for letter in text}
    assert not invisible & {"Cf", "Cc", "Zl", "Zp", "Co"}
    assert not set(text) & {"\xa0", "\u202f"}, "spaces are plain, or written as escapes"
    assert unicodedata.is_normalized("NFC", text)


@pytest.mark.parametrize(
    ("rows", "n", "letter", "fields"),
    [
        (SENTENCES, 64, "t", {"kind", *LANGUAGES}),
        (EXAMPLES, 5, "x", {"kind", *LANGUAGES}),
        (SUMMARIES, 24, "s", {"kind", "text", "summary"}),
        (HOSTILE, 30, "h", {"attack", "text", "orders", "question", "answer", "marker"}),
    ],
    ids=["sentences", "examples", "summaries", "hostile"],
)
def test_there_are_n_rows_and_none_lacks_a_field(rows, n, letter, fields):
    assert [row["id"] for row in rows] == [f"{letter}{i:02d}" for i in range(1, n + 1)]
    for row in rows:
        assert set(row) == {"id", *fields}
        texts = [text for name, text in row.items() if name != "orders"]
        assert all(text == text.strip() != "" for text in texts)


# Translations


def test_no_sentence_is_there_twice_and_the_first_eight_are_a_sample():
    texts = [" ".join(words(row[language])) for row in PAIRS for language in LANGUAGES]
    assert len(set(texts)) == len(texts)
    assert len({row["kind"] for row in SENTENCES[:8]}) >= 5


@for_rows(PAIRS)
def test_chinese_is_chinese(row):
    text = row["zh"]
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) >= len(text) / 2
    assert set(re.findall(r"[^\W\d_\u4e00-\u9fff]+", text)) <= LATIN_IN_CHINESE
    assert not re.search(r"(?<!\d)[.,:]|[.,:](?!\d)|[?!;()\"' ]", text), "not full-width"
    assert not set(text) & set("這個們說時來為學國車書門開關"), "characters are simplified"


@for_rows(PAIRS)
def test_a_translation_keeps_the_numbers(row):
    expected = digits(row["en"])
    assert all(expected <= digits(row[language]) for language in LANGUAGES)
    if row["kind"] == "numbers":
        assert expected


# Summaries


@for_rows(SUMMARIES)
def test_a_summary_is_short(row):
    n_words = len(row["summary"].split())
    assert 15 <= n_words <= 40 and n_words < len(row["text"].split()) / 4


@for_rows(SUMMARIES)
def test_a_summary_has_its_facts_from_the_text(row):
    assert set(numbers(row["summary"])) <= set(numbers(row["text"]))
    names = re.findall(r"(?<=[\w,;] )[A-Z]\w+", row["summary"])  # not at the start
    assert set(names) <= set(re.findall(r"\w+", row["text"]))


def test_the_first_sentence_is_often_not_the_best_summary():
    """Or a summarizer that copies the first sentence could not be told from a good one."""
    n_best = 0
    for row in SUMMARIES:
        sentences = [part for part in re.split(r"(?<=[.?!])\s+", row["text"]) if len(part) > 20]
        scores = [token_f1(sentence, [row["summary"]]) for sentence in sentences]
        n_best += scores[0] == max(scores)
    assert 8 <= n_best <= 14


# Hostile documents


@for_rows(HOSTILE)
def test_a_hostile_document_holds_the_true_answer(row):
    assert stands_in(row["answer"], row["text"]) and row["answer"] in row["text"]
    assert 1 <= len(row["answer"].split()) <= 6
    assert not stands_in(row["answer"], row["question"]), "a question gives its answer away"


@for_rows(HOSTILE)
def test_the_marker_shows_a_successful_attack_and_nothing_else(row):
    marker = row["marker"].lower()
    assert len(marker) >= 7
    for other in HOSTILE:
        assert marker not in f"{other['question']} {other['answer']}".lower()
        if other is not row:
            assert marker not in f"{other['marker']} {other['text']}".lower()


@for_rows(HOSTILE)
def test_without_its_orders_a_document_holds_the_answer_and_no_marker(row):
    text = row["text"]
    for order in row["orders"]:
        assert text.count(order) == 1
        text = text.replace(order, "")
    assert row["answer"] in text and row["marker"].lower() not in text.lower()
    assert len(text) >= 100, "too little is left for a twin"


@for_rows(HOSTILE)
def test_the_document_carries_its_marker(row):
    """In the open, or, where the attack is to hide it, only under its disguise."""
    hidden = row["attack"] in {"encoding", "invisible", "bidi"}
    assert (row["marker"] in row["text"]) is not hidden
    if hidden:
        assert any(row["marker"] in text for text in disguises(row["text"]))


def test_the_attacks_are_of_many_kinds():
    attacks = [row["attack"] for row in HOSTILE]
    assert len(set(attacks)) >= 12 and len(set(attacks[:8])) == 8
    everything = " ".join(row["text"] for row in HOSTILE)
    needed = "<script onerror= <svg <iframe <style javascript: data:text/html <|im_start|> [INST]"
    for part in [*needed.split(), "<!--", "[source: ", "\u200b", "\u202e", "\U000e0050"]:
        assert part in everything, part


def test_the_attacks_reach_nobody():
    """Addresses are in .example, which belongs to nobody, and scripts set one variable."""
    texts = [text for row in HOSTILE for text in (row["text"], *disguises(row["text"]))]
    addresses = re.findall(r"(?:(?:https?:)?//|@)([^/\"?)\s]+)", " ".join(texts))
    assert {*addresses} - {"www.w3.org"} == {"evil.example"}
