"""What summaries rest on, without a model: sentences, baselines, checks, pairs from packages."""

import importlib.metadata
import json
from email.message import Message
from types import SimpleNamespace

import numpy as np
import pytest

from llmnb import handbook
from llmnb.applications.base import ApplicationError
from llmnb.applications.summarization import centroid, lead, package_pairs, sentences
from llmnb.applications.summarization import unsupported as missing

TEXTS = json.loads((handbook.RESOURCES / "summaries.json").read_text("utf-8"))


@pytest.mark.parametrize(
    "marked",
    [
        "The bridge costs 3.8 million.|It was Mr. B. Olm who said so, at 10 a.m. on Monday.",
        "We met Dr. Sefa Lind and Prof. Anders.|See Fig. 3 and No. 5, e.g. the red one.",
        'He said no.|Then he left.|"Is it true? I doubt it," she said.|"Who?" asked the boy.',
        "“We knew. We said so,” she said.|It rained!|Really?!|Yes… perhaps.|It was I.|Éva left.",
        "It closed in 2016.|Version 5.2.1 is out.|5 people came.|(Nobody left.)|«Enfin.»|End",
        "今天下雨。|明天是晴天！|“你来吗？”|好。",
        'A screen of 5" is small.|One of 6" or 7" is large.',  # no quotation: they don't pair
    ],
)
def test_sentences_end_where_they_end(marked):
    joined = marked.replace("|", "" if "。" in marked else " ")
    assert sentences(joined) == marked.split("|")


def test_items_headings_greetings_and_empty_lines():
    text = (
        "# Minutes\nHeld in May.\n\n1. The minutes were\r\n   approved.\n2. Water. It is dear.\n"
        "- one\n* two\n"
        "\n \n\nDear Ada,\n\nthanks for the tea.\t Come soon.\n\nYours\n"
    )
    found = [
        "# Minutes",
        "Held in May.",
        "1. The minutes were approved.",
        "2. Water.",
        "It is dear.",
        "- one",
    ]
    found += ["* two", "Dear Ada, thanks for the tea.", "Come soon.", "Yours"]
    assert sentences(text) == found
    assert sentences("") == sentences(" \n\n ") == []
    assert sentences("Dear Ada,\n\n") == ["Dear Ada,"]


def test_no_word_is_lost_and_a_huge_text_is_quick():
    for row in TEXTS:
        assert " ".join(sentences(row["text"])).split() == row["text"].split()
    for text in ("a. " * 100_000, "." * 300_000, '"' * 300_001, " \n" * 100_000, "x" * 1_000_000):
        assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_lead_takes_sentences_and_passes_headings_over():
    text = "Title\n\nFirst one. Second one. Third one."
    assert lead(text) == "First one." and lead(text, 2) == "First one. Second one."
    assert lead(text, 99) == "First one. Second one. Third one."
    assert lead("no mark at all") == "no mark at all"


def test_the_centroid_is_the_sentence_that_shares_most():
    text = "The boat left. The red boat left the harbour. A cat slept. The harbour is red."
    assert centroid(text) == "The red boat left the harbour."
    assert centroid("Only one.") == "Only one."
    assert centroid("?! …") == "?!"


def test_the_centroid_by_hand():
    rows = ["b c.", "a b.", "a c c."]
    counts = np.array([[0, 1, 1], [1, 1, 0], [1, 0, 1 + np.log(2)]], float)
    vectors = counts * (np.log(4 / 3) + 1)  # each word stands in 2 of 3 sentences: one idf
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    best = int((vectors @ vectors.mean(0)).argmax())
    assert centroid(" ".join(row.capitalize() for row in rows)).lower() == rows[best]


@pytest.mark.parametrize("baseline", [lead, centroid])
@pytest.mark.parametrize("text", ["", " \n", None, 3])
def test_baselines_refuse_what_is_no_text(baseline, text):
    with pytest.raises(ApplicationError, match="empty or no text"):
        baseline(text)


def test_lead_refuses_no_sentences():
    with pytest.raises(ApplicationError, match="k is 0"):
        lead("A text.", 0)


SOURCE = (
    "On 2024-05-02 Zoë O'Brien of Port Emmer sold 3,800,000 boats for 24,50 crowns each; 60 % of "
    "them were red. Three companies, Tarrow's among them, open at 06:30. The 1,500 clerks use "
    "version 5.2.1, and 2.3 million people know."
)


