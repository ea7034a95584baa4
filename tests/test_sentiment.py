"""A scripted classifier, scored by hand; tiny classifiers of notebook 04; then the real one."""

import math
import re

import datasets
import numpy as np
import pytest
from scipy.special import softmax

from llmnb import data, fine_tuning, profiles
from llmnb.applications import ApplicationError, sentiment
from llmnb.applications.sentiment import UNSURE, SentimentAnalyzer, coverage
from llmnb.evaluation.calibration import error_interval, fit_temperature
from llmnb.evaluation.uncertainty import proportion
from llmnb.fine_tuning import Classifier, FineTuningError, Settings

LABELS = ("negative", "positive")


class Scripted(Classifier):
    """Gives the probability of "positive" that is written down for a text; without a tokenizer."""

    def __init__(self, positive):
        super().__init__(LABELS, Settings())
        self.positive, self.calls = positive, []

    def probabilities(self, texts):
        self.calls.append(list(texts))
        positive = np.array([self.positive.get(text, 0.7) for text in texts])
        return np.stack([1 - positive, positive], axis=1)

    def write(self, folder): ...

    def read(self, folder): ...


def test_label_score_and_threshold_by_hand():
    app = SentimentAnalyzer(Scripted({"a": 0.9, "b": 0.25, "c": 0.55, "d": 0.6}), threshold=0.6)
    results = app.batch(["a", "b", "c", "d"])
    assert [result.text for result in results] == ["positive", "negative", UNSURE, "positive"]
    assert [result.score for result in results] == pytest.approx([0.9, 0.75, 0.55, 0.6])
    assert all(result.evidence == () and result.seconds > 0 for result in results)
    app.threshold = 0
    assert [result.text for result in app.batch(["c", "b"])] == ["positive", "negative"]


def test_the_temperature_is_fitted_on_the_validation_texts():
    random = np.random.default_rng(0)
    positive = {f"t{n}": float(p) for n, p in enumerate(random.uniform(0.02, 0.98, 200))}
    texts = list(positive)
    labels = [int(random.random() < 0.25 + 0.5 * p) for p in positive.values()]  # it is too sure
    app = SentimentAnalyzer(Scripted(positive))
    assert app("t0").warnings == ("The score is not calibrated: see calibrate.",)
    logits = np.log([[1 - p, p] for p in positive.values()])
    for _ in range(2):  # again from the classifier's own probabilities, not from calibrated ones
        app.calibrate(texts, labels)
        assert app.temperature == pytest.approx(fit_temperature(logits, labels))
    assert app.temperature > 1.3 and app("t0").warnings == ()
    calibrated = softmax(logits / app.temperature, axis=1)
    np.testing.assert_allclose(app.probabilities(texts), calibrated)
    scores = [result.score for result in app.batch(texts)]
    assert scores == pytest.approx(calibrated.max(axis=1))


@pytest.mark.parametrize(
    ("labels", "message"), [([0, 1, 1], "no mistake"), ([1, 0, 0], "no better than chance")]
)
def test_where_no_temperature_is_best_it_is_1_with_a_warning(labels, message):
    app = SentimentAnalyzer(Scripted({"a": 0.2, "b": 0.9, "c": 0.8}))
    app.temperature = 3.0
    app.calibrate(["a", "b", "c"], labels)
    assert app.temperature == 1 and message in app("a").warnings[0]
    assert "not calibrated" in app("a").warnings[0]


def test_labels_that_do_not_fit_are_refused():
    app = SentimentAnalyzer(Scripted({"a": 0.2, "b": 0.9}))
    for labels in ([0], [0, 2], ["negative", "positive"]):
        with pytest.raises(ValueError, match="labels"):
            app.calibrate(["a", "b"], labels)


def test_the_mean_over_windows_is_weighted_by_what_each_decides():
    app = SentimentAnalyzer(Scripted({"aa": 0.5, "bb": 0.9, "cc": 0.2}))
    app.windows = lambda text: [(0, 2), (2, 4), (4, 6)]
    result = app("aabbcc")
    log_odds = np.log([0.5 / 0.5, 0.9 / 0.1, 0.2 / 0.8])
    mean = (log_odds**3).sum() / (log_odds**2).sum()  # the variance of two log p is log_odds²/4
    assert result.score == pytest.approx(1 / (1 + math.exp(-mean)), abs=1e-6)
    assert result.text == "positive"
    app.temperature = 2.0
    assert app("aabbcc").score == pytest.approx(1 / (1 + math.exp(-mean / 2)), abs=1e-6)


