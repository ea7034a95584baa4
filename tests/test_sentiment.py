"""Judgements that are scripted and scored by hand, windows of tiny models, memory; the real one."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import python
from scipy.special import softmax

from llmnb import data, fine_tuning, profiles, tables
from llmnb.applications import ApplicationError, sentiment
from llmnb.applications.sentiment import UNSURE, SentimentAnalyzer, coverage
from llmnb.evaluation.calibration import calibration_error, fit_temperature
from llmnb.evaluation.uncertainty import proportion
from llmnb.fine_tuning import Classifier, FineTuningError, Settings

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("negative", "positive")


class Scripted(Classifier):
    """Says what is written down for a text; without a tokenizer."""

    def __init__(self, said, names=LABELS):
        super().__init__(names, Settings())
        self.said, self.calls = said, []

    def probabilities(self, texts):
        self.calls.append(list(texts))
        rows = [self.said[text] if text in self.said else self.said["*"] for text in texts]
        return np.array([row if isinstance(row, list) else [1 - row, row] for row in rows])

    def write(self, folder): ...

    def read(self, folder): ...


@pytest.fixture(scope="module")
def folders(tiny_models, made_up, tmp_path_factory):
    """Tiny classifiers, saved as notebook 04 saves them."""
    names = {"encoder": str(tiny_models / "encoder"), "decoder": str(tiny_models / "decoder")}
    settings = Settings(**names, dtype="fp32", lr=3e-3, epochs=1, max_length=16)
    folder = tmp_path_factory.mktemp("classifiers")
    for method in ("tfidf", "frozen", "full", "few_shot"):
        made = fine_tuning.run(method, made_up, LABELS, settings).classifier
        fine_tuning.save(made, folder / method)
    return folder


@pytest.fixture
def film_reviews(monkeypatch, made_up):
    """Made-up ones in place of the real ones."""
    monkeypatch.setattr(sentiment, "reviews", lambda profile: (made_up, LABELS))
    return made_up


def test_label_score_and_threshold_by_hand():
    app = SentimentAnalyzer(Scripted({"a": 0.9, "b": 0.25, "c": 0.55, "d": 0.6}), threshold=0.6)
    results = app.batch(["a", "b", "c", "d"])
    assert [result.text for result in results] == ["positive", "negative", UNSURE, "positive"]
    assert [result.score for result in results] == pytest.approx([0.9, 0.75, 0.55, 0.6])
    assert all(result.evidence == () and result.seconds > 0 for result in results)
    app.threshold = 0
    assert [result.text for result in app.batch(["c", "b"])] == ["positive", "negative"]
    app.threshold = 1
    assert app("a").text == UNSURE


def test_the_temperature_is_the_one_of_the_validation_texts():
    dice = np.random.default_rng(0)
    said = {f"t{n}": float(p) for n, p in enumerate(dice.uniform(0.02, 0.98, 200))}
    labels = [int(dice.random() < 0.25 + 0.5 * p) for p in said.values()]  # it is too sure
    app = SentimentAnalyzer(Scripted(said))
    assert app.warnings == ("The score is not calibrated: see calibrate.",)
    assert app("t0").warnings == app.warnings
    app.calibrate(list(said), labels)
    logits = np.log([[1 - p, p] for p in said.values()])
    assert app.temperature == pytest.approx(fit_temperature(logits, labels)) and app.warnings == ()
    assert app.temperature > 1.3
    cooled = softmax(logits / app.temperature, axis=1)
    np.testing.assert_allclose(app.probabilities(said), cooled)
    results = app.batch(list(said))
    assert [result.score for result in results] == pytest.approx(cooled.max(axis=1))
    assert results[0].warnings == ()
    again = app.temperature
    app.calibrate(list(said), labels)  # from the classifier's own probabilities, not from cooled
    assert app.temperature == pytest.approx(again)


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 1, 1], "no mistake"), ([1, 0, 0], "no better than chance")]
)
def test_where_no_temperature_is_best_it_stays_1_and_is_said(labels, message):
    app = SentimentAnalyzer(Scripted({"a": 0.2, "b": 0.9, "c": 0.8}))
    app.temperature = 3.0
    app.calibrate(["a", "b", "c"], labels)
    assert app.temperature == 1 and message in app("a").warnings[0]
    assert "not calibrated" in app("a").warnings[0]


def test_labels_that_are_none_are_refused():
    app = SentimentAnalyzer(Scripted({"a": 0.2, "b": 0.9}))
    for labels in ([0], [0, 2], ["negative", "positive"]):
        with pytest.raises(ValueError, match="labels"):
            app.calibrate(["a", "b"], labels)
    assert "not calibrated" in app("a").warnings[0]


def long_text(n, seed=0):
    words = np.random.default_rng(seed).choice([*"abcdefghij", "bad", "good", "film"], n)
    return " ".join(words.tolist())


@pytest.mark.parametrize("window", [1, 3, 8, 999])
def test_a_long_text_is_cut_into_windows_that_hold_each_word_once(window, folders):
    app = SentimentAnalyzer(fine_tuning.load(folders / "full"), window=window)
    text = "\n  " + long_text(45).replace(" ", "\n ", 9) + " \n"
    places = app._windows(text)
    size = min(window, 16 - 2)  # [CLS] and [SEP] need their places
    assert [text[a:b].split() for a, b in places] == [
        text.split()[n : n + size] for n in range(0, 45, size)
    ]
    assert app._windows(long_text(14)) == [(0, len(long_text(14)))]
    assert len(app._windows(long_text(15))) > 1


def test_words_stay_whole_where_there_are_spaces(tmp_path, folders):
    app = SentimentAnalyzer(fine_tuning.load(folders / "full"), window=4)
    text = "a-b c-d-e f-g-h " * 5  # 3, 5 and 5 tokens
    pieces = [text[a:b] for a, b in app._windows(text)]
    assert pieces[0] == "a-b" and "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(len(re.findall(r"\w|-", piece)) <= 4 for piece in pieces)
    unbroken = "a-b-c-d-e-f-g-h-i-j-" * 3  # there is nowhere to cut but between tokens
    pieces = [unbroken[a:b] for a, b in app._windows(unbroken)]
    assert "".join(pieces) == unbroken and {len(piece) for piece in pieces} == {4}


def test_the_windows_mean_is_weighted_by_what_each_decides(monkeypatch):
    said = {"aa": 0.5, "bb": 0.9, "cc": 0.2}
    app = SentimentAnalyzer(Scripted(said))
    app.tokenizer, places = "one", [(0, 2), (2, 4), (4, 6)]
    app._windows = lambda text: places
    (result,) = app.batch(["aabbcc"])
    odds = np.log([0.5 / 0.5, 0.9 / 0.1, 0.2 / 0.8])
    mean = (odds**3).sum() / (odds**2).sum()  # the variance of two log-probabilities is odds²/4
    assert result.score == pytest.approx(1 / (1 + math.exp(-mean)), abs=1e-6)
    assert result.text == "positive"
    starts, ends, parts = zip(*result.evidence, strict=True)
    assert (starts, ends) == ((0, 2, 4), (2, 4, 6)) and parts == pytest.approx((0.5, 0.9, 0.2))
    app.temperature = 2.0
    (cooled,) = app.batch(["aabbcc"])
    assert cooled.score == pytest.approx(1 / (1 + math.exp(-mean / 2)), abs=1e-6)
    assert cooled.evidence[1][2] == pytest.approx(0.75)  # odds of 9, rooted: 3 to 1


@pytest.mark.parametrize("method", ["tfidf", "frozen", "full", "few_shot"])
def test_a_folder_of_04_judges_as_the_classifier_does(method, folders, film_reviews):
    app = SentimentAnalyzer.load(str(folders / method), profile="smoke", threshold=0)
    texts = film_reviews["test"]["text"][:]
    own = fine_tuning.load(folders / method).probabilities(texts)
    expected = [LABELS[n] for n in own.argmax(axis=1)]
    assert [result.text for result in app.batch(texts)] == expected
    np.testing.assert_allclose(
        app.probabilities(texts), softmax(np.log(own) / app.temperature, axis=1), atol=1e-6
    )
    long = long_text(300)
    (result,) = app.batch([long])
    if method == "tfidf":  # without a tokenizer: read whole
        assert result.evidence == () and app.tokenizer == ""
    else:
        size = 16 if method == "few_shot" else 14  # an encoder's begin with [CLS], end with [SEP]
        assert len(result.evidence) == math.ceil(300 / size)
        assert result.evidence[0][0] == 0 and result.evidence[-1][1] == len(long)


def test_other_labels_are_served_and_said_to_be_uncalibrated(tmp_path, made_up, film_reviews):
    made = fine_tuning.run("tfidf", made_up, ("bad", "good"), Settings()).classifier
    fine_tuning.save(made, tmp_path / "other")
    app = SentimentAnalyzer.load(str(tmp_path / "other"), profile="smoke")
    (result,) = app.batch(["a good film"])
    assert result.text == "good" and "not calibrated" in result.warnings[0]
    made = fine_tuning.run("tfidf", made_up, ("NEGATIVE", "POSITIVE"), Settings()).classifier
    fine_tuning.save(made, tmp_path / "shouted")
    app = SentimentAnalyzer.load(str(tmp_path / "shouted"), profile="smoke")
    assert app("a good film").text == "POSITIVE"
    assert "see calibrate" not in str(app("a good film").warnings)


def test_a_transformers_folder_is_taken_as_it_is(folders, film_reviews, tmp_path):
    for file in (folders / "full").iterdir():
        if file.name != "llmnb.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    app = SentimentAnalyzer.load(str(tmp_path), profile="smoke", threshold=0)
    assert app.classifier.method == "pretrained" and app.classifier.label_names == LABELS
    expected = fine_tuning.load(folders / "full").predict(["a good film", "bad"])
    assert [result.text for result in app.batch(["a good film", "bad"])] == expected


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("ful", {}, FineTuningError, "did you mean 'full'"),
        ("{folder}", {}, FineTuningError, "holds no classifier"),
        ("full", {"threshold": 1.5}, ApplicationError, "threshold 1.5"),
        ("full", {"threshold": math.nan}, ApplicationError, "threshold nan"),
        ("full", {"window": 0}, ApplicationError, "window 0"),
        ("full", {"profile": "cpus"}, profiles.ProfileError, "cpus"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_any_work(
    model, options, error, message, tmp_path, film_reviews, monkeypatch
):
    monkeypatch.setattr(fine_tuning.ladder, "run", None)
    with pytest.raises(error, match=message):
        SentimentAnalyzer.load(model.format(folder=tmp_path), **{"profile": "smoke"} | options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a text", "batch takes a list"),
        (["a", " "], "Text 1 is empty"),
        (["a", None], "Text 1 is empty or no text"),
        (["a", "b\udc00"], "Text 1 is no Unicode"),
    ],
)
def test_what_is_no_text_is_refused_before_any_work(texts, message):
    app = SentimentAnalyzer(classifier := Scripted({"*": 0.7}))
    for call in (app.batch, app.probabilities, lambda t: list(app.stream_batch(t))):
        with pytest.raises(ApplicationError, match=message):
            call(texts)
    assert classifier.calls == []


def test_no_texts_and_odd_ones(folders):
    app = SentimentAnalyzer(fine_tuning.load(folders / "full"))
    assert app.batch([]) == [] and list(app.stream_batch([])) == []
    odd = [
        "\x00\x01",
        "é漢字🙂" * 50,
        "\u202e\u200b",
        "<script>x</script>",
        "x" * 5000,
        "film" * 999,
    ]
    results = app.batch(odd)
    assert [result.text in (*LABELS, UNSURE) for result in results] == [True] * len(odd)
    with pytest.raises(ApplicationError, match="makes no text piece by piece"):
        app.stream("a")


def test_an_iterator_is_read_piece_by_piece_and_errors_keep_their_number(monkeypatch):
    monkeypatch.setattr(sentiment, "_TOGETHER", 4)
    app = SentimentAnalyzer(classifier := Scripted({"*": 0.7, "8": 0.1}))
    read = []

    def texts():
        for number in range(11):
            read.append(number)
            yield str(number) if number != 9 else ""

    results = app.stream_batch(texts())
    assert next(results).text == "positive" and len(read) == 4
    with pytest.raises(ApplicationError, match="Text 9 is empty"):
        list(results)
    assert classifier.calls == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    assert [r.text for r in app.batch([str(n) for n in range(9)])][7:] == ["positive", "negative"]


def test_coverage_by_hand():
    said = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]]
    table = coverage(said, [0, 1, 1, 0, 0], [0, 0.6, 0.8, 0.95])
    assert table["threshold"].tolist() == [0, 0.6, 0.8, 0.95]
    assert table["answered"].tolist() == pytest.approx([1, 0.8, 0.4, 0])
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.5, 1, math.nan], nan_ok=True)
    wilson = proportion(2, 4)
    assert table.loc[1, ["low", "high"]].tolist() == [wilson.low, wilson.high]
    assert table.loc[3, ["low", "high"]].isna().all()
    assert coverage([0.9, 0.2], [1, 1], [1])["accuracy"].isna().all()
    with pytest.raises(ValueError, match="labels"):
        coverage(said, [0, 1], [0.5])


_MEMORY = """
import re, sys
from pathlib import Path
from llmnb import fine_tuning
from llmnb.applications.sentiment import SentimentAnalyzer
app = SentimentAnalyzer(fine_tuning.load({folder!r}))
words = "a b c d e f g h i j bad good fine film".split()
texts = (" ".join(words[(n * k) % 14] for k in range(n % 7, 60)) for n in range(1, {n} + 1))
print(sum(result.text == "positive" for result in app.stream_batch(texts)))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read on Linux")
def test_ten_thousand_texts_take_no_more_memory_than_a_thousand(folders):
    peaks = []
    for n in (1000, 10_000):
        result = python(_MEMORY.format(folder=str(folders / "tfidf"), n=n), OMP_NUM_THREADS="1")
        assert result.returncode == 0, result.stderr
        positive, kilobytes = map(int, result.stdout.split())
        assert 0 < positive < n
        peaks.append(kilobytes / 1024)
    assert peaks[1] - peaks[0] < 12  # MB; all 10,000 at once take 20 more


