"""Tables of strangers: which columns and rows are used, what is left out, what is refused."""

import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import python
from test_table_files import FRAME, FRENCH, ROWS, table_text, write

from llmnb import data, fine_tuning, tables
from llmnb.data import DataError
from llmnb.tables import load_table

BOTH = {"neg": 20, "pos": 20}
FILM = {"好评": "很好看", "差评": "太无聊"}
CHINESE = [(f"这部电影{FILM[label]}，第{n}次", label) for n in range(20) for label in FILM]
BLANK = "no text"
NO_LABEL = "no label (empty, NaN or null)"
REPEATED = "the text and label of an earlier row"
CONTRADICTED = "the same text with different labels"
RARE = "labels on fewer than 18 rows: "


def load(folder, content, name="a.csv", **columns):
    return load_table(write(folder, name, content), **columns)


def with_header(rows, *header) -> str:
    return table_text(rows, header=header)


def labelled(labels, n=20):
    """n rows of each label, which stands in the text."""
    return [(f"A {label!r} film, number {i}.", label) for i in range(n) for label in labels]


def relabelled(neg, pos):
    labels = {"neg": neg, "pos": pos}
    return [(text, labels[label]) for text, label in ROWS]


def json_of(rows) -> str:
    return json.dumps([{"text": text, "label": label} for text, label in rows])


def parquet_of(rows) -> bytes:
    return pd.DataFrame(rows, columns=["text", "label"]).to_parquet()