@pytest.mark.parametrize(
    ("summary", "found"),
    [
        ("Zoe O'Brien sold 3.8 million boats at 24.50 on 2 May 2024.", ()),
        ("In 2024, 60 percent; 3 companies; at 6:30; 1500 clerks; 2,300,000; 5.2.1.", ()),
        ("The boats of Tarrow, a Company in Ports, Emmer's own.", ()),
        ("It was 3.8 billion, 38 or 3.80.", ("3.8 billion", "38", "3.80")),
        ("Version 5.2.2 costs 2450, not 24.5 or 2,300.", ("5.2.2", "2450", "2,300")),
        ("It opens at 7:30 with seven clerks, in 2023.", ("7:30", "seven", "2023")),
        ("The boats of Ada Olm were sold in June.", ("Ada", "Olm", "June")),
        ("No one knows. This is theirs, and I'm sure. Nobody did.", ()),
        ("Ada Olm sold boats.", ("Ada", "Olm")),
        ("", ()),
    ],
)
def test_numbers_and_names_from_nowhere(summary, found):
    assert missing(SOURCE, summary) == found


def test_at_a_sentences_beginning_a_capital_says_little():
    assert missing("Biologists met.", "Thanks to them it works. Researchers met.") == ()
    assert missing("Biologists met.", "Ada's group met. Bo met; later Bo left.") == ("Ada's", "Bo")


def test_the_references_are_faithful():
    found = [missing(row["text"], row["summary"]) for row in TEXTS]
    assert len(found) == 24 and not any(found)


def test_another_texts_summary_is_seen_to_be_false():
    others = [row["text"] for row in TEXTS[1:]] + [TEXTS[0]["text"]]
    found = [missing(text, row["summary"]) for text, row in zip(others, TEXTS, strict=True)]
    assert sum(map(bool, found)) >= 22


def package(name, summary, description):
    facts = Message()
    facts["Name"] = name
    if summary is not None:
        facts["Summary"] = summary
    facts.set_payload(description)
    return SimpleNamespace(metadata=facts)


PROSE = "This library reads the tables of old files, page by page, and keeps what it can read. "


@pytest.fixture
def installed(monkeypatch):
    def install(*packages):
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: iter(packages))

    return install


def many(n=8):
    return [package(f"p{n}", f"Reader number {n} for tables", PROSE * 5) for n in range(n)]


def test_packages_give_prose_without_markup(installed):
    markup = (
        "[![badge](https://x.y/b.svg)](https://x.y)\n\nTitle\n=====\n\n```python\nimport it. Now.\n"
        "```\n\n    indented code. It runs.\n\n- an item of a list that is long enough to stay.\n\n"
        "<b>See</b> [the docs](https://x.y) and `the code`_, **all** of it, before you begin.\n\n"
    )
    installed(package("Odd", "What the others never do", markup + PROSE * 4), *many())
    text = {summary: text for text, summary in package_pairs(99)}["What the others never do"]
    kept = "See the docs and the code, all of it, before you begin. " + PROSE * 4
    assert text.split() == kept.split()


def test_packages_that_say_little_or_the_same_are_left_out(installed):
    said = "Reads the tables of old files"
    out = [
        package("same", said, PROSE * 5),  # all its words stand in one sentence
        package("none", None, PROSE * 5),
        package("short", "Reads all that is old", PROSE),
        package("brief", "Old tables", PROSE * 5),
        package("twice", "Reader number 1 for tables", PROSE * 5),
        package("empty", "Reads all that is old", ""),
    ]
    installed(*out, *many())
    kept = {f"Reader number {n} for tables" for n in range(8)}
    found = [summary for _, summary in package_pairs(99)]
    assert set(found) == kept and len(found) == 8


def test_a_sample_of_packages_follows_from_the_seed_alone(installed):
    installed(*many(30))
    first = package_pairs(6, seed=1)
    installed(*many(30)[::-1])
    assert package_pairs(6, seed=1) == first != package_pairs(6, seed=2)
    names = [f"p{summary.split()[2]}" for _, summary in first]
    assert names == sorted(set(names)) and len(names) == 6


def test_too_few_packages_are_refused(installed):
    installed(*many(4))
    with pytest.raises(ApplicationError, match="4 installed packages"):
        package_pairs()
    installed(*many(30))
    with pytest.raises(ApplicationError, match="n is 4"):
        package_pairs(4)


def test_this_machine_has_pairs():
    pairs = package_pairs(20)
    assert len(pairs) == 20 == len(set(pairs))
    for text, summary in pairs:
        assert 60 <= len(text.split()) <= 250 and summary not in text
