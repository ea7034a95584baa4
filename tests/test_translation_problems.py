"""Wrong translations are seen, right ones left alone; a text is cut into sentences and gaps."""

import json
import time

import pytest

from llmnb.applications.translation import LANGUAGES, language, pieces, problems
from llmnb.handbook import RESOURCES

TABLE = json.loads((RESOURCES / "translations.json").read_text("utf-8"))
SENTENCES, EXAMPLES = TABLE["sentences"], TABLE["examples"]
WIRE = "Don't touch that wire!"


def test_the_language_of_320_known_sentences():
    names = ("en", *LANGUAGES)
    wrong = [row[name] for row in SENTENCES for name in names if language(row[name]) != name]
    assert len(wrong) <= 4, wrong
    assert not any(
        language(text) for text in wrong
    )  # then it says nothing, rather than a wrong one


def test_the_language_of_other_texts():
    assert language("Поезд отправляется завтра утром.") == "?"
    assert language("駅はどこですか。電車は明日の朝に出ます。") != "fr"
    assert [language(text) for text in ("", "12.5 %", "Lyon", "…", "\u200b\ud800")] == [""] * 5
    assert language("该模型用GPU训练") == "zh"


@pytest.mark.parametrize("target", LANGUAGES)
def test_a_reference_translation_is_never_blamed(target):
    blamed = {row["id"]: problems(row["en"], row[target], target) for row in SENTENCES + EXAMPLES}
    assert {name: found for name, found in blamed.items() if found} == {}


@pytest.mark.parametrize("target", LANGUAGES)
def test_a_copy_and_another_language_are_always_blamed(target):
    for row in SENTENCES:
        assert "copied" in " ".join(problems(row["en"], row["en"], target)), row["id"]
    others = [name for name in LANGUAGES if name != target]
    found = [
        "doesn't look like" in " ".join(problems(row["en"], row[other], target))
        for row in SENTENCES
        for other in others
    ]
    assert sum(found) / len(found) > 0.97


PROBLEMS = [
    ("Is dinner ready?", "", "fr", ["nothing"]),
    ("Is dinner ready?", " \n\u3000", "zh", ["nothing"]),
    ("Teodora Vance", "Teodora Vance", "fr", []),
    ("Hotel", "Hotel", "de", []),
    ("Hello, Lyon.", "你好，里昂。", "zh", []),
    ("I have never eaten it.", "He have never eaten it.", "es", ["copied", "Spanish"]),
    (WIRE, "No, " * 25, "es", ["repeats", "characters"]),
    (
        "To save energy, the sensor measures the temperature once a day.",
        "Um Energie zu sparen, misst die Sensor-Sensor-Sensor-Sensor-Sensor-Sensor-Sensor.",
        "de",
        ["repeats"],
    ),
    ("He let the cat out.", "他放了猫出去之前，放了猫出去，放了猫出去。", "zh", ["repeats"]),
    ("no no no no no no no", "non non non non non non non", "fr", []),  # as the source does
    ("We regret to inform you that nobody was chosen.", "Non.", "fr", ["characters"]),
    ("The train leaves at 7:45 from platform 3.", "Le train part à 7 h 45.", "fr", ["missing: 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text", "target", "wanted"), PROBLEMS)
def test_what_is_wrong_is_named(source, text, target, wanted):
    found = problems(source, text, target)
    assert len(found) == len(wanted), found
    assert all(word in each for word, each in zip(wanted, found, strict=True))


SAME = [
    ("24.50", "24,50"),
    ("24.50", "24,5"),
    ("3,200", "3 200"),
    ("3,200", "3\u202f200"),
    ("3,200", "3.200"),
    ("3,200", "3200"),
    ("3,200", "3’200"),
    ("1,234,567.89", "1.234.567,89"),
    ("1,234,567.89", "1 234 567,89"),
    ("1.5", "1,5"),
    ("0.125", "0,125"),
    ("7:45", "7 h 45"),
    ("12", "１２"),
    ("40", "40%"),
    ("10.0", "10"),
    ("100", "100"),
]


OTHER = [
    ("24.50", "2450"),
    ("1.5", "15"),
    ("3,200", "32"),
    ("12", "120"),
    ("2019", "19"),
    ("100", "1"),
    ("7", ""),
]


@pytest.mark.parametrize(("number", "written"), SAME + OTHER)
def test_a_number_in_another_spelling_is_the_same_one(number, written):
    found = problems(f"It was {number} then, I think.", f"C'était {written}, je crois bien.", "fr")
    assert bool(found) == ((number, written) in OTHER), found


def test_huge_and_odd_texts_are_judged_in_no_time():
    start = time.perf_counter()
    for text in ("a" * 200_000, "1 000" * 40_000, "1,1." * 50_000, " ." * 50_000, "\ud800" * 9999):
        problems(text, text, "fr")
        problems(WIRE, text, "zh")
        pieces(text)
    pieces(" " * 500_000 + "\n" * 100_000 + "a\n" * 20_000)
    assert time.perf_counter() - start < 3


# A text in pieces

TEXTS = {
    "One. Two! Three? Four": [("", "One."), (" ", "Two!"), (" ", "Three?"), (" ", "Four")],
    "Dr. Hall met Mr. Okafor. J. Vance left.": [
        ("", "Dr. Hall met Mr. Okafor."),
        (" ", "J. Vance left."),
    ],
    'He said "Go." She went.': [("", 'He said "Go."'), (" ", "She went.")],
    "It costs 24.50 euros, e.g. in Lyon.": [("", "It costs 24.50 euros, e.g. in Lyon.")],
    "A title\n\nA line that\nwas wrapped.\nAnother.": [
        ("", "A title"),
        ("\n\n", "A line that was wrapped."),
        ("\n", "Another."),
    ],
    "\n 1. One\r\n\u20282. Two\u2029": [("\n", "1."), (" ", "One"), ("\n\n", "2."), (" ", "Two")],
    "wrapped\nonce\nand again. Then\nnot": [("", "wrapped once and again."), (" ", "Then not")],
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_split_into_sentences_and_gaps(text):
    assert pieces(text) == TEXTS[text]


def test_a_long_sentence_is_cut_between_words_and_nothing_is_lost():
    found = pieces("many words " * 300)
    assert len(found) > 5 and all(len(part) <= 400 for _, part in found)
    assert " ".join(part for _, part in found) == "many words " * 299 + "many words"
    assert "".join(part for _, part in pieces("x" * 1001)) == "x" * 1001


@pytest.mark.parametrize("row", SENTENCES[::7], ids=lambda row: row["id"])
def test_one_sentence_stays_one(row):
    assert pieces(row["en"]) == [("", row["en"])]
