"""Overlap by hand and against sets, a leak that is planted, and verdicts with known p-values."""

import math

import numpy as np
import pytest
from scipy import stats

from llmnb.evaluation.contamination import leak, overlap, verdict


def shares(test, train, n=3):
    return overlap(test, train, n)["share"].tolist()


def test_shares_by_hand():
    # abc bcd of abc bcd cde
    assert shares(["a b c d e"], ["x A b, c d y"]) == [pytest.approx(2 / 3)]
    assert shares(["a b c d e", "e d c b a"], ["c b a d e"]) == [0, pytest.approx(1 / 3)]
    assert shares(["a b c d e"], ["a b", "c d e"]) == [pytest.approx(1 / 3)]  # not across texts
    assert shares(["a b a b a b c"], ["a b a"]) == [pytest.approx(1 / 3)]  # aba bab abc, each once
    assert shares(["你好世界"], ["他说你好世"]) == [0.5]


def test_a_text_shorter_than_n_has_no_share_but_can_be_a_duplicate():
    table = overlap(["a b", "c d", "a b c", ""], ["A  b", "a b c d"], n=3)
    assert table["share"].isna().tolist() == [True, True, False, True]
    assert table["grams"].tolist() == [0, 0, 1, 0]
    assert table["duplicate"].tolist() == [True, False, False, False]
    assert table["overlapping"].tolist() == [True, False, True, False]


def test_a_text_overlaps_from_seven_tenths_on():
    train = ["a b c d e f g"]  # 7 of the 10 words; 6 of the 10
    table = overlap(["a b c d e f g x y z", "a b c d e f w x y z"], train, n=1)
    assert table["share"].tolist() == [0.7, 0.6]
    assert table["overlapping"].tolist() == [True, False] and not table["duplicate"].any()


def memorizer(texts, labels):
    """Knows what it read; says 0 to all else."""
    label_of = dict(zip(texts, labels, strict=True))
    return lambda texts: [label_of.get(text, 0) for text in texts]


TRAIN = {"text": ["x", "y"], "label": [1, 0]}
TEST = {"text": list("abcdefghij"), "label": [0, 1] * 5}


def test_a_leak_by_hand():
    table = leak(memorizer, TRAIN, TEST, [0, 4, 10])
    assert table["k"].tolist() == [0, 0, 4, 4, 4, 10, 10]
    assert table["items"].tolist() == ["all", "clean", "all", "leaked", "clean", "all", "leaked"]
    assert table["n"].tolist() == [10, 10, 10, 4, 6, 10, 10]
    whole, leaked, clean = (table.iloc[row] for row in (2, 3, 4))
    # Unseen items are right where the label is 0: half of all, `before` of the four.
    assert whole["before"] == 0.5 and leaked["before"] * 4 + clean["before"] * 6 == 5
    assert leaked["accuracy"] == 1 and clean["accuracy"] == clean["before"] < 1
    assert whole["accuracy"] == pytest.approx(0.5 + 0.4 * (1 - leaked["before"]))
    assert table["accuracy"][5] == 1 and table["accuracy"][0] == 0.5
    wilson = stats.binomtest(4, 4).proportion_ci(method="wilson")
    assert (leaked["low"], leaked["high"]) == pytest.approx((wilson.low, wilson.high))


def test_what_leaks_is_text_with_label_and_a_larger_leak_holds_the_smaller():
    label_of = dict(zip(TEST["text"], TEST["label"], strict=True))
    fits = []  # the items that each model was trained on

    def fit(texts, labels):
        fits.append(set(zip(texts, labels, strict=True)))
        return lambda texts: np.eye(2)[[label_of[text] for text in texts]]

    table = leak(fit, TRAIN, TEST, [0, 3, 6], seed=1)
    assert [len(items) for items in fits] == [2, 5, 8]
    assert fits[0] == {("x", 1), ("y", 0)} < fits[1] < fits[2] <= fits[0] | set(label_of.items())
    assert {text for text, _ in fits[1]} - {"x", "y"} != set("abc")  # drawn, not the first
    assert table["accuracy"].eq(1).all()  # of probabilities the class is the likeliest
    for seed in (1, 2):
        leak(fit, TRAIN, TEST, [3], seed=seed)
    assert fits[4] == fits[1] != fits[6]


def test_a_verdict_is_fishers():
    flags, right = [1] * 5 + [0] * 20, [1] * 5 + [1] * 8 + [0] * 12
    result = verdict(flags, right)
    # 13 of 25 right: P(5 of the 5 are) = C(13, 5)/C(25, 5)
    assert result.p == pytest.approx(math.comb(13, 5) / math.comb(25, 5))
    assert result.leak and result.overlapping.value == 1 and result.clean.value == 0.4
    assert result.text.startswith("A leak: ") and "5 overlapping" in result.text
    assert "20 clean" in result.text and "p = 0.024" in result.text
    lower = verdict(np.array(flags, bool), 1 - np.array(right))  # a lower score is no leak
    assert not lower.leak and lower.p == 1 and lower.text.startswith("No leak is shown: ")


def test_a_verdict_with_one_group_says_so():
    result = verdict([0, 0], [1, 0])
    assert not result.leak and math.isnan(result.p) and result.overlapping is None
    assert result.text.startswith("No item overlaps") and result.clean.value == 0.5
    result = verdict([1, 1], [1, 0])
    assert result.text.startswith("All items overlap") and result.clean is None


def test_false_alarms_are_as_rare_as_promised():
    draw = np.random.default_rng(0)
    flags = np.arange(200) < 40
    alarms = [verdict(flags, draw.random(200) < 0.7).leak for _ in range(1000)]
    assert 0.01 < np.mean(alarms) < 0.06


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap("text", ["a"]), "test_texts is a list of one text or more"),
        (lambda: overlap(["a"], []), "train_texts is a list of one text or more"),
        (lambda: overlap(["a"], ["b", None]), r"train_texts\[1\] is no text: None"),
        (lambda: overlap(["a"], ["a"], n=0), "n is 0"),
        (lambda: leak(memorizer, TRAIN, TEST, [11]), "11 items can't leak: the test set has 10"),
        (lambda: leak(memorizer, TRAIN, TEST, [-1]), "-1 items can't leak"),
        (lambda: leak(lambda *_: lambda texts: [0], TRAIN, TEST, [1]), r"\(1,\) for 10 texts"),
        (lambda: verdict([1, 0], [1, 2]), "correct holds 2"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
