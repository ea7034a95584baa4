"""Judgements of a scripted classifier, scored by hand: threshold, temperature, windows."""

import math

import numpy as np
import pytest
from scipy.special import softmax

from llmnb.applications import ApplicationError, sentiment
from llmnb.applications.sentiment import UNSURE, SentimentAnalyzer, coverage
from llmnb.evaluation.calibration import fit_temperature
from llmnb.evaluation.uncertainty import proportion
from llmnb.fine_tuning import Classifier, Settings

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
