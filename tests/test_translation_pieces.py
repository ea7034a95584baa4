"""A text is cut into sentences, and what stands between them stays as it is."""

import json
import textwrap

import pytest

from llmnb.applications.translation import pieces, problems
from llmnb.handbook import RESOURCES

SENTENCES = json.loads((RESOURCES / "translations.json").read_text("utf-8"))["sentences"]

TEXTS = {
    "One. Two! Three? Four": [("", "One."), (" ", "Two!"), (" ", "Three?"), (" ", "Four")],
    'Dr. Hall met J. Vance. She said "Go."': [
        ("", "Dr. Hall met J. Vance."),
        (" ", 'She said "Go."'),
    ],
    "\n 1. One\r\n\u20282. Two\u2029": [("\n 1. ", "One"), ("\n\n2. ", "Two")],
    "Please buy:\n\neggs\nmilk and\n  - [ ] tea": [
        ("", "Please buy:"), ("\n\n", "eggs"), ("\n", "milk and"), ("\n  - [ ] ", "tea"),
    ],
    "Run:\n```sh\nls {a\n```\nNow stop.": [("", "Run:"), ("\n```sh\nls {a\n```\n", "Now stop.")],
    "Stop.\n~~~\n```\n~~~": [("", "Stop."), ("\n~~~\n```\n~~~", "")],
    "Summary\n~~~~~~~\nIt left.": [("", "Summary"), ("\n", "~~~~~~~"), ("\n", "It left.")],
    "```ls``` runs.": [("", "```ls``` runs.")],
    "Dish\tPrice  now": [("", "Dish\tPrice now")],
    "The landlord has to be told about every re-\npair.": [
        ("", "The landlord has to be told about every repair."),
    ],
    "* * *\n> # Why?": [("* * ", "*"), ("\n> # ", "Why?")],
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_is_split_into_sentences_and_gaps(text):
    assert pieces(text) == TEXTS[text]


@pytest.mark.parametrize(
    "part",
    [
        "{n, plural, one {# day of {m}} other {# days}}", "${a({b})}", "<%= name %>", "[[Home]]",
        "<|im_end|>", "`x = 1`", "\\n", "\\textbf", "|", "**", "\t", "#{name}",
    ],
)  # fmt: skip
def test_code_and_placeholders_of_many_kinds_stay(part):
    translation = "Les jours sont longs"
    assert f"missing: {part}" in problems(f"The days {part} are long", translation, "fr")
    assert problems(f"The days {part} are long", f"Les {part} jours sont longs", "fr") == ()


def test_lines_as_long_as_those_of_wrapped_prose_are_joined():
    text = " ".join(row["en"] for row in SENTENCES[:12]).replace("-", " ")
    for width in range(40, 100):
        assert pieces(textwrap.fill(text, width)) == pieces(text), width
    item = "- a coat, because the wind is cold on the deck,\n  even in\n- food"
    assert pieces(item)[1:] == [("\n- ", "food")]


@pytest.mark.parametrize(
    "text",
    [
        "eggs\nmilk\nbread\nbutter",
        "name: Blue lamp\nprice: 30 euros\ncolour: dark blue",
        "bring a warm coat and a large umbrella, please\nthe dog\nyour brother and his wife\ntea",
        "the ferry to the islands leaves at seven in the\nMorning",
        "my love is like the ferry in the light\nand leaves\nbefore the captain and his old dog",
    ],
)
def test_other_lines_stay_lines(text):
    assert pieces(text) == [("\n" * (n > 0), line) for n, line in enumerate(text.split("\n"))]


def test_one_sentence_stays_one_unless_it_is_long():
    assert all(pieces(row["en"]) == [("", row["en"])] for row in SENTENCES)
    parts = pieces("many words " * 300)
    assert len(parts) > 5 and all(len(part) <= 400 for _, part in parts)
    assert " ".join(part for _, part in parts) == "many words " * 299 + "many words"
    assert "".join(part for _, part in pieces("x" * 1001)) == "x" * 1001
