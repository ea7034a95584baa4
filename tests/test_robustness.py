"""Robustness: each perturbation by hand, and classifiers whose weakness is known."""

import re

import numpy as np
import pytest

from llmnb.evaluation import robustness
from llmnb.evaluation.robustness import TESTS, drops
from llmnb.evaluation.uncertainty import compare

TEXTS = [
    "The film is a delight from start to finish.",
    "I'm sure we don't need another sequel, or do we...",
    "Wonderful acting, and the music was lovely!",
    "A DULL AND EMPTY STORY",
    "这部电影非常好看，我很喜欢。",
    "Это очень хороший фильм, и я рад.",
    "ok",
]
CHINESE = "这部电影非常好看。"


def by_words(texts):
    """Reads the set of words and nothing else: no case, no marks, no order."""
    words = [set(re.findall(r"\w+", text.lower())) for text in texts]
    good = np.array(
        [len(word_set & {"delight", "wonderful", "lovely", "好看"}) for word_set in words]
    )
    return np.stack([0.9 - 0.3 * np.minimum(good, 2), 0.1 + 0.3 * np.minimum(good, 2)], axis=1)


def by_case(texts):
    """Reads case alone."""
    shouted = np.array([text == text.upper() for text in texts], dtype=float)
    return np.stack([shouted, 1 - shouted], axis=1)


CASES = [
    ("casing", "The film is good", "THE FILM IS GOOD"),
    ("casing", "A DULL STORY", "a dull story"),
    ("casing", "Это фильм", "ЭТО ФИЛЬМ"),
    ("casing", CHINESE, CHINESE),
    ("punctuation", "Good, at 3.5 stars!", "Good at 3.5 stars"),
    ("punctuation", "很好,我喜欢。", "很好,我喜欢"),
    ("punctuation", "好看,很好！真的？", "好看,很好 真的"),
    ("punctuation", "هل الفيلم جيد؟", "هل الفيلم جيد"),
    ("punctuation", "फिल्म अच्छी है।", "फिल्म अच्छी है"),
    ("punctuation", "no marks ", "no marks "),
    ("punctuation", "?!", "?!"),
    ("first_half", "one two three four five", "one two three"),
    ("first_half", "one  two\nthree four", "one  two"),
    ("first_half", "one two three", "one two three"),
    ("first_half", CHINESE, CHINESE),
    ("expansion", "I don't think we're late", "I do not think we are late"),
    ("expansion", "Won’t work. I'm sure you’ve seen", "Will not work. I am sure you have seen"),
    ("expansion", "IT CAN'T BE, I'M SURE", "IT CANNOT BE, I AM SURE"),
    ("expansion", "Didn't you see? Don’t the others?", "Didn't you see? Don’t the others?"),
    (
        "expansion",
        "Why don't people like it? I can't say.",
        "Why don't people like it? I cannot say.",
    ),
    ("expansion", "It's John's, I ain't sure", "It's John's, I ain't sure"),
    ("expansion", "“Quoted” and ’plain’ they'll stay", "“Quoted” and ’plain’ they will stay"),
    ("negation", "The film is great.", "The film is not great."),
    ("negation", "It’s a joy", "It’s not a joy"),
    ("negation", "I WOULD RECOMMEND IT!", "I WOULD NOT RECOMMEND IT!"),
    ("negation", "The film is not great.", None),
    ("negation", "It isn't great, but it is short", None),
    ("negation", "The plot is thin and the acting is great.", None),
    ("negation", "The film is great; I loved it", None),
    ("negation", "The film is great and I loved it", None),
    ("negation", "It is great. Go and see it.", None),
    ("negation", "Is it great?", None),
    ("negation", "You think it is great?", None),
    ("negation", "What a film this was", None),
    ("negation", "The kind of film that is great", None),
    ("negation", "A film which was great", None),
    ("negation", "It is fine but slow", None),
    ("negation", "The film's ending surprised me", None),
    ("negation", "This is only a start", None),
    ("negation", "这部电影 is 好看", None),
    ("distractor_front", CHINESE, None),
    ("distractor_back", "Это хороший фильм", None),
    ("distractor_back", "...", None),
    ("typos", CHINESE, None),
    ("typos", "an ox is a big pet", None),
    ("typos", "Straße übers", None),
]


@pytest.mark.parametrize(("test", "text", "expected"), CASES)
def test_perturbations_by_hand(test, text, expected):
    assert TESTS[test](text, 0) == (text if expected is None else expected)


def test_a_typo_is_a_swap_or_a_neighbour_on_the_keyboard():
    text = "Perfect"
    swaps = {text[:i] + text[i + 1] + text[i] + text[i + 2 :] for i in range(1, 5)}
    beside = {"e": "wr", "r": "et", "f": "dg", "c": "xv"}
    keys = {text[:i] + key + text[i + 1 :] for i in range(1, 5) for key in beside[text[i]]}
    assert {TESTS["typos"](text, seed) for seed in range(300)} == swaps | keys
    assert {TESTS["typos"]("AAAA", seed) for seed in range(20)} == {"ASAA"}


@pytest.mark.parametrize(("words", "expected"), [(1, 1), (10, 1), (11, 2), (40, 4)])
def test_one_word_in_ten_gets_a_typo(words, expected):
    text = " ".join(["delight"] * words)
    changed = TESTS["typos"](text, 3).split()
    assert sum(word != "delight" for word in changed) == expected and len(changed) == words


def test_distractors_stand_around_the_text():
    text = "A fine film, très beau."
    for seed in range(10):
        front, back = TESTS["distractor_front"](text, seed), TESTS["distractor_back"](text, seed)
        assert front.endswith(" " + text) and front[: -len(text) - 1] in robustness.DISTRACTORS
        assert back.startswith(text + " ") and back[len(text) + 1 :] in robustness.DISTRACTORS
    assert len({TESTS["distractor_back"](text, seed) for seed in range(40)}) == 4
    assert len({TESTS["distractor_front"](f"Film {i}", 0)[:8] for i in range(40)}) == 4


