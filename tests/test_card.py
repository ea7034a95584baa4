"""The model card: its numbers are the given ones, and no text breaks its tables."""

import pytest

from llmnb.evaluation import card
from llmnb.evaluation.card import CardError
from llmnb.evaluation.uncertainty import Interval

METRICS = {"a.accuracy": Interval(0.8123, 0.79, 0.83), "b|c": Interval(-0.02, -0.041, 0.0004)}


def test_every_number_stands_in_the_card_once():
    page = card.model_card("tfidf", {"data": "t.csv"}, METRICS, "A beats B: p = 0.03.")
    assert "| a.accuracy | 0.812 | 0.790 to 0.830 |" in page
    assert "| b/c | -0.020 | -0.041 to 0.000 |" in page
    assert "| data | t.csv |" in page and "**Verdict.** A beats B: p = 0.03." in page
    assert page.startswith("# Model card: tfidf\n")


def test_labels_and_names_can_hold_anything():
    page = card.model_card("`x`\n# y", {"la|bel": "<script>\n|"}, METRICS, "a\n\nb")
    assert page.splitlines()[0] == "# Model card: 'x' # y"
    assert "| la/bel | ‹script› / |" in page and "<script>" not in page


def test_a_card_without_numbers_is_refused():
    with pytest.raises(CardError, match="measure first"):
        card.model_card("x", {}, {}, "")


def test_probes_are_checked_before_the_run():
    assert card.probes("bias, judge") == ["bias", "judge"] and card.probes("") == []
    with pytest.raises(CardError, match=r"'baias'; there are judge, bias"):
        card.probes("baias")


def test_an_older_card_is_not_overwritten(tmp_path):
    file = card.save("page", tmp_path / "new")
    assert file.read_text() == "page"
    with pytest.raises(CardError, match="already"):
        card.save("other", tmp_path / "new")
    with pytest.raises(CardError, match="is a file"):
        card.check_folder(file)
    assert file.read_text() == "page"
    card.check_folder("")  # none is wanted
