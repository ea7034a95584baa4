"""The model card: its numbers are the given ones, and no text breaks its tables."""

import json

import pytest

from llmnb import card, evaluation, files
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
    assert "](" not in card.plain("![x](https://a.example) [y][z] [0.1, 0.2]")
    assert card.plain("[0.1, 0.2]") == "[0.1, 0.2]"


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


def save(folder, **texts):
    """A result of one text file for each keyword."""

    def write(partial):
        (partial / "sub").mkdir()
        for name, text in texts.items():
            (partial / "sub" / name).write_text(text)

    return card.write_result(folder, "facts.json", {"kind": "texts"}, write)


def contents(folder):
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_result_is_replaced_and_nothing_else(tmp_path):
    folder = save(tmp_path / "new" / "result", a="1", b="2")
    (folder / "notes.txt").write_text("of the user")
    save(folder, b="3", c="4")
    left = contents(folder)
    facts = json.loads(left.pop("facts.json"))
    assert left == {"b": "3", "c": "4", "notes.txt": "of the user"}
    assert facts["kind"] == "texts" and set(facts["files"]) == {"sub/b", "sub/c"}
    with pytest.raises(CardError, match="holds other files"):
        card.check_folder(folder)  # without the name of its facts it is no result
    with pytest.raises(CardError, match="holds other files"):
        card.check_folder(tmp_path, replaces="facts.json")


def test_files_that_somebody_changed_or_added_are_not_overwritten(tmp_path):
    folder = save(tmp_path / "result", a="1", b="2")
    (folder / "sub" / "c").write_text("of the user")
    before = contents(folder)
    with pytest.raises(CardError, match="c would be overwritten"):
        save(folder, a="new", c="3")
    assert contents(folder) == before
    (folder / "sub" / "a").write_text("edited")
    with pytest.raises(CardError, match="a was changed since it was saved"):
        save(folder, a="new")
    assert contents(folder) == before | {"a": "edited"}


def test_facts_can_not_name_files_of_other_folders(tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("precious")
    (tmp_path / "result").mkdir()
    facts = {"files": {"../thesis.txt": files.sha256_of(thesis)}}
    (tmp_path / "result" / "facts.json").write_text(json.dumps(facts))
    with pytest.raises(CardError, match="holds other files"):
        save(tmp_path / "result", a="1")
    assert thesis.read_text() == "precious"


def test_a_failed_save_leaves_the_folder_as_it_was(tmp_path):
    def fail(partial):
        (partial / "half").write_text("x")
        raise OSError("disk full")

    (tmp_path / "result" / f"{card.PARTIAL}x").mkdir(parents=True)  # left by a killed call
    folder = save(tmp_path / "result", a="1")
    before = contents(folder)
    for name in ("result", "new"):
        with pytest.raises(OSError, match="disk full"):
            card.write_result(tmp_path / name, "facts.json", {}, fail)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
