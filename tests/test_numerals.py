"""The numbers in words that notebook 02's encoder-decoder learns to write."""

import itertools
import json

import pytest

from llmnb.handbook import RESOURCES

NUMERALS = json.loads((RESOURCES / "numerals.json").read_text(encoding="utf-8"))


def spelled(number, language):
    parts = NUMERALS[language]
    thousand, hundred = parts["thousands"][number // 1000], parts["hundreds"][number // 100 % 10]
    return " ".join(f"{thousand} {hundred} {parts['endings'][number % 100]}".split())


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (1, "one", "eins"),
        (12, "twelve", "zwölf"),
        (47, "forty seven", "sieben und vierzig"),
        (801, "eight hundred one", "acht hundert eins"),
        (1031, "one thousand thirty one", "ein tausend ein und dreißig"),
        (5116, "five thousand one hundred sixteen", "fünf tausend ein hundert sechzehn"),
    ],
)
def test_a_number_is_spelled_as_in_the_language(number, english, german):
    assert (spelled(number, "en"), spelled(number, "de")) == (english, german)


def test_no_two_numbers_are_spelled_alike():
    texts = [spelled(n, name) for n, name in itertools.product(range(1, 10_000), NUMERALS)]
    assert len(set(texts)) == len(texts)
