"""Table files of every kind are read whole, or refused with what is wrong and where."""

import csv
import gzip
import io
import json

import pandas as pd
import pytest

from llmnb.data import DataError
from llmnb.table_files import read_table_file

WORDS = {"neg": "dull", "pos": "fine"}
ROWS = [(f"A {WORDS[label]} film, number {n}.", label) for n in range(20) for label in WORDS]
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])


def table_text(rows=ROWS, delimiter=",", header=("text", "label"), end="\n") -> str:
    """The rows as a program would save them."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return file.getvalue()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FRENCH = [(f"Le film est {WORDS[y]} — « déjà vu », nº {n}.", y) for n, (_, y) in enumerate(ROWS)]
QUOTED = [(f'He said "{WORDS[y]}",\nthen; left.\n\tNo. {n}', y) for n, (_, y) in enumerate(ROWS)]
LOOSE_QUOTES = [('"So" they say', "pos"), ('"Not', "neg")]
PAIRED_QUOTES = [('"So', "pos"), ('Not"', "neg")]
PER_LINE = FRAME.to_json(orient="records", lines=True)
RECORDS = FRAME.to_json(orient="records")

# file name, content, expected rows, what the note says
READABLE = {
    "commas": ("a.csv", table_text(), ROWS, ""),
    "semicolons, commas in the texts": ("A.CSV", table_text(delimiter=";"), ROWS, ""),
    "tabs in a .csv": ("a.csv", table_text(delimiter="\t"), ROWS, ""),
    "bars": ("a.txt", table_text(delimiter="|"), ROWS, ""),
    "line ends of Windows": ("a.csv", table_text(end="\r\n"), ROWS, ""),
    "line ends of an old Mac": ("a.csv", table_text(end="\r"), ROWS, ""),
    "a byte-order mark": ("a.csv", table_text().encode("utf-8-sig"), ROWS, ""),
    "cp1252": ("a.csv", table_text(FRENCH).encode("cp1252"), FRENCH, "not UTF-8 .line 2.*cp1252"),
    "UTF-16": ("a.txt", table_text(FRENCH, "\t").encode("utf-16"), FRENCH, ""),
    "quotes and line ends in cells": ("a.csv", table_text(QUOTED), QUOTED, ""),
    "blank lines": ("a.csv", f"\n{table_text([('', ''), *ROWS])}\n\n", ROWS, ""),
    "loose quotes": (
        "a.tsv",
        table_text(delimiter="\t") + '"So" they say\tpos\n"Not\tneg\n',
        ROWS + LOOSE_QUOTES,
        "quotes don't pair up",
    ),
    "loose quotes that seem to pair up": (
        "a.tsv",
        table_text(delimiter="\t") + '"So\tpos\nNot"\tneg\n',
        ROWS + PAIRED_QUOTES,
        "quotes don't pair up",
    ),
    "gz": ("a.csv.gz", gzip.compress(table_text().encode()), ROWS, ""),
    "gz that doesn't say so": ("a.jsonl", gzip.compress(PER_LINE.encode()), ROWS, ""),
    "JSON, a list": ("a.json", b"\xef\xbb\xbf" + RECORDS.encode(), ROWS, ""),
    "JSON, a list on one line": ("a.jsonl", RECORDS, ROWS, ""),
    "JSON, columns": ("a.json", FRAME.to_json(), ROWS, ""),
    "JSON, lists as columns": ("a.json", json.dumps(FRAME.to_dict("list")), ROWS, ""),
    "JSON, a record per line": ("a.jsonl", PER_LINE + "\n\n", ROWS, ""),
    "JSON, a record per line, but called .json": ("a.json", PER_LINE, ROWS, ""),
    "parquet with an index": ("a.parquet", FRAME.set_index("text").to_parquet(), ROWS, ""),
}


@pytest.mark.parametrize("case", READABLE)
def test_a_file_is_read_whole(case, tmp_path):
    name, content, rows, note = READABLE[case]
    notes = []
    frame = read_table_file(write(tmp_path, name, content), notes)
    assert list(frame[["text", "label"]].itertuples(index=False, name=None)) == rows
    assert len(notes) == bool(note)
    assert pd.Series(notes).str.contains(note).all()


PACKED = gzip.compress(table_text().encode())
CHINESE = "文本,标签\n" + "".join(f"这部电影很好看，第{n}次,好\n" for n in range(40))
GREEK = "text,label\n" + "".join(f"Η ταινία ήταν {n},καλή\n" for n in range(40))
BROKEN_UTF8 = (table_text() + "é,ü").encode() + b"\xe9,ok\n"

# file name, content, what the message says
UNREADABLE = {
    "nothing": ("a.csv", "", "is empty"),
    "white space": ("a.json", " \n\n", "is empty"),
    "one column": ("a.csv", "text\n" + "good film\n" * 40, "only one column, 'text'"),
    "an unknown delimiter": ("a.csv", table_text(delimiter="~"), "one column, 'text~label'"),
    "an Excel sheet": ("a.xlsx", "PK", "is a spreadsheet.*: save the table as CSV"),
    "an Excel sheet called .csv": ("a.csv", b"\xd0\xcf\x11\xe0\0\0", "is a file of an old Excel"),
    "gz that ends early": ("a.csv.gz", PACKED[:-20], "can't be read: .*download it again"),
    "gz that is damaged": ("a.csv.gz", PACKED[:40] + b"!" + PACKED[41:], "can't be read: "),
    "parquet that ends early": ("a.parquet", FRAME.to_parquet()[:-9], "can't be read: "),
    "GBK": ("a.csv", CHINESE.encode("gbk"), "line 1: .*is not UTF-8: save"),
    "Greek in one byte": ("a.csv", GREEK.encode("iso8859-7"), "line 2: .*is not UTF-8"),
    "UTF-8 with a broken character": ("a.csv", BROKEN_UTF8, "line 42: .*is not UTF-8"),
    "UTF-16 cut in a character": ("a.csv", table_text().encode("utf-16")[:-1], "is not UTF-16"),
    "a row with more cells": (
        "a.csv",
        table_text(ROWS, ";") + "one; two; three;pos\n",
        "line 42 has 4 cells, line 1 has 2. Put a text with ';' in it into",
    ),
    "broken JSON": ("a.json", '[{"text": "a",\n "label" "b"}]', "a.json, line 2: this is no table"),
    "a broken line": ("a.jsonl", PER_LINE + "\n{text: 1}", "line 42: this is no table"),
    "a broken line in .json": ("a.json", PER_LINE + "{", "line 41: this is no table"),
    "JSON, one value": ("a.json", "3", "no table in JSON .*Write records"),
    "JSON, columns of two lengths": (
        "a.json",
        '{"text": ["a", "b"], "label": ["c"]}',
        "no table in JSON .*same length",
    ),
    "JSON, too deep": ("a.json", "[" * 100_000, "no table in JSON .*recursion"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_refused_with_its_name_and_the_reason(case, tmp_path):
    name, content, message = UNREADABLE[case]
    with pytest.raises(DataError, match=f"(?s){message}") as refused:
        read_table_file(write(tmp_path, name, content), [])
    text = str(refused.value)
    assert name in text and text.endswith(".") and len(text) < 400
    assert "C error" not in text  # pandas's own words


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is a folder: name one file in it \(\.csv"):
        read_table_file(tmp_path, [])
