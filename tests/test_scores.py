"""Metrics against hand-worked cases and second formulations; their classes as evaluate.Metric."""

import math
import socket

import evaluate
import numpy as np
import pytest
import sacrebleu

from llmnb.evaluation import scores

CLASSES = {"predictions": ["a", "b", "b", "c"], "references": ["a", "b", "c", "c"]}
PREDICTIONS = ["the cat sat on the mat", "a dog", "he reads an old book"]
REFERENCES = ["the cat is on the mat", ["a dog", "the dog"], ["he read it", "she reads books"]]
CLASS_FUNCTIONS = [scores.accuracy, scores.precision_recall_f1, scores.matthews]
TEXT_FUNCTIONS = [scores.bleu, scores.chrf, scores.rouge]
every_class = pytest.mark.parametrize(
    "kind", [scores.Accuracy, scores.PrecisionRecallF1, scores.Matthews]
)


@pytest.fixture(autouse=True)
def cache_of_each_test(cache):
    """evaluate makes a folder in the cache."""


@every_class
def test_batches_give_the_same_as_all_at_once(kind):
    metric = kind()
    at_once = metric.compute(**CLASSES)
    for part in (slice(1), slice(1, None)):
        metric.add_batch(**{name: np.array(values[part]) for name, values in CLASSES.items()})
    assert metric.compute() == at_once


@every_class
def test_a_refused_batch_leaves_no_trace(kind):
    metric = kind()
    expected = metric.compute(**CLASSES)
    for predictions, message in (
        (["a", "b", "b", math.nan], "never match"),
        (["a"], "inconsistent numbers"),
        (None, "not None"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=predictions, references=CLASSES["references"])
    with pytest.raises(ValueError, match="no items to score"):
        metric.compute(predictions=[], references=[])
    assert metric.compute(**CLASSES) == expected


@pytest.mark.filterwarnings("error")
def test_one_item_is_enough():
    for function in CLASS_FUNCTIONS:
        function(["a"], ["a"])
    for function in TEXT_FUNCTIONS:
        function(["a text"], ["a text"])


def test_metrics_combine():
    metrics = [scores.Accuracy(), scores.PrecisionRecallF1(), scores.Matthews()]
    combined = evaluate.combine(metrics)
    expected = scores.precision_recall_f1(**CLASSES) | {
        "accuracy": 0.75,
        "matthews": scores.matthews(**CLASSES),
    }
    assert combined.compute(**CLASSES) == expected
    combined.add_batch(**CLASSES)
    assert combined.compute() == expected
    assert len({metric.name for metric in metrics}) == 3


def test_metrics_of_text_use_no_network(monkeypatch):
    def refuse(*args, **options):
        raise OSError("something used the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for tokenize in scores.BLEU_TOKENIZERS:
        scores.bleu(["cats running"], ["cats ran"], tokenize)
    scores.chrf(["cats running"], ["cats ran"])
    scores.rouge(["cats running"], ["cats ran"])


def test_macro_averages_by_hand():
    # a: 1 right of 1 and 1; b: 1 right of 2 predicted, 1 there; c: 1 right of 1 predicted, 2 there
    expected = {"precision": 2.5 / 3, "recall": 2.5 / 3, "f1": (1 + 2 / 3 + 2 / 3) / 3}
    assert scores.precision_recall_f1(**CLASSES) == pytest.approx(expected)
    result = scores.precision_recall_f1([1, 1], [1, 0])  # nothing is predicted to be 0
    assert result == pytest.approx({"precision": 1 / 4, "recall": 1 / 2, "f1": 1 / 3})


def test_matthews_is_the_correlation():
    labels, predictions = np.random.default_rng(0).integers(0, 2, (2, 50))
    correlation = np.corrcoef(labels, predictions)[0, 1]
    assert scores.matthews(predictions, labels) == pytest.approx(correlation)
    assert scores.matthews([1, 1], [1, 1]) == 0


@pytest.mark.parametrize("function", CLASS_FUNCTIONS)
@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([0.7, 1], "0.7 is no class"),
        ([None, 1], "None is no class"),
        (["a", 1], "never match"),
        ([], "inconsistent numbers"),
        ("11", "one entry an item"),
    ],
)
def test_what_is_no_class_is_refused(function, predictions, message):
    with pytest.raises(ValueError, match=message):
        function(predictions, [1, 1])
    with pytest.raises(ValueError, match="no items"):
        function([], [])


