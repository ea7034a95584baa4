"""The classifiers of notebook 04, tiny ones, as they are served: windows, memory; the real one."""

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
from llmnb.evaluation.calibration import calibration_error
from llmnb.fine_tuning import FineTuningError, Settings

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ("negative", "positive")


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
        ("ful", {}, FineTuningError, "Did you mean 'full'"),
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
