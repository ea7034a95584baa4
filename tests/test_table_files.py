"""Table files of every kind are read whole, or refused with what is wrong and where."""

import csv
import gzip
import io
import json
import re

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmnb.data import DataError, clean
from llmnb.table_files import read_table_file

WORDS = {"neg": "dull", "pos": "fine"}
ROWS = [(f"A {WORDS[label]} film, number {n}.", label) for n in range(20) for label in WORDS]
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])


def table_text(rows=ROWS, delimiter=",", header=("text", "label"), end="\n") -> str:
    """The rows as a program would save them."""
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return file.getvalue()


def parquet_of(*types) -> bytes:
    """The table with columns of these types of Arrow."""
    columns = []
    for index, kind in enumerate(types):
        column = pa.array([row[index].encode() for row in ROWS], pa.binary())
        is_dictionary = pa.types.is_dictionary(kind)
        columns.append(column.dictionary_encode() if is_dictionary else column.cast(kind))
    return stored(pa.table(columns, names=["text", "label"]))


def stored(table: pa.Table) -> bytes:
    pq.write_table(table, file := io.BytesIO())
    return file.getvalue()


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


FRENCH = [(f"Le film est {WORDS[y]} — « déjà vu », nº {n}.", y) for n, (_, y) in enumerate(ROWS)]
QUOTED = [(f'He said "{WORDS[y]}",\nthen; left.\n\tNo. {n}', y) for n, (_, y) in enumerate(ROWS)]
PER_LINE = FRAME.to_json(orient="records", lines=True)
RECORDS = FRAME.to_json(orient="records")

SEMICOLONS = table_text(delimiter=";", end="\r\n")
TABS = table_text(delimiter="\t")
OTHER_SIGNS = [(f"{text}; so|so", label) for text, label in ROWS]
COMMAS_IN_NUMBERS = [(text, "1,5") for text, _ in ROWS]
BACKSLASHES = [(f'He said "{text}" or, so', label) for text, label in ROWS]
BACKSLASH_LINES = table_text(BACKSLASHES).replace('""', '\\"')
SINGLE_LINES = table_text(BACKSLASHES).replace('""', '"')
PRICES = [(f"It cost 3,{n % 2}\nin all, {n}", str(n % 2)) for n in range(40)]
THANKS = [*ROWS, ("Thanks", "pos"), ("Great product\nThanks, Tom", "pos")]
PATH = [*ROWS, ("C:\\a, b\\", "pos")]
SPACED = re.sub('",(?=[np])', '", ', table_text(QUOTED))
NOT_PAIRED = "quotes don't pair up: read as part"
CODED = pa.table([[text for text, _ in ROWS], [0, 1] * 20], names=["text", "label"])
CLASSES = {"label": datasets.ClassLabel(names=["neg", "pos"]), "text": datasets.Value("string")}
METADATA = datasets.Features(CLASSES).arrow_schema.metadata


def case(content, rows=ROWS, note="", name="a.csv"):
    """A file's content, the rows that it holds, what the note says, and its name."""
    return content, rows, note, name