def test_numbers_that_are_equal_are_one_class():
    assert scores.accuracy([True, 1.0], [1, 1]) == 1


def test_exact_match_and_token_f1_by_hand():
    assert scores.exact_match("The Eiffel Tower.", ["eiffel tower"]) == 1
    assert scores.exact_match("Eiffel", ["Louvre", "eiffel!"]) == 1
    assert scores.exact_match("Eiffel Tower", ["Eiffel", "Tower"]) == 0
    # 2 of 3 predicted words and 2 of 4 accepted ones: 2·(2/3·1/2)/(2/3 + 1/2) = 4/7
    assert scores.contains_answer("It was the Eiffel Tower, they say.", ["Louvre", "eiffel tower"])
    assert not scores.contains_answer("Seventeen towers", ["seven", "tower"])  # parts of words
    assert scores.token_f1("red blue green", ["blue red black white"]) == pytest.approx(4 / 7)
    assert scores.token_f1("red", ["blue", "red red"]) == pytest.approx(2 / 3)  # not 1: red twice
    assert (scores.token_f1("the", ["a"]), scores.token_f1("", ["red"])) == (1, 0)


def test_bleu_and_chrf_are_sacrebleus():
    first = ["the cat is on the mat", "a dog", "he read it"]
    second = [None, "the dog", "she reads books"]
    bleu, chrf = scores.bleu(PREDICTIONS, REFERENCES), scores.chrf(PREDICTIONS, REFERENCES)
    expected = sacrebleu.BLEU().corpus_score(PREDICTIONS, [first, second]).score
    assert bleu["bleu"] == expected > 10
    expected = sacrebleu.CHRF().corpus_score(PREDICTIONS, [first, second]).score
    assert chrf["chrf"] == expected > 40
    assert "nrefs:var" in bleu["bleu_signature"] and "tok:13a" in bleu["bleu_signature"]
    assert chrf["chrf_signature"].startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0")
    assert scores.bleu(["one two three four"], ["one two three four"])["bleu"] == pytest.approx(100)
    assert scores.bleu([""], ["one two"])["bleu"] == 0


def test_chinese_needs_its_tokenizer():
    columns = ["我们今天去公园散步。"], ["我们今天去公园玩耍。"]
    chinese = scores.bleu(*columns, tokenize="zh")
    assert chinese["bleu"] > 50 > scores.bleu(*columns)["bleu"]
    assert "tok:zh" in chinese["bleu_signature"]
    assert scores.chrf(*columns)["chrf"] > 40
    with pytest.raises(ValueError, match="flores"):
        scores.bleu(*columns, tokenize="flores200")
    with pytest.raises(ValueError, match="take chrF"):
        scores.rouge(*columns)


def test_rouge_by_hand():
    # "a b c d" and "a c b d e": 4 of 4 and 5 words; no pair of neighbours; a b d in order
    result = scores.rouge(["a b c d"], ["a c b d e"])
    assert result == pytest.approx({"rouge1": 8 / 9, "rouge2": 0, "rougeL": 6 / 9})
    assert set(scores.rouge(["a b c d"], [["x", "a b c d"]]).values()) == {1}  # the best reference
    assert set(scores.rouge(["a b", ""], ["a b", "a b"]).values()) == {0.5}


@pytest.mark.parametrize("function", TEXT_FUNCTIONS)
def test_a_text_without_a_word_or_a_reference_is_refused(function):
    for reference in ("", " ", [], ["", " "], None):
        with pytest.raises(ValueError, match="no reference"):
            function(["text", "text"], ["text", reference])
    with pytest.raises(ValueError, match="3 is no text"):
        function(["text", 3], ["text", "text"])
    with pytest.raises(ValueError, match="None is no text"):
        function(["text"], [["text", None]])
    with pytest.raises(ValueError, match="no items"):
        function([], [])