def test_what_is_no_text_is_refused_before_any_work():
    app = SentimentAnalyzer(classifier := Scripted({}))
    for call in (app.batch, app.probabilities):
        with pytest.raises(ApplicationError, match="Text 1 is empty"):
            call(["a", " "])
    assert classifier.calls == [] and app.batch([]) == []
    with pytest.raises(ApplicationError, match="SentimentAnalyzer makes no text piece by piece"):
        app.stream("a text")


def test_coverage_by_hand():
    probabilities = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7], [0.55, 0.45]]
    table = coverage(probabilities, [0, 1, 1, 0, 0], [0, 0.6, 0.8, 0.95])
    assert table["threshold"].tolist() == [0, 0.6, 0.8, 0.95]
    assert table["answered"].tolist() == pytest.approx([1, 0.8, 0.4, 0])
    assert table["accuracy"].tolist() == pytest.approx([0.6, 0.5, 1, math.nan], nan_ok=True)
    wilson = proportion(2, 4)
    assert table.loc[1, ["low", "high"]].tolist() == [wilson.low, wilson.high]
    assert table.loc[3, ["low", "high"]].isna().all()
    with pytest.raises(ValueError, match="labels"):
        coverage(probabilities, [0, 1], [0.5])


@pytest.fixture(scope="module")
def folders(tiny_models, made_up, tmp_path_factory):
    """Tiny classifiers, saved as notebook 04 saves them."""
    names = {"encoder": str(tiny_models / "encoder"), "decoder": str(tiny_models / "decoder")}
    settings = Settings(**names, dtype="fp32", lr=3e-3, epochs=1, max_length=16)
    folder = tmp_path_factory.mktemp("classifiers")
    for method in ("tfidf", "frozen", "full", "few_shot"):
        classifier = fine_tuning.run(method, made_up, LABELS, settings).classifier
        fine_tuning.save(classifier, folder / method)
    return folder


@pytest.fixture
def film_reviews(monkeypatch, made_up):
    """Made-up ones in place of the real ones."""
    monkeypatch.setattr(sentiment, "reviews", lambda profile: (made_up, LABELS))
    return made_up


def long_text(n):
    words = np.random.default_rng(0).choice([*"abcdefghij", "bad", "good", "film"], n)
    return " ".join(words.tolist())


@pytest.mark.parametrize("window", [1, 8, 999])
def test_the_windows_of_a_long_text_hold_each_word_once(window, folders):
    app = SentimentAnalyzer(fine_tuning.load(folders / "full"), window=window)
    text = "\n  " + long_text(45).replace(" ", "\n ", 9) + " \n"
    size = min(window, 16 - 2)  # [CLS] and [SEP] need their places
    windows = [text[start:end].split() for start, end in app.windows(text)]
    assert windows == [text.split()[n : n + size] for n in range(0, 45, size)]
    assert app.windows(long_text(14)) == [(0, len(long_text(14)))]
    assert len(app.windows(long_text(15))) > 1


def test_windows_are_cut_between_words_where_there_are_spaces(folders):
    app = SentimentAnalyzer(fine_tuning.load(folders / "full"), window=4)
    text = "a-b c-d-e f-g-h " * 5  # 3, 5 and 5 tokens
    parts = [text[start:end] for start, end in app.windows(text)]
    assert parts[0] == "a-b" and "".join(parts).replace(" ", "") == text.replace(" ", "")
    assert all(len(re.findall(r"\w|-", part)) <= 4 for part in parts)
    unbroken = "a-b-c-d-e-f-g-h-i-j-" * 3  # there is nowhere to cut but between tokens
    parts = [unbroken[start:end] for start, end in app.windows(unbroken)]
    assert "".join(parts) == unbroken and {len(part) for part in parts} == {4}