@pytest.mark.slow
def test_the_classifier_is_04s_and_its_accuracy_too(monkeypatch):
    profile = profiles.resolve("smoke")
    app = SentimentAnalyzer.load("full", profile="smoke", threshold=0)
    monkeypatch.setattr(fine_tuning.ladder, "run", None)  # from here on it must be in the cache
    table = tables.load_table("rotten_tomatoes")  # as notebooks 04 and 05 do it
    sizes = {"train": profile.train_texts}
    splits = {
        name: part.select(range(min(sizes.get(name, profile.test_texts), len(part))))
        for name, part in table.splits().items()
    }
    chosen = Settings(encoder=profile.encoder, decoder=profile.decoder, seed=0)
    made = fine_tuning.trained("full", splits, table.label_names, chosen)
    texts = splits["test"]["text"][:]
    assert SentimentAnalyzer.load("", profile="smoke").temperature == app.temperature
    assert [result.text for result in app.batch(texts)] == made.predict(texts)


@pytest.fixture(scope="module")
def real():
    return SentimentAnalyzer.load("full", profile="cpu", threshold=0)


@pytest.mark.slow
def test_a_higher_threshold_answers_less_and_better(real):
    splits, _ = sentiment.reviews(profiles.resolve("cpu"))
    test = splits["test"].select(range(500))
    found, labels = real.probabilities(test["text"][:]), np.array(test["label"][:])
    table = coverage(found, labels, [0, 0.7, 0.85])
    assert table["answered"].is_monotonic_decreasing and table["accuracy"].is_monotonic_increasing
    assert table["answered"][0] == 1 and 0.75 < table["accuracy"][0] < 0.85
    assert 0.3 < table["answered"][2] < 0.7 and table["accuracy"][2] > table["accuracy"][0] + 0.05
    assert real.warnings == () and 1 < real.temperature < 1.4
    assert calibration_error(found, labels, 6, True) < 0.06


@pytest.mark.slow
def test_long_reviews_are_judged_better_by_windows_than_by_their_beginning(real):
    rows = data.load_reviews("imdb")["test"].select(range(500))
    long = [row for row in rows if len(real._windows(row["text"])) > 1][:120]
    texts, labels = [row["text"] for row in long], np.array([row["label"] for row in long])
    head = (real.classifier.probabilities(texts).argmax(axis=1) == labels).mean()
    windows = (real.probabilities(texts).argmax(axis=1) == labels).mean()
    assert len(long) == 120 and windows > head + 0.03