# content (JSON or parquet are told by it), rows per label, rows left out, what the note says
LABELS = {
    "numbers, by size": (
        table_text(labelled(["10", "9"])), {"9": 20, "10": 20}, {}, ""
    ),
    "numbers and a word, by the alphabet": (
        table_text(labelled(["10", "9", "x"])), {"10": 20, "9": 20, "x": 20}, {}, ""
    ),
    "true and false": (json_of(relabelled(False, True)), {"False": 20, "True": 20}, {}, ""),
    "missing": (
        table_text([("lost", ""), ("gone", "NaN"), ("off", " null"), *ROWS]),
        BOTH, {NO_LABEL: [2, 3, 4]}, "",
    ),
    "missing, so that the others are floats": (
        parquet_of([("x", None), *relabelled(0, 1)]), {"0": 20, "1": 20}, {NO_LABEL: [1]}, ""
    ),
    "None is one": (table_text(labelled(["None", "NA"])), {"NA": 20, "None": 20}, {}, ""),
    "categories": (FRAME.astype("category").to_parquet(), BOTH, {}, ""),
    "empty texts": (
        table_text([("", "pos"), (" \u200b<br>\t", "neg"), *ROWS]), BOTH, {BLANK: [2, 3]}, ""
    ),
    "a text and label again": (
        table_text([*ROWS, (ROWS[0][0].upper(), "neg")]), BOTH, {REPEATED: [42]}, ""
    ),
    "a text with two": (
        table_text([*ROWS, ("x  y", "neg"), ("X y", "pos")]), BOTH, {CONTRADICTED: [42, 43]}, ""
    ),
    "17 are too few, 18 are not": (
        table_text(labelled("a", 18) + labelled("b", 17) + ROWS),
        {"a": 18, **BOTH}, {RARE + "'b'": [*range(20, 37)]}, "",
    ),
    "cells missing at the end": (table_text() + "only a text\n", BOTH, {NO_LABEL: [42]}, ""),
    "labels that look alike": (
        json_of(labelled([" ne\u0301", "NÉ", "né ", "a-b", "a–b", "d d", "d\xa0d",
                          "♥", "♥\ufe0f\xad"])),
        {"a-b": 40, "d d": 40, "né": 60, "♥": 40}, {},
        r"' ne\u0301' 20, 'N\xc9' 20, 'n\xe9 ' 20; 'a-b' 20, 'a–b' 20; 'd d' 20, 'd\xa0d' 20",
    ),
    "1 and 1.0, TRUE": (
        table_text(labelled(["1", "1.0", "TRUE"])), {"1": 40, "True": 20}, {}, "'1' 20, '1.0' 20."
    ),
    "the header again, after a mark": (
        table_text() + "\ufefftext,label\n" + table_text(labelled(["pos"], 3)),
        {"neg": 20, "pos": 23}, {"the header once more": [42, 43]}, "",
    ),
    "half a character": (json_of([*ROWS, ("\ud800!", "pos")]), {"neg": 20, "pos": 21}, {}, ""),
    "mixed types": (
        json_of(relabelled("no", 1)), {"1": 20, "no": 20}, {}, "column 'label' mixes int, str"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_rows_are_counted_by_label_and_those_left_out_are_listed(case, tmp_path):
    content, counts, dropped, note = LABELS[case]
    if isinstance(content, bytes):
        name = "a.parquet"
    else:
        name = "a.json" if content.startswith("[") else "a.csv"
    table = load(tmp_path, content, name)
    assert list(table.counts().items()) == list(counts.items())
    assert table.dropped == dropped and len(table.notes) == bool(note)
    summary = table.summary()
    assert all(text in summary for text in (name, note, *dropped, *table.notes))
    for part in table.splits().values():
        assert set(part["label"]) == set(range(len(counts)))


WIDE = [(n, text, "en", label) for n, (text, label) in enumerate(ROWS)]
LONG_KEYS = [(f"{n:032x}-key", 10**14 + n, text, f"on the whole {y}") for n, text, _, y in WIDE]

# content, the columns that are taken
COLUMNS = {
    "an index in front": (FRAME.to_csv(), "text", "label"),
    "known names": (with_header(WIDE, "id", "review", "lang", "sentiment"), "review", "sentiment"),
    "Chinese": (with_header(CHINESE, "评论", "情感"), "评论", "情感"),
    "others that are long": (
        with_header(LONG_KEYS, "id", "phone", "they wrote", "mood"),
        "they wrote",
        "mood",
    ),
    "spaces around the names": (with_header(ROWS, " text", "label "), "text", "label"),
    "two others of one name": (
        with_header([(*row, "", "") for row in ROWS], "text", "label", "x", "x"),
        "text",
        "label",
    ),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_the_only_likely_columns_are_taken(case, tmp_path):
    content, text_column, label_column = COLUMNS[case]
    table = load(tmp_path, content)
    assert (table.text_column, table.label_column) == (text_column, label_column)
    assert f"in the column {text_column!r}, the label in {label_column!r}" in table.summary()


def test_where_two_columns_could_be_the_text_it_is_named(tmp_path):
    rows = [(f"Title: {text}", text, label) for text, label in ROWS]
    content = with_header(rows, "headline", "story", "desk")
    with pytest.raises(DataError, match=r"could be the text: 'headline', 'story'.*text_column"):
        load(tmp_path, content)
    table = load(tmp_path, content, text_column="story")
    assert (table.text_column, table.label_column) == ("story", "desk")
    assert table.rows["text"][0] == ROWS[0][0]


def test_a_classifier_learns_from_an_awkward_table(tmp_path):
    rows = [("fine words " * 95_000, "好评"), ("", "好评"), *CHINESE]
    table = load(tmp_path, with_header(rows, "评论", "情感").encode("utf-16"))
    result = fine_tuning.run("tfidf", table.splits(), table.label_names)
    assert result.accuracy.value > 0.9


def test_the_summary_shows_all_and_no_control_characters(tmp_path):
    evil = "\x1b[2J\x1b[31mred\u202e\nx"
    rows = [*ROWS, *[(f"text {n}", evil) for n in range(20)], ("", "pos"), ("once", "\x1b]0;rare")]
    summary = load(tmp_path, table_text(rows)).summary()
    assert all(char.isprintable() or char == "\n" for char in summary)
    assert "\\x1b[31mred" in summary and "\\x1b]0;rare" in summary
    assert "60 rows in 3 classes" in summary
    assert sum(line.endswith("20 rows  33.3%") for line in summary.splitlines()) == 3
    assert "Rows left out: 1 (62), no text." in summary


def test_the_fingerprint_is_of_the_content(tmp_path):
    fingerprint = load(tmp_path, table_text(FRENCH)).fingerprint()
    frame = pd.DataFrame(FRENCH[::-1], columns=["text", "label"])
    same_content = {
        "b.csv": table_text(FRENCH[::-1], ";", ("review", "mood"), "\r\n").encode("cp1252"),
        "c.jsonl": frame.to_json(orient="records", lines=True),
        "d.parquet": frame.sample(frac=1, random_state=0).to_parquet(),
        "e.csv": table_text([*FRENCH, ("", "neg"), FRENCH[3]]),
    }
    assert len(fingerprint) == 12
    for name, content in same_content.items():
        assert load(tmp_path, content, name).fingerprint() == fingerprint
    swapped = [(text, "neg" if label == "pos" else "pos") for text, label in FRENCH]
    for rows in (FRENCH[1:], swapped, [("Other.", "neg"), *FRENCH[1:]]):
        assert load(tmp_path, table_text(rows)).fingerprint() != fingerprint


NUMBERED = [(f"number {n} is heard", n) for n in range(100)]
TWO_TEXTS_TWO_LABELS = [(text, f"{text}!", label, label) for text, label in ROWS]

# content, what the message says, the columns that are named
REFUSED = {
    "a header only": ("text,label\n", "has no rows"),
    "no header": (with_header(ROWS[1:], *ROWS[0]), "clearly the label. In its first row: .*'neg'"),
    "two columns called text": (
        with_header(TWO_TEXTS_TWO_LABELS, "text", "text", "label", "x"),
        "several columns 'text': rename",
    ),
    "two columns with a label": (
        with_header(TWO_TEXTS_TWO_LABELS, "text", "id", "mood", "desk"),
        "could be the label: 'mood', 'desk'.*label_column",
    ),
    "no column with a text": (
        with_header([(n, label) for n, _, _, label in WIDE], "x", "label"),
        "no column that is clearly the text.*'x'",
    ),
    "a column that isn't there": (
        table_text(), r"no column 'txt'\. Did you mean 'text'", {"text_column": "txt"}
    ),
    "one column for both": (
        table_text(),
        "'text' as both text and label",
        {"text_column": "text", "label_column": "text"},
    ),
    "few rows are left": (
        table_text([*ROWS[:34], ROWS[0], ("", "pos"), ("x", "")]),
        "only 34 of 37 rows can be used; no text: 1; no label .*: 1;"
        " the text and label of an earlier row: 1. At least 36 are needed",
    ),
    "all texts are contradicted": (
        table_text([(text, label) for text, _ in ROWS for label in "ab"]),
        "only 0 of 80 .*; the same text with different labels: 80. At",
    ),
    "one class": (table_text([(text, "pos") for text, _ in ROWS]), "one label, 'pos': add"),
    "one class of a size": (
        table_text([*ROWS[::2], *ROWS[1:34:2]]),
        "needs 18 different texts, .*but 'pos' have fewer",
    ),
    "a continuous target": (
        table_text([(text, n * 0.37) for text, n in NUMBERED]),
        "100 different labels, and 50 are allowed: numbers to predict, not classes",
    ),
    "more classes than can be": (
        table_text([(f"{n} {k}", f"class {k}") for k in range(201) for n in range(3)]),
        r"'label' \(label_column names another\): 201 different labels, and 200 .*: free text",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_is_refused(case, tmp_path):
    content, message, columns = (*REFUSED[case], {})[:3]
    with pytest.raises(DataError, match=f"(?s)a.csv.*{message}") as refused:
        load(tmp_path, content, **columns)
    assert str(refused.value).endswith(".") and len(str(refused.value)) < 400


@pytest.mark.parametrize("column", ["text", "label"])
def test_lists_are_no_texts_or_labels(column, tmp_path):
    frame = FRAME.assign(**{column: [["x"]] * 40})
    with pytest.raises(DataError, match=f"a list or record, not text, in '{column}', row 1"):
        load(tmp_path, frame.to_parquet(), "a.parquet")


@pytest.mark.parametrize("name", ["a.csv", "reviews/a.csv", "imbd"])  # none is an id of the Hub
def test_a_missing_file_is_not_looked_for_on_the_hub(name):
    with pytest.raises(DataError, match=r"isn't there\. Name a file, imdb, rotten_tomatoes or own"):
        load_table(name)


def test_from_so_many_rows_on_no_split_lacks_a_label():
    too_few = []
    for n in range(3, 80):
        rows = {"text": [f"{i}" for i in range(n + 100)], "label": [0] * n + [1] * 100}
        parts = data.split(datasets.Dataset.from_dict(rows), label="label")
        if not all(0 in part["label"] for part in parts.values()):
            too_few.append(n)
    assert max(too_few) + 1 == tables.MIN_ROWS_PER_LABEL


def test_a_data_set_of_the_hub(monkeypatch):
    def load_dataset(name):
        label = datasets.ClassLabel(names=["neg", "pos"])
        features = datasets.Features({"text": datasets.Value("string"), "label": label})
        rows = json.loads(json_of([*ROWS, ("nobody knows", -1)]))
        train = datasets.Dataset.from_list(rows, features=features)
        return datasets.DatasetDict({"test": train.select([0]), "train": train})

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table = load_table("owner/reviews")
    assert table.name == "owner/reviews" and table.counts() == BOTH
    assert table.dropped == {NO_LABEL: [41]}
    assert "splits (test, train) only 'train' is used" in table.summary()


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_message_names_the_hub(offline, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    if not offline:  # load_dataset would try for half a minute
        monkeypatch.setattr(datasets, "load_dataset", None)
    message = r"no file 'owner/name' .*and the Hub's data set 'owner/name' can't be .*connection"
    with pytest.raises(DataError, match=message) as refused:
        load_table("owner/name")
    assert "TypeError" not in str(refused.value)  # from the call of None


@pytest.mark.slow
@pytest.mark.parametrize("source", tables.REVIEWS)
def test_the_projects_reviews_keep_their_splits(source):
    table = load_table(source)
    for name, part in data.load_reviews(source).items():
        assert table.splits()[name]["text"][:] == part["text"][:]
    assert table.label_names == ("negative", "positive") and source in table.summary()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory figures")
def test_a_million_rows_fit_into_two_gigabytes(tmp_path):
    path = tmp_path / "a.csv"
    process = python(f"""
import json, re
from pathlib import Path
from llmnb.tables import load_table
with open({str(path)!r}, "w") as file:
    file.write("id,review,sentiment\\n")
    for n in range(1_000_000):
        words = " ".join(f"word{{n * k % 4999}}" for k in (3, 7, 31, 127, 8191, 131071))
        file.write(f"{{n}},{{words}} and twelve more characters {{n}},{{('neg', 'pos')[n % 2]}}\\n")
table = load_table({str(path)!r})
table.summary()
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory too
megabytes = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
print(json.dumps([megabytes, table.counts()]))
""")
    assert process.returncode == 0, process.stderr
    megabytes, counts = json.loads(process.stdout.splitlines()[-1])
    assert counts == {"neg": 500_000, "pos": 500_000}
    assert megabytes < 2000, "measured: 1,333"
