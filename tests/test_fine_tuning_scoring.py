"""A file of new texts, scored: the threshold of "unsure", the file's columns, what is refused."""

import numpy as np
import pandas as pd
import pytest

from llmnb import fine_tuning
from llmnb.fine_tuning import FineTuningError, Settings, scoring
from llmnb.tables import DataError

LABELS = ("bad", "good")


@pytest.fixture
def classifier(made_up):
    return fine_tuning.run("tfidf", made_up, LABELS, Settings()).classifier


def test_the_threshold_is_the_lowest_that_keeps_the_wanted_accuracy():
    top = np.array([0.95, 0.9, 0.8, 0.7, 0.6])
    is_right = np.array([1, 1, 0, 1, 0])
    probabilities = np.stack([1 - top, top], axis=1)
    assert scoring.unsure_below(probabilities, is_right, accuracy=0.75) == 0.7
    assert scoring.unsure_below(probabilities, is_right, accuracy=0.8) == 0.9
    assert scoring.unsure_below(probabilities, is_right, accuracy=0.5) == 0.6
    assert scoring.unsure_below(probabilities, 0 * is_right) > 1  # it is never right


def test_a_file_is_scored_row_by_row_beside_the_classifiers_folder(classifier, tmp_path):
    classifier.unsure_below = 0.6
    folder = fine_tuning.save(classifier, tmp_path / "mine")
    classifier = fine_tuning.load(folder)
    source = tmp_path / "new.csv"
    source.write_text('id,text,label\n1,a good film b,?\n2,,?\n3,"<b>bad, bad</b>",?\n4,zzz,?\n')
    file = scoring.destination(folder, source)
    assert file == tmp_path / "mine-new.csv"
    unsure = scoring.score_file(classifier, source, file)
    rows = pd.read_csv(file, keep_default_na=False)
    assert list(rows) == ["id", "text", "label (given)", "label", "probability", "unsure"]
    assert rows["id"].tolist() == [1, 2, 3, 4] and rows["text"][2] == "<b>bad, bad</b>"
    assert rows["label"].tolist()[:3] == ["good", "", "bad"] and rows["probability"][1] == ""
    expected = classifier.probabilities(["a good film b"]).max()
    assert float(rows["probability"][0]) == pytest.approx(expected, abs=1e-4)
    assert rows["unsure"].tolist() == unsure.tolist() == [False, True, False, True]


def test_scores_replace_scores_and_nothing_else(classifier, tmp_path):
    source = tmp_path / "new.txt"
    source.write_text("text\na good film b\n")
    file = scoring.destination(tmp_path / "mine", source)
    for _ in range(2):
        scoring.score_file(classifier, source, scoring.destination(tmp_path / "mine", source))
    assert len(pd.read_csv(file)) == 1
    file.write_text("name,price\ntea,3\n")
    with pytest.raises(FineTuningError, match="holds no scores"):
        scoring.destination(tmp_path / "mine", source)


def test_what_is_assumed_about_a_file_is_printed(classifier, tmp_path, capsys):
    (tmp_path / "new.csv").write_bytes("Kommentar\nEin böser Film und für Bären\n".encode("cp1252"))
    scoring.score_file(classifier, tmp_path / "new.csv", tmp_path / "scores.csv", "Kommentar")
    assert "new.csv: not UTF-8 (line 2), so read as cp1252" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("text\n", "no rows of data"),
        ("A fine film\nA dull film\n", "first line, 'A fine film', a text or the name of the"),
        ("comment,message\na good film,another one\n", "several columns that could be the text"),
    ],
)
def test_a_file_without_clear_texts_is_not_scored(text, message, classifier, tmp_path):
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        scoring.score_file(classifier, tmp_path / "new.csv", tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()
