"""The plumbing of wrapped metrics; our own against hand-worked cases and second formulations."""

import math
import re
import socket
from concurrent.futures import ThreadPoolExecutor

import evaluate
import numpy as np
import pytest
import sacrebleu
from conftest import python

from llmnb.evaluation import scores

CLASSES = {"predictions": ["a", "b", "b", "c"], "references": ["a", "b", "c", "c"]}
TEXTS = {
    "predictions": ["the cat sat on the mat", "a dog", "he reads an old book"],
    "references": [
        "the cat is on the mat",
        ["a dog", "the dog"],
        ["he read it", "she reads books"],
    ],
}
CHANCES = {"predictions": [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4]], "references": [0, 2]}
LOSSES = {"nats": [10.0, 20.0], "tokens": [4, 6]}
BYTES = {"nats": [10.0, 20.0], "n_bytes": [12, 30]}
EXAMPLES = [
    (scores.Accuracy, CLASSES),
    (scores.PrecisionRecallF1, CLASSES),
    (scores.Matthews, CLASSES),
    (scores.ExactMatch, TEXTS),
    (scores.TokenF1, TEXTS),
    (scores.Bleu, TEXTS),
    (scores.Chrf, TEXTS),
    (scores.Rouge, TEXTS),
    (scores.Perplexity, LOSSES),
    (scores.BitsPerByte, BYTES),
    (scores.ExpectedCalibrationError, CHANCES),
    (scores.Brier, CHANCES),
]
every = pytest.mark.parametrize(("kind", "columns"), EXAMPLES, ids=lambda p: getattr(p, "name", p))


@pytest.fixture(autouse=True)
def own_cache(cache):
    """evaluate makes a folder in the cache."""


@every
def test_batches_and_single_items_give_the_same_as_all_at_once(kind, columns):
    metric = kind()
    at_once = metric.compute(**columns)
    for name in columns:
        assert len(columns[name]) > 1
    metric.add_batch(**{name: values[:1] for name, values in columns.items()})
    metric.add_batch(**{name: values[1:] for name, values in columns.items()})
    assert metric.compute() == at_once
    single = {"predictions": "prediction", "references": "reference"}
    for row in zip(*columns.values(), strict=True):
        metric.add(**dict(zip((single.get(name, name) for name in columns), row, strict=True)))
    assert len(metric) == len(next(iter(columns.values())))
    assert metric.compute() == at_once
    arrays = {k: np.array(v, dtype=object if kind in TEXT else None) for k, v in columns.items()}
    assert metric.compute(**arrays) == at_once


TEXT = {kind for kind, columns in EXAMPLES if columns is TEXTS}


@every
def test_a_refused_batch_leaves_no_trace(kind, columns):
    metric = kind()
    expected = metric.compute(**columns)
    first, *_ = columns
    shorter = columns | {first: columns[first][:1]}
    bad = columns | {first: [*columns[first][:-1], float("nan")]}
    for wrong, message in (
        (shorter, "different numbers of items"),
        (bad, "nan is no"),
        (columns | {first: [*columns[first][:-1], None]}, "None is no"),
        ({name: [] for name in columns}, "no items in this batch"),
        ({first: columns[first]}, "missing"),
        ({}, "no items to score"),
        (columns | {"averge": "micro"}, r"\['averge'\]"),
        (columns | {first: "text"}, "list with one entry an item"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.compute(**wrong)
    assert metric.compute(**columns) == expected


@pytest.mark.filterwarnings("error")
@every
def test_one_item_is_enough(kind, columns):
    assert kind().compute(**{name: values[:1] for name, values in columns.items()})


def test_combine():
    together = evaluate.combine([scores.Accuracy(), scores.PrecisionRecallF1("micro")])
    found = together.compute(**CLASSES)
    assert found == {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75}
    losses = evaluate.combine([scores.Perplexity(), scores.BitsPerByte()])
    columns = LOSSES | BYTES
    losses.add_batch(**columns)
    assert losses.compute() == losses.compute(**columns)
    assert list(losses.compute(**columns)) == ["perplexity", "bits_per_byte"]


def test_instances_do_not_share_their_items():
    one, other = scores.Accuracy(), scores.Accuracy()
    assert one.experiment_id != other.experiment_id
    one.add_batch(predictions=[1, 1], references=[1, 0])
    assert other.compute(predictions=[1], references=[1]) == {"accuracy": 1}
    assert one.compute() == {"accuracy": 0.5}

    def run(right):
        return scores.Accuracy().compute(
            predictions=[1] * 10, references=[1] * right + [0] * (10 - right)
        )

    with ThreadPoolExecutor(4) as pool:
        assert [r["accuracy"] for r in pool.map(run, range(11))] == [k / 10 for k in range(11)]


@pytest.mark.slow
def test_two_processes_share_one_result():
    code = """
from llmnb.evaluation.scores import Accuracy
metric = Accuracy(num_process=2, experiment_id="shared", process_id=RANK)
metric.add_batch(predictions=[RANK] * 3, references=[1] * 3)
print(metric.compute())
"""
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda i: python(code.replace("RANK", i)), "01"))
    assert [run.stdout for run in done] == ["{'accuracy': 0.5}\n", "None\n"], done