@pytest.mark.parametrize("test", TESTS)
def test_the_same_seed_gives_the_same_text_and_others_beside_it_do_not_matter(test):
    batches = []

    def recorded(texts):
        batches.append(texts)
        return by_words(texts)

    texts = [*TEXTS[:-1], "It is fine and we're sure."]
    drops(recorded, texts, [0] * 7, [test], seed=5)
    alone = [TESTS[test](text, 5) for text in reversed(texts)][::-1]
    changed = [new for old, new in zip(texts, alone, strict=True) if old != new]
    assert batches == [texts, changed]
    assert all(TESTS[test](text, 5) == text for text in ("", " ", "1 + 2"))


def test_who_reads_only_words_survives_case_marks_and_distractors():
    labels = by_words(TEXTS).argmax(axis=1)
    table = drops(by_words, TEXTS, labels).set_index("test")
    assert list(table.index) == list(TESTS)
    same = table.loc[["casing", "punctuation", "distractor_front", "distractor_back"]]
    assert same[["changed", "difference"]].eq(0).all(axis=None)
    assert same[["p", "before", "after"]].eq(1).all(axis=None)
    assert same["items"].tolist() == [6, 5, 5, 5] and same["skipped"].tolist() == [1, 2, 2, 2]
    assert same["changed_high"]["casing"] == pytest.approx(0.390334, abs=1e-5)  # Wilson, 0 of 6


def test_who_reads_only_case_is_caught_by_the_casing_test():
    texts = [f"Film number {i} is good." for i in range(30)]
    table = drops(by_case, texts, [1] * 30, ["casing", "punctuation", "negation"])
    table = table.set_index("test")
    row = table.loc["casing"]
    assert row[["before", "after", "difference", "changed"]].tolist() == [1, 0, -1, 1]
    expected = compare([0] * 30, [1] * 30)
    interval = [expected.difference.low, expected.difference.high]
    assert row[["low", "high", "p"]].tolist() == [*interval, expected.p]
    assert table["p_holm"]["casing"] == 2 * expected.p  # two tests have an accuracy after
    assert table["changed"]["punctuation"] == 0 and table["p_holm"]["punctuation"] == 1


def test_negation_counts_who_moves_against():
    texts = ["It is good", "It is bad", "It is new", "It is good and new"]

    def model(texts):
        """ "not" is a bad word, wherever it stands: the classes are bad, good, neither."""
        right = np.array([0.4 * ("good" in text) - 0.4 * ("bad" in text) for text in texts])
        right = right - np.array([0.3 * (" not " in text) for text in texts]) + 0.45
        return np.stack([0.9 - right.clip(0, 0.9), right.clip(0, 0.9), np.full(len(texts), 0.1)], 1)

    table = drops(model, texts, [1, 0, 1, 1], ["negation"]).loc[0]
    assert table["kind"] == "direction" and table["items"] == 4
    # good falls from .85 to .55, twice; bad rises; new, a draw that class 0 wins, rises
    assert table["moved"] == 0.5 and table["changed"] == 0
    assert np.isnan(table["after"]) and np.isnan(table["p"]) and table["before"] == 0.75
    assert table["moved_low"] == pytest.approx(0.150036, abs=1e-5)  # Wilson, 2 of 4

    def deaf(texts):  # but for what single precision rounds away
        tiny = np.array([1e-8 * (" not " in text) for text in texts])
        return np.stack([0.5 - tiny, 0.5 + tiny], axis=1)

    deaf = drops(deaf, texts, [0] * 4, ["negation"])
    assert deaf["moved"][0] == 0


def test_several_classes_and_a_partial_drop():
    def third(texts):
        value = np.array([2 if "!" in text else 1 if "." in text else 0 for text in texts])
        return np.eye(3)[value] * 0.7 + 0.1

    texts, labels = ["e", "a!", "b!", "c.", "d."], [0, 2, 2, 1, 0]
    row = drops(third, texts, labels, ["punctuation"]).loc[0]
    assert row[["items", "skipped", "before", "after"]].tolist() == [4, 1, 0.75, 0.25]
    assert row[["difference", "changed"]].tolist() == [-0.5, 1]


def test_what_is_not_applicable_leaves_the_numbers_empty():
    table = drops(lambda texts: np.full((len(texts), 2), 0.5), [CHINESE, "好"], [0, 1])
    assert table["items"].tolist() == [name == "punctuation" for name in TESTS]
    assert table["skipped"].tolist() == [2 - (name == "punctuation") for name in TESTS]
    assert table.drop(columns=["test", "kind", "items", "skipped"]).isna().all(axis=None)


def even(texts):
    return np.full((len(texts), 2), 0.5)


def one_more_class_for_capitals(texts):
    return np.eye(2 + texts[0].isupper())[[0] * len(texts)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((even, [], []), "list of one text or more"),
        ((even, "one text", []), "list of one text or more"),
        ((even, ["a", None], [0, 0]), r"texts\[1\] is no text: None"),
        ((even, ["a", "b"], [0, 0], ["typo"]), r"no test 'typo'\. Did you mean 'typos'"),
        ((even, ["a", "b"], [0, 0, 1]), r"2 items, but the labels have shape \(3,\)"),
        ((lambda texts: [[0.5, 0.5]], ["a", "b"], [0, 0]), r"2 texts went in, and .* \(1, 2\)"),
        ((one_more_class_for_capitals, ["ab", "cd"], [0, 0], ["casing"]), "2 classes became 3"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        drops(*arguments)