@pytest.mark.parametrize("method", ["tfidf", "frozen", "full", "few_shot"])
def test_a_saved_classifier_is_served_with_its_own_labels(method, folders, film_reviews):
    app = SentimentAnalyzer.load(str(folders / method), profile="smoke", threshold=0)
    texts = film_reviews["test"]["text"][:]
    probabilities = fine_tuning.load(folders / method).probabilities(texts)
    expected = [LABELS[n] for n in probabilities.argmax(axis=1)]
    assert [result.text for result in app.batch(texts)] == expected
    calibrated = softmax(np.log(probabilities) / app.temperature, axis=1)
    np.testing.assert_allclose(app.probabilities(texts), calibrated, atol=1e-6)
    odd = ["\x00\x01", "é漢字🙂" * 50, "\u202e\u200b", "x" * 5000, "film" * 999]
    assert {result.text for result in app.batch(odd)} <= {*LABELS}
    text = long_text(300)
    windows = app.windows(text)
    if method == "tfidf":  # without a tokenizer: read whole
        assert len(windows) == 1
    else:
        size = 16 if method == "few_shot" else 14  # an encoder's begin with [CLS], end with [SEP]
        assert len(windows) == math.ceil(300 / size)
        assert windows[0][0] == 0 and windows[-1][1] == len(text)


def test_a_saved_classifier_says_how_it_is_calibrated(tmp_path, made_up, monkeypatch):
    validation = made_up["validation"]
    odd_label = [1 - validation["label"][0], *validation["label"][1:]]  # or T has no best value
    rows = {"text": validation["text"][:], "label": odd_label}
    splits = {**made_up, "validation": datasets.Dataset.from_dict(rows)}
    monkeypatch.setattr(sentiment, "reviews", lambda profile: (splits, LABELS))
    warnings = {("bad", "good"): "is not calibrated", ("NEGATIVE", "POSITIVE"): "on film sentences"}
    for names, warning in warnings.items():
        classifier = fine_tuning.run("tfidf", made_up, names, Settings()).classifier
        fine_tuning.save(classifier, tmp_path / names[0])
        app = SentimentAnalyzer.load(str(tmp_path / names[0]), profile="smoke")
        result = app("a good film")
        assert result.text == names[1] and warning in str(result.warnings)


def test_a_folder_named_like_a_method_does_not_replace_it(
    film_reviews, cache, tmp_path, monkeypatch
):
    (tmp_path / "majority").mkdir()
    monkeypatch.chdir(tmp_path)
    app = SentimentAnalyzer.load("majority", profile="smoke")
    assert app.classifier.method == "majority"


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        ("ful", {}, FineTuningError, "Did you mean 'full'"),
        ("{folder}", {}, FineTuningError, "holds no classifier"),
        ("full", {"threshold": math.nan}, ApplicationError, "threshold is nan"),
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


@pytest.fixture(scope="module")
def real():
    return SentimentAnalyzer.load("full", profile="cpu", threshold=0)


@pytest.mark.slow
def test_the_classifier_is_that_of_notebook_04(real, monkeypatch):
    monkeypatch.setattr(fine_tuning.ladder, "run", None)  # from here on it must be in the cache
    profile = profiles.resolve("cpu")
    splits, label_names = sentiment.reviews(profile)
    settings = Settings(encoder=profile.encoder, decoder=profile.decoder, seed=0)
    classifier = fine_tuning.trained("full", splits, label_names, settings)
    texts = splits["test"]["text"][:100]
    assert [result.text for result in real.batch(texts)] == classifier.predict(texts)


@pytest.mark.slow
def test_a_higher_threshold_answers_less_and_better(real):
    splits, _ = sentiment.reviews(profiles.resolve("cpu"))
    test = splits["test"].select(range(500))
    probabilities, labels = real.probabilities(test["text"][:]), np.array(test["label"][:])
    table = coverage(probabilities, labels, [0, 0.7, 0.85])
    assert table["answered"].is_monotonic_decreasing and table["accuracy"].is_monotonic_increasing
    assert table["answered"][0] == 1 and 0.75 < table["accuracy"][0] < 0.85
    assert 0.3 < table["answered"][2] < 0.7 and table["accuracy"][2] > table["accuracy"][0] + 0.05
    assert real.warnings == () and 1 < real.temperature < 1.4
    assert error_interval(probabilities, labels, 6).value < 0.06


@pytest.mark.slow
def test_long_reviews_are_classified_better_by_windows_than_by_their_beginning(real):
    rows = data.load_reviews("imdb")["test"].select(range(500))
    long = [row for row in rows if len(real.windows(row["text"])) > 1][:120]
    texts, labels = [row["text"] for row in long], np.array([row["label"] for row in long])
    head = (real.classifier.probabilities(texts).argmax(axis=1) == labels).mean()
    windows = (real.probabilities(texts).argmax(axis=1) == labels).mean()
    assert len(long) == 120 and windows > head + 0.03
