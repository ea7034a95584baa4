"""The model card: its numbers are the given ones, and no text breaks its tables."""

import pytest

from llmnb import card, evaluation
from llmnb.card import CardError
from llmnb.evaluation.uncertainty import Interval

METRICS = {"a.accuracy": Interval(0.8123, 0.79, 0.83), "b|c": Interval(-0.02, -0.041, 0.0004)}


def test_every_number_stands_in_the_card_once():
    page = card.model_card(
        "Model card: tfidf", {"data": "t.csv"}, metrics=METRICS, caveats="A beats B: p = 0.03."
    )
    assert "| a.accuracy | 0.812 | 0.790 to 0.830 |" in page
    assert "| b/c | -0.020 | -0.041 to 0.000 |" in page
    assert "| data | t.csv |" in page and "A beats B: p = 0.03." in page
    assert page.startswith("# Model card: tfidf\n")


def test_labels_and_names_can_hold_anything():
    page = card.model_card("Model card: `x`\n# y", {"la|bel": "<script>\n|"}, metrics=METRICS)
    assert page.splitlines()[0] == "# Model card: 'x' # y"
    assert "| la/bel | ‹script› / |" in page and "<script>" not in page


def test_probes_are_checked_before_the_run():
    assert evaluation.probes("bias, judge") == ["bias", "judge"] and evaluation.probes("") == []
    with pytest.raises(evaluation.EvaluationError, match=r"'baias'; there are judge, bias"):
        evaluation.probes("baias")


def test_an_older_card_is_not_overwritten(tmp_path):
    file = card.save("page", tmp_path / "new")
    assert file.read_text() == "page"
    with pytest.raises(CardError, match="already"):
        card.save("other", tmp_path / "new")
    with pytest.raises(CardError, match="is a file"):
        card.check_folder(file)
    assert file.read_text() == "page"
    card.check_folder("")  # none is wanted


def test_a_result_is_replaced_and_nothing_else(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CardError, match="holds other files"):
        card.check_folder(tmp_path, replaces="llmnb.json")
    (tmp_path / "llmnb.json").write_text("{}")
    card.check_folder(tmp_path, replaces="llmnb.json")
    with pytest.raises(CardError, match="holds other files"):
        card.check_folder(tmp_path)