READABLE = {
    "commas": case(table_text()),
    "semicolons, commas in the texts": case(table_text(delimiter=";"), name="A.CSV"),
    "bars": case(table_text(delimiter="|"), name="a.txt"),
    "line ends of an old Mac": case(table_text(end="\r")),
    "cp1252": case(table_text(FRENCH).encode("cp1252"), FRENCH, "not UTF-8 .line 2.*cp1252"),
    "UTF-16": case(table_text(FRENCH, "\t").encode("utf-16"), FRENCH, name="a.txt"),
    "UTF-16 without its mark": case(table_text().encode("utf-16-le")),
    "UTF-32": case(table_text(FRENCH).encode("utf-32"), FRENCH),
    "a zero byte far down": case(
        table_text([*ROWS * 9, ("a\0b", "pos")]), [*ROWS * 9, ("a b", "pos")], "1, .* in line 362"
    ),
    "quotes and line ends in cells": case(table_text(QUOTED), QUOTED),
    "spaces after the delimiter": case(SPACED, QUOTED),
    "blank lines": case(f"\n{table_text([('', ''), *ROWS])}\n\n"),
    "such a line with a rare delimiter": case('"sep=~"\n' + table_text(delimiter="~")),
    "other signs in the header": case(table_text(header=("text (short; a|b)", "a|b"))),
    "other signs in every text": case(table_text(OTHER_SIGNS), OTHER_SIGNS),
    "decimal commas": case(table_text(COMMAS_IN_NUMBERS, ";"), COMMAS_IN_NUMBERS),
    "a title above, as Excel saves it": case("Films;\n;\n" + SEMICOLONS, note="out: 1, 'Films'"),
    "a title above a blank line": case("My films\n\n" + table_text(), note="out: 1, 'My films'"),
    "a delimiter at the rows' ends": case(table_text([(*row, "") for row in ROWS])),
    "two stray quotes that hide rows": case(
        table_text() + '"So,pos\nbad,neg\nNot 5",neg\n',
        [*ROWS, ('"So', "pos"), ("bad", "neg"), ('Not 5"', "neg")], NOT_PAIRED,
    ),
    "a quote that isn't closed": case(
        table_text() + '"So,pos\n', [*ROWS, ('"So', "pos")], NOT_PAIRED
    ),
    "stray quotes among tabs": case(
        TABS + '"So" they say\tpos\n"Not\tneg\n',
        [*ROWS, ('"So" they say', "pos"), ('"Not', "neg")], NOT_PAIRED, "a.tsv",
    ),
    "a stray quote before an empty cell": case(
        'text\tlabel\tnote\n"great film\tpos\t\n"bad\t\tx\nso\tneg\ty\n',
        [('"great film', "pos"), ('"bad', ""), ("so", "neg")], NOT_PAIRED, "a.tsv",
    ),
    "backslashes before quotes": case(BACKSLASH_LINES, BACKSLASHES, "are written .*read as quotes"),
    "quotes that aren't doubled": case(SINGLE_LINES, BACKSLASHES, NOT_PAIRED),
    "a comment above": case("# from my film club\n" + table_text(), note="from my film club"),
    "texts that end lines with numbers": case(table_text(PRICES), PRICES),
    "a line that begins as another row": case(table_text(THANKS), THANKS),
    "a backslash at the end of a text": case(table_text(PATH), PATH),
    "gz that doesn't say so": case(gzip.compress(PER_LINE.encode()), name="a.jsonl"),
    "JSON, a list": case(b"\xef\xbb\xbf" + RECORDS.encode(), name="a.json"),
    "JSON, columns": case(FRAME.to_json(), name="a.json"),
    "JSON, rows by their number": case(FRAME.to_json(orient="index"), name="a.json"),
    "JSON, header and rows": case(FRAME.to_json(orient="split"), name="a.json"),
    "JSON, a list of lists": case(json.dumps([["text", "label"], *ROWS]), name="a.json"),
    "JSON, records in a wrapper": case(f'{{"n": 40, "data": {RECORDS}}}', name="a.json"),
    "JSON, a record per line": case(PER_LINE + "\n\n", name="a.ndjson"),
    "JSON, a record per line, but called .json": case(PER_LINE, name="a.json"),
    "JSON, one record": case(PER_LINE.splitlines()[0], ROWS[:1], name="a.json"),
    "parquet with an index": case(FRAME.set_index("text").to_parquet(), name="a.parquet"),
    "parquet of bytes": case(parquet_of(pa.binary(), pa.large_binary()), name="a.parquet"),
    "parquet of coded bytes": case(
        parquet_of(pa.string(), pa.dictionary(pa.int32(), pa.binary())), name="a.parquet"
    ),
    "parquet with names of classes": case(
        stored(CODED.replace_schema_metadata(METADATA)), name="a.parquet"
    ),
    "parquet called .csv": case(FRAME.to_parquet()),
}  # fmt: skip


@pytest.mark.parametrize("case", READABLE)
def test_a_file_is_read_whole(case, tmp_path):
    content, rows, note, name = READABLE[case]
    notes = []
    frame = read_table_file(write(tmp_path, name, content), notes)
    columns = ["text", "label"] if "text" in frame else frame.columns[:2]
    assert list(frame[columns].itertuples(index=False, name=None)) == rows
    assert len(notes) == bool(note)
    assert pd.Series(notes).str.contains(note).all()