def test_nothing_asks_the_network(monkeypatch):
    def refuse(*args, **options):
        raise OSError("asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    wanted = [scores.Bleu(tokenizer) for tokenizer in scores._TOKENIZERS]
    wanted += [scores.Chrf(), scores.Rouge(), scores.Rouge(stemmer=True)]
    for metric in wanted:
        assert metric.compute(predictions=["cats running"], references=["cats ran"])


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_averages_by_hand(average):
    # a: 1 right of 1 and 1; b: 1 right of 2 predicted, 1 there; c: 1 right of 1 predicted, 2 there
    precision, recall, f1 = np.array([1, 1 / 2, 1]), np.array([1, 1, 1 / 2]), [1, 2 / 3, 2 / 3]
    weights = {"macro": [1, 1, 1], "weighted": [1, 1, 2]}.get(average)
    found = scores.PrecisionRecallF1(average).compute(**CLASSES)
    if weights:
        wanted = [np.average(values, weights=weights) for values in (precision, recall, f1)]
    else:
        wanted = [3 / 4] * 3
    assert list(found.values()) == pytest.approx(wanted)


def test_the_f1_of_one_class():
    labels, predictions = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    columns = {"predictions": predictions, "references": labels}
    assert scores.PrecisionRecallF1("binary").compute(**columns)["f1"] == pytest.approx(2 / 3)
    zero = scores.PrecisionRecallF1("binary", positive=0).compute(**columns)
    assert zero == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5})
    names = {k: ["no" if v == 0 else "yes" for v in values] for k, values in columns.items()}
    assert scores.PrecisionRecallF1("binary", positive="no").compute(**names) == zero
    none = scores.PrecisionRecallF1().compute(predictions=[1, 1], references=[1, 0])
    assert none == pytest.approx({"precision": 1 / 4, "recall": 1 / 2, "f1": 1 / 3})  # 0 for 0
    with pytest.raises(ValueError, match="harmonic"):
        scores.PrecisionRecallF1("harmonic")


def test_matthews_is_the_correlation():
    generator = np.random.default_rng(0)
    labels, predictions = generator.integers(0, 2, (2, 50))
    found = scores.Matthews().compute(predictions=predictions, references=labels)
    assert found["matthews"] == pytest.approx(np.corrcoef(labels, predictions)[0, 1])
    assert scores.Matthews().compute(predictions=[1, 1], references=[1, 0]) == {"matthews": 0}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [([0.7, 1], "0.7 is no class"), ([math.inf, 1], "inf is no class"), (["a", 1], "never match")],
)
def test_what_is_no_class(predictions, message):
    with pytest.raises(ValueError, match=message):
        scores.Accuracy().compute(predictions=predictions, references=[1, 1])
    assert scores.Accuracy().compute(predictions=[True, 1.0], references=[1, 1])["accuracy"] == 1


def test_squads_rules():
    assert scores.exact_match("The Eiffel Tower.", ["eiffel tower"]) == 1
    assert scores.exact_match("Eiffel", ["Louvre", "eiffel!"]) == 1
    assert scores.exact_match("Eiffel Tower", ["Eiffel", "Tower"]) == 0
    # by hand: 2 of 3 words found, 2 of 4 wanted: 2·(2/3·1/2)/(2/3 + 1/2) = 4/7
    assert scores.token_f1("red blue green", ["blue red black white"]) == pytest.approx(4 / 7)
    assert scores.token_f1("red", ["blue", "red red"]) == pytest.approx(2 / 3)  # not 1: red twice
    assert (scores.token_f1("the", ["a"]), scores.token_f1("", ["red"])) == (1, 0)
    both = evaluate.combine([scores.ExactMatch(), scores.TokenF1()]).compute(
        predictions=["The red", "blue sky"], references=[["red", "green"], "sky"]
    )
    assert both == pytest.approx({"exact_match": 0.5, "token_f1": (1 + 2 / 3) / 2})


def test_token_f1_by_matching_words_one_at_a_time():
    def second(prediction, answer):
        left = re.sub(r"[^\w\s]", "", prediction.lower()).split()
        wanted = re.sub(r"[^\w\s]", "", answer.lower()).split()
        left, wanted = ([w for w in x if w not in ("a", "an", "the")] for x in (left, wanted))
        found, n, m = 0, len(left), len(wanted)
        for word in left:
            if word in wanted:
                wanted.remove(word)
                found += 1
        return (
            2 * (found / n) * (found / m) / (found / n + found / m) if found else float(n == m == 0)
        )

    generator = np.random.default_rng(0)
    words = ["the", "a", "Red", "red,", "blue", "green.", "sky"]
    for _ in range(300):
        one, other = (" ".join(generator.choice(words, generator.integers(1, 7))) for _ in "ab")
        assert scores.token_f1(one, [other]) == pytest.approx(second(one, other))


