"""Tables that can't be used: each is refused before any training, and told what is wrong where."""

import gzip
import io
import json
import time
import zipfile

import datasets
import pandas as pd
import pytest

from llmnb.data import DataError
from llmnb.tables import load_table

WORDS = {"neg": "dull", "pos": "fine"}
ROWS = [(f"A {WORDS[label]} film, number {n}", label) for n in range(20) for label in WORDS]


def cells(rows=ROWS, sign=";", header=("text", "label")) -> str:
    return "".join(sign.join(map(str, row)) + "\n" for row in (header, *rows))


def lines(rows=ROWS) -> list[str]:
    return [json.dumps({"text": text, "label": label}) for text, label in rows]


def sheet() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.getvalue()


def wider(*names) -> str:
    """Two texts, two labels, under these names."""
    return cells([(text, f"{text}!", label, label) for text, label in ROWS], header=names)


PACKED = gzip.compress(cells().encode())
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])
CHINESE = "文本,标签\n" + "".join(f"这部电影很好看，第{n}次,好\n" for n in range(40))
GREEK = "text,label\n" + "".join(f"Η ταινία ήταν {n},καλή\n" for n in range(40))
HEARD = [(f"number {n} is heard", n) for n in range(100)]

# file name, content, what the message says, the columns that are named
REFUSED = {
    "nothing": ("a.csv", "", "is empty"),
    "white space": ("a.json", " \n\n", "is empty"),
    "a header only": ("a.csv", "text,label\n", "has no rows"),
    "an empty list": ("a.json", "[]", "has no rows"),
    "one column": ("a.csv", "text\n" + "good film\n" * 40, "only one column, 'text'"),
    "an unknown delimiter": ("a.csv", cells(sign="~"), "only one column, 'text~label'"),
    "an unknown ending": ("a.docx", "text", r"kind that can't be read: .*\.csv"),
    "an Excel sheet": ("a.xlsx", sheet(), r"can't be read: save it as one of \.csv"),
    "an Excel sheet called .csv": ("a.csv", sheet(), r"is no text \(Excel\?\): save it as CSV"),
    "an old Excel sheet": ("a.csv", b"\xd0\xcf\x11\xe0\0\0", r"is no text \(Excel\?\)"),
    "gz that ends early": ("a.csv.gz", PACKED[:-20], "can't be read: .*download it again"),
    "gz that is damaged": ("a.csv.gz", PACKED[:40] + b"!" + PACKED[41:], "can't be read: "),
    "no parquet": ("a.parquet", cells(), "can't be read: .*[Pp]arquet"),
    "parquet that ends early": ("a.parquet", FRAME.to_parquet()[:-9], "can't be read: "),
    "GBK": ("a.csv", CHINESE.encode("gbk"), r"line 1: .*neither UTF-8 nor Western.*save"),
    "Greek in one byte": ("a.csv", GREEK.encode("iso8859-7"), "line 2: .*neither UTF-8"),
    "UTF-8 with a broken character": ("a.csv", (cells() + "é;ü").encode() + b"\xe9;ok\n",
                                      "line 42: .*neither UTF-8"),
    "UTF-16 cut in a character": ("a.csv", cells().encode("utf-16")[:-1], "neither UTF-8"),
    "UTF-16 without its mark": ("a.csv", cells().encode("utf-16-le"), "is no text"),
    "a row with more cells": ("a.csv", cells([*ROWS, ("one, two; three", "pos")], ";"),
                              "row 42 has 3 cells, the first 2. A text with ';' in it stands in"),
    "a quote that isn't closed": ("a.csv", cells([*ROWS, ('"So', "pos")]),
                                  "a quote opens below row 41, none closes it. .*is doubled"),
    "no header": ("a.csv", cells(ROWS[1:], header=ROWS[0]),
                  r"no column that is clearly the label. In its first row: .*'neg'\. Name one"),
    "two columns called text": ("a.csv", wider("text", "text", "label", "x"),
                                "several columns 'text': rename"),
    "two columns with a text": ("a.csv", wider("story", "headline", "label", "id"),
                                r"could be the text: 'story', 'headline'\. Name one with text_col"),
    "two columns called as a text": ("a.csv", wider("text", "review", "label", "id"),
                                     "could be the text: 'text', 'review'"),
    "two columns with a label": ("a.csv", wider("text", "id", "mood", "desk"),
                                 "could be the label: 'mood', 'desk'.*label_column"),
    "no column with a text": ("a.csv", cells([(n, label) for n, (_, label) in enumerate(ROWS)],
                              header=("x", "label")), "no column that is clearly the text.*'x'"),
    "a column that isn't there": ("a.csv", cells(), r"no column 'txt'\. Did you mean 'text'",
                                  {"text_column": "txt"}),
    "one column for both": ("a.csv", cells(), "'text' as both text and label",
                            {"text_column": "text", "label_column": "text"}),
    "broken JSON": ("a.json", '[{"text": "a",\n "label" "b"}]', "a.json, line 2: this is no table"),
    "a broken line of JSON": ("a.jsonl", "\n".join([*lines(), "", "{text: 1}"]), "line 42: this"),
    "a broken line of JSON in .json": ("a.json", "\n".join([*lines(), "{"]), "line 41: this is"),
    "JSON, one record": ("a.json", lines()[0], "no table in JSON .*wanted: records such as"),
    "JSON, one value": ("a.json", "3", "no table in JSON .*wanted: records such as"),
    "JSON, columns of two lengths": ("a.json", '{"text": ["a", "b"], "label": ["c"]}',
                                     "no table in JSON .*same length"),
    "JSON, too deep": ("a.json", "[" * 100_000, "no table in JSON .*recursion"),
    "JSON, a table inside": ("a.json", json.dumps({"data": [json.loads(n) for n in lines()]}),
                             "no column that is clearly the text.*'data'"),
    "lists as texts": ("a.jsonl", '{"text": ["a", "b"], "label": "c"}\n' * 40,
                       "a list or record, not text, in 'text', row 1"),
    "a list among the labels": ("a.parquet", FRAME.assign(label=[["x"]] * 40).to_parquet(),
                                "a list or record, not text, in 'label', row 1"),
    "one row": ("a.csv", cells(ROWS[:1]), "only 1 of 1 rows can be used. At least 36 are needed"),
    "few rows are left": ("a.csv", cells([*ROWS[:34], ROWS[0], ("", "pos"), ("x", "")]),
                          "only 34 of 37 rows can be used; no text: 1; no label .*: 1;"
                          " the text and label of an earlier row: 1. At least 36"),
    "all texts are contradicted": ("a.csv", cells([(text, n) for text, _ in ROWS for n in "ab"]),
                                   "only 0 of 80 .*; the same text with different labels: 80. At"),
    "one class": ("a.csv", cells([(text, "pos") for text, _ in ROWS]), "one label, 'pos': add"),
    "one class, called by a category": ("a.parquet", FRAME.assign(label="x").astype("category")
                                        .to_parquet(), "all 40 rows have one label, 'x'"),
    "one class of a size": ("a.csv", cells([*ROWS[::2], *ROWS[1:34:2]]),
                            "needs 18 different texts .*but 'pos' have fewer"),
    "a continuous target": ("a.csv", cells([(text, n * 0.37) for text, n in HEARD]),
                            "100 labels, at most 50 can be: numbers to predict, not classes"),
    "free text as a label": ("a.csv", cells([(text, f"answer {n}") for text, n in HEARD]),
                             r"'label' \(label_column names another\): 100 labels.*: free text"),
    "more classes than can be": ("a.csv", cells([(f"{n} {k}", f"class {k}") for k in range(201)
                                 for n in range(3)]), "201 labels, at most 200"),
    "classes that are all small": ("a.csv", cells([(text, n % 20) for text, n in HEARD]),
                                   "needs 18 different texts .*'0', '1', '2', '3', '4', … have"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_is_refused(case, tmp_path):
    file, content, message, columns = (*REFUSED[case], {})[:4]
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=f"(?s){message}") as refused:
        load_table(path, **columns)
    told = str(refused.value)
    assert file in told and told.endswith(".") and len(told) < 400
    assert "Traceback" not in told and "C error" not in told


def test_a_folder_and_a_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews").mkdir()
    with pytest.raises(DataError, match=r"'reviews' .*is a folder: name one file in it \(\.csv"):
        load_table("reviews")
    with pytest.raises(DataError, match=rf"'a\.csv' \(looked in {tmp_path}\) isn't there"):
        load_table("a.csv")
    with pytest.raises(DataError, match=r"'reviews/a\.csv' .* isn't there"):  # no id of the Hub
        load_table("reviews/a.csv")
    with pytest.raises(DataError, match=r"isn't there\. Name a file, imdb, rotten_tomatoes or own"):
        load_table("imbd")


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_out_of_reach_is_said_at_once(offline, monkeypatch):
    """Without a network load_dataset alone tries for half a minute."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    wanted = r"no file 'owner/name' .*and the Hub's data set 'owner/name' can't be .*connection"
    with pytest.raises(DataError, match=wanted):
        load_table("owner/name")
    assert time.perf_counter() - start < 10