PACKED = gzip.compress(table_text().encode())
CHINESE = "文本,标签\n" + "".join(f"这部电影很好看，第{n}次,好\n" for n in range(40))
POLISH = "text,label\n" + "".join(f"Film był żółty {n},dobry\n" for n in range(40))
BEARS = "text,label\n" + "".join(f"Bären für Käthe {n},gut\n" for n in range(40))
BROKEN_UTF8 = (table_text() + "é,ü").encode() + b"\xe9,ok\n"

# file name, content, what the message says
UNREADABLE = {
    "nothing": ("a.csv", "", "is empty"),
    "one column": ("a.csv", "text\n" + "good film\n" * 40, "only one column, 'text'"),
    "an unknown delimiter": ("a.csv", table_text(delimiter="~"), "one column, 'text~label'"),
    "an Excel sheet": ("a.xlsx", "PK", "is a spreadsheet.*: save the table as CSV"),
    "an Excel sheet called .csv": ("a.csv", b"\xd0\xcf\x11\xe0\0\0", "is a file of an old Excel"),
    "a letter": ("a.docx", b"PK\3\4", "is a document of a word processor: save the table as CSV"),
    "a web page": ("a.csv", "\n<!DOCTYPE html>\n<p>Log in, please", "is a web page"),
    "a pointer": ("a.parquet", "version https://git-lfs.github.com/spec/v1\n", "Git LFS's pointer"),
    "a stray quote among texts of two lines": (
        "a.csv",
        table_text([(text.replace(",", "\n"), label) for text, label in ROWS]) + '"So,pos\n',
        "from line 82 on, its quotes don't pair",
    ),
    "gz that ends early": ("a.csv.gz", PACKED[:-20], "can't be read: .*download it again"),
    "gz that is damaged": ("a.csv.gz", PACKED[:40] + b"!" + PACKED[41:], "can't be read: "),
    "parquet that ends early": ("a.parquet", FRAME.to_parquet()[:-9], "can't be read: "),
    "GBK": ("a.csv", CHINESE.encode("gbk"), "line 1: .*is not UTF-8: save"),
    "Polish in one byte": ("a.csv", POLISH.encode("cp1250"), "line 2: .*is not UTF-8: save"),
    "an old Mac's umlauts": ("a.csv", BEARS.encode("mac_roman"), "line 2: .*is not UTF-8: save"),
    "a letter called .csv": ("a.csv", rb"{\rtf1 a,b}", "is a document of a word processor"),
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
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_an_unreadable_file_is_refused_with_its_name_and_the_reason(case, tmp_path):
    name, content, message = UNREADABLE[case]
    with pytest.raises(DataError, match=f"(?s){message}") as refused:
        read_table_file(write(tmp_path, name, content), [])
    text = str(refused.value)
    assert name in text and text.endswith(".") and len(text) < 400
    assert "C error" not in text  # pandas's own words


def test_a_list_of_texts_is_a_table_of_one_column(tmp_path):
    path = write(tmp_path, "a.json", json.dumps([text for text, _ in ROWS]))
    assert read_table_file(path, [])["text"].tolist() == [text for text, _ in ROWS]


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is a folder: name one file in it \(\.csv"):
        read_table_file(tmp_path, [])


CELLS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(clean).filter(bool)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELLS, st.sampled_from(["pos", "2 stars", "né"])), min_size=1))
def test_a_table_is_the_same_from_every_kind_of_file(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    frame = pd.DataFrame(rows, columns=["text", "label"])
    contents = {
        "a.csv": table_text(rows),
        "a.tsv": table_text(rows, "\t"),
        "a.jsonl": frame.to_json(orient="records", lines=True, force_ascii=False),
        "a.parquet": frame.to_parquet(),
    }
    for name, content in contents.items():
        notes = []
        read = read_table_file(write(folder, name, content), notes)
        assert list(read.itertuples(index=False, name=None)) == rows and not notes, name