def test_bleu_and_chrf_are_sacrebleus():
    predictions = TEXTS["predictions"]
    references = [
        ["the cat is on the mat", "a dog", "he read it"],
        [None, "the dog", "she reads books"],
    ]
    found = evaluate.combine([scores.Bleu(), scores.Chrf()]).compute(**TEXTS)
    bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
    assert found["bleu"] == bleu.corpus_score(predictions, references).score > 10
    assert found["chrf"] == chrf.corpus_score(predictions, references).score > 40
    assert "nrefs:var" in found["bleu_signature"] and "tok:13a" in found["bleu_signature"]
    assert found["chrf_signature"].startswith("nrefs:var|case:mixed|eff:yes|nc:6|nw:0")
    assert found["bleu_signature"].endswith(f"version:{sacrebleu.__version__}")
    perfect = scores.Bleu().compute(
        predictions=["one two three four"], references=["one two three four"]
    )
    assert perfect["bleu"] == pytest.approx(100) and "nrefs:1" in perfect["bleu_signature"]
    assert scores.Bleu().compute(predictions=[""], references=["one two"])["bleu"] == 0


def test_chinese_needs_its_tokenizer():
    columns = {"predictions": ["我们今天去公园散步。"], "references": ["我们今天去公园玩耍。"]}
    found = scores.Bleu("zh").compute(**columns)
    assert found["bleu"] > 50 > scores.Bleu().compute(**columns)["bleu"]
    assert "tok:zh" in found["bleu_signature"]
    assert scores.Chrf().compute(**columns)["chrf"] > 40
    with pytest.raises(ValueError, match="flores"):
        scores.Bleu("flores200")
    with pytest.raises(ValueError, match="take chrF"):
        scores.Rouge().compute(**columns)


def test_rouge_by_hand():
    # "a b c d" and "a c b d e": 4 of 4 and 5 words; no pair of neighbours; a b d in order
    columns = {"predictions": ["a b c d"], "references": ["a c b d e"]}
    found = scores.Rouge().compute(**columns)
    assert found == pytest.approx({"rouge1": 8 / 9, "rouge2": 0, "rougeL": 6 / 9})
    better = scores.Rouge().compute(predictions=["a b c d"], references=[["x", "a b c d"]])
    assert set(better.values()) == {1.0}
    half = scores.Rouge().compute(predictions=["a b", ""], references=["a b", "a b"])
    assert set(half.values()) == {0.5}
    cats = {"predictions": ["cats"], "references": ["cat"]}
    assert scores.Rouge().compute(**cats)["rouge1"] == 0
    assert scores.Rouge(stemmer=True).compute(**cats)["rouge1"] == 1


@pytest.mark.parametrize("kind", sorted(TEXT, key=str))
@pytest.mark.parametrize("empty", ["", " ", [], ["", " "], None])
def test_a_reference_says_something(kind, empty):
    with pytest.raises(ValueError, match="no reference"):
        kind().compute(predictions=["text", "text"], references=["text", empty])
    with pytest.raises(ValueError, match="3 is no text"):
        kind().compute(predictions=["text", 3], references=["text", "text"])


def test_perplexity_and_bits_per_byte():
    # a fair coin of 8 sides: perplexity 8, 3 bits a token; at 2 bytes a token 1.5 bits a byte
    nats = [10 * math.log(8), 30 * math.log(8)]
    found = scores.Perplexity().compute(nats=nats, tokens=[10, 30])
    assert found["perplexity"] == pytest.approx(8)
    assert scores.BitsPerByte().compute(nats=nats, n_bytes=[20, 60])["bits_per_byte"] == (
        pytest.approx(1.5)
    )
    # all nats over all tokens, not the mean of each text's: (10 + 20)/(4 + 6) = 3
    assert scores.Perplexity().compute(**LOSSES)["perplexity"] == pytest.approx(math.exp(3))
    bits = sum(math.log2(math.exp(n)) for n in BYTES["nats"]) / 42
    assert scores.BitsPerByte().compute(**BYTES)["bits_per_byte"] == pytest.approx(bits)
    for kind, name in ((scores.Perplexity, "tokens"), (scores.BitsPerByte, "n_bytes")):
        with pytest.raises(ValueError, match="There are no"):
            kind().compute(nats=[1.0], **{name: [0]})
        with pytest.raises(ValueError, match=r"-1\.0 is no finite"):
            kind().compute(nats=[-1.0], **{name: [3]})
        with pytest.raises(ValueError, match="inf is no finite"):
            kind().compute(nats=[math.inf], **{name: [3]})


def test_every_metric_has_a_name_and_a_description():
    made = [kind() for kind, _ in EXAMPLES]
    assert len({metric.name for metric in made}) == len(made)
    assert all(metric.description == type(metric).__doc__ for metric in made)
