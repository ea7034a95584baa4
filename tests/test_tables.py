"""Awkward tables that can be used: what is read, what is left out and why; and each one trains."""

import csv
import gzip
import io
import json
from pathlib import Path

import datasets
import pandas as pd
import pytest
from conftest import python

from llmnb import data, fine_tuning, tables
from llmnb.data import DataError
from llmnb.tables import load_table

WORDS = {"neg": "dull", "pos": "fine"}
ROWS = [(f"A {WORDS[label]} film, number {n}.", label) for n in range(20) for label in WORDS]
BOTH = {"neg": 20, "pos": 20}


def cells(rows=ROWS, sign=",", header=("text", "label"), end="\n") -> str:
    """The rows as a program would save them."""
    file = io.StringIO()
    csv.writer(file, delimiter=sign, lineterminator=end).writerows([header, *rows])
    return file.getvalue()


def labelled(names, n=20, text="A {name} film, number {n}."):
    """n rows of each label, whose name stands in the text."""
    return [(text.format(name=name, n=i), name) for i in range(n) for name in names]


def records(rows=ROWS):
    return [{"text": text, "label": label} for text, label in rows]


def parquet(rows, **options) -> bytes:
    return pd.DataFrame(rows, columns=["text", "label"]).to_parquet(**options)


def relabelled(**labels) -> list[tuple]:
    return [(text, labels[label]) for text, label in ROWS]


def counted(names, n=20):
    return dict.fromkeys(names, n)


WIDE = [(n, text, "en", label) for n, (text, label) in enumerate(ROWS)]
FRENCH = [(f"Le film est {WORDS[b]} — « déjà vu », nº {a}.", b) for a in range(20) for b in WORDS]
LATIN = [(text.replace("—", "-"), label) for text, label in FRENCH]
QUOTED = [(f'He said "{WORDS[b]}",\nthen; left.\r\n\tNo. {a}', b) for a in range(20) for b in WORDS]
FILM = {"好评": "很好看", "差评": "太无聊"}
CHINESE = [(f"这部电影{FILM[b]}，第{a}次", b) for a in range(20) for b in FILM]
EMOJI = [(f"{b}{b} film {n} 👩‍👩‍👧", b) for n in range(20) for b in ("😀", "😡")]
FIFTY = [f"class {n:02}" for n in range(50)]
FRAME = pd.DataFrame(ROWS, columns=["text", "label"])
BLANK, NONE = "no text", "no label (empty, NaN or null)"
AGAIN, TWO = "the text and label of an earlier row", "the same text with different labels"
RARE = "labels on fewer than 18 rows: "

# file name, content, counts, rows left out, what the notes say, the columns if not text, label
GOOD = {
    "commas": ("a.csv", cells(), BOTH),
    "semicolons, commas in the texts": ("a.csv", cells(sign=";"), BOTH),
    "tabs": ("a.tsv", cells(sign="\t"), BOTH),
    "tabs in a .csv": ("a.csv", cells(sign="\t"), BOTH),
    "pipes": ("a.txt", cells(sign="|"), BOTH),
    "an ending in capitals": ("A.CSV", cells(), BOTH),
    "Windows' line ends": ("a.csv", cells(end="\r\n"), BOTH),
    "an old Mac's line ends": ("a.csv", cells(end="\r"), BOTH),
    "a byte-order mark": ("a.csv", cells().encode("utf-8-sig"), BOTH),
    "Latin-1": ("a.csv", cells(LATIN).encode("latin-1"), BOTH, {}, "not UTF-8 .line 2.*cp1252"),
    "cp1252": ("a.csv", cells(FRENCH).encode("cp1252"), BOTH, {}, "cp1252"),
    "UTF-16": ("a.txt", cells(FRENCH, "\t").encode("utf-16"), BOTH),
    "UTF-16, big end": ("a.csv", b"\xfe\xff" + cells(FRENCH).encode("utf-16-be"), BOTH),
    "quotes and line ends in cells": ("a.csv", cells(QUOTED), BOTH),
    "quotes and tabs in cells": ("a.csv", cells(QUOTED, ";"), BOTH),
    "loose quotes": ("a.tsv", cells(sign="\t") + '"So" they say\tpos\n"Not\tneg\n',
                     {"neg": 21, "pos": 21}, {}, "quotes don't pair up"),
    "loose quotes that seem to pair up": ("a.tsv", cells(sign="\t") + '"So\tpos\nNot"\tneg\n',
                                          {"neg": 21, "pos": 21}, {}, "quotes don't pair up"),
    "labels 0 and 1": ("a.csv", cells(relabelled(neg="0", pos="1")), counted("01")),
    "labels 1.0 and 2.0": ("a.csv", cells(relabelled(neg="1.0", pos="2.0")), counted("12")),
    "ten numbers, by size": ("a.csv", cells(labelled([f"{n}" for n in range(10, 0, -1)])),
                             counted([f"{n}" for n in range(1, 11)])),
    "numbers and a word, by the alphabet": ("a.csv", cells(labelled(["10", "9", "x"])),
                                            counted(["10", "9", "x"])),
    "true and false": ("a.json", json.dumps(records(relabelled(neg=False, pos=True))),
                       counted(["False", "True"])),
    "missing labels": ("a.csv", cells([("lost", ""), ("gone", "NaN"), ("off", " null"), *ROWS]),
                       BOTH, {NONE: [2, 3, 4]}),
    "missing labels make floats": ("a.parquet", parquet([("x", None), *relabelled(neg=0, pos=1)]),
                                   counted("01"), {NONE: [1]}),
    "None is a label": ("a.csv", cells(labelled(["None", "NA"])), counted(["NA", "None"])),
    "empty texts": ("a.csv", cells([("", "pos"), (" \u200b<br>\t", "neg"), *ROWS]), BOTH,
                    {BLANK: [2, 3]}),
    "the same text and label again": ("a.csv", cells([*ROWS, (ROWS[0][0].upper(), "neg")]), BOTH,
                                      {AGAIN: [42]}),
    "one text with two labels": ("a.csv", cells([*ROWS, ("x  y", "neg"), ("X y", "pos")]), BOTH,
                                 {TWO: [42, 43]}),
    "a label seen once": ("a.csv", cells([*ROWS, ("So so.", "mixed")]), BOTH,
                          {RARE + "'mixed'": [42]}),
    "17 are too few, 18 are not": ("a.csv", cells(labelled("a", 18) + labelled("b", 17) + ROWS),
                                   {"a": 18, **BOTH}, {RARE + "'b'": [*range(20, 37)]}),
    "50 classes": ("a.csv", cells(labelled(FIFTY)), counted(FIFTY)),
    "emoji": ("a.csv", cells(EMOJI), counted("😀😡")),
    "Chinese": ("评论.csv", cells(CHINESE, header=("评论", "情感")), counted(FILM), {}, "",
                ("评论", "情感")),
    "a cell of a megabyte": ("a.csv", cells([("fine words " * 95_000, "pos"), *ROWS]),
                             {"neg": 20, "pos": 21}),
    "gz": ("a.csv.gz", gzip.compress(cells().encode()), BOTH),
    "gz that doesn't say so": ("a.jsonl", gzip.compress(FRAME.to_json(
        orient="records", lines=True).encode()), BOTH),
    "an index in front": ("a.csv", FRAME.to_csv(), BOTH),
    "more columns": ("a.csv", cells(WIDE, header=("id", "review", "lang", "sentiment")), BOTH, {},
                     "", ("review", "sentiment")),
    "columns of unknown names": ("a.csv", cells([row[:2] + row[3:] for row in WIDE],
                                 header=("nr", "what they wrote", "mood")), BOTH, {}, "",
                                 ("what they wrote", "mood")),
    "other columns that are long": ("a.csv", cells([(f"{n:032x}-key", 10**14 + n, text,
                                    f"on the whole {label}") for n, text, _, label in WIDE],
                                    header=("id", "phone", "they wrote", "mood")),
                                    counted(["on the whole neg", "on the whole pos"]), {}, "",
                                    ("they wrote", "mood")),
    "spaces around the names": ("a.csv", cells(header=(" text", "label ")), BOTH),
    "two columns of one name that aren't wanted": ("a.csv", cells([(*row, "", "") for row in ROWS],
                                                   header=("text", "label", "x", "x")), BOTH),
    "cells missing at the end": ("a.csv", cells() + "only a text\n", BOTH, {NONE: [42]}),
    "blank lines": ("a.csv", "\n\n" + cells([("", ""), *ROWS, ("", ""), ("x", "")]) + "\n\n", BOTH,
                    {NONE: [44]}),
    "labels in upper and lower case": ("a.csv", cells(labelled(["Spam", "ham"]) + [
                                       (f"{n} more spam", "spam") for n in range(20)]),
                                       counted(["Spam", "ham", "spam"]), {}, "'Spam', 'spam' diff"),
    "labels with spaces and accents": ("a.csv", cells(labelled(["né ", " ne\u0301", "ok"], 20,
                                       "{name!r} {n}")), {"né": 40, "ok": 20}),
    "JSON, a list": ("a.json", json.dumps(records()), BOTH),
    "JSON, a list on one line": ("a.jsonl", json.dumps(records()), BOTH),
    "JSON with a byte-order mark": ("a.json", b"\xef\xbb\xbf" + FRAME.to_json().encode(), BOTH),
    "JSON, columns": ("a.json", FRAME.to_json(), BOTH),
    "JSON, lists as columns": ("a.json", json.dumps(FRAME.to_dict("list")), BOTH),
    "JSON, lines": ("a.jsonl", FRAME.to_json(orient="records", lines=True) + "\n\n", BOTH),
    "JSON, lines, but called .json": ("a.json", FRAME.to_json(orient="records", lines=True), BOTH),
    "JSON, records without a label": ("a.json", json.dumps([{"text": "x"}, *records()]), BOTH,
                                      {NONE: [1]}),
    "half a character in JSON": ("a.json", json.dumps(records([*ROWS, ("\ud800!", "pos")])),
                                 {"neg": 20, "pos": 21}),
    "mixed types": ("a.json", json.dumps(records(relabelled(neg="no", pos=1))),
                    counted(["1", "no"]), {}, "column 'label' mixes int, str"),
    "parquet": ("a.parquet", parquet(ROWS), BOTH),
    "parquet with an index": ("a.parquet", FRAME.set_index("text").to_parquet(), BOTH),
    "parquet with categories": ("a.parquet", FRAME.astype("category").to_parquet(), BOTH),
}  # fmt: skip


def table_of(tmp_path, file, content, **columns):
    path = tmp_path / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_table(path, **columns)


@pytest.mark.parametrize("case", GOOD)
def test_an_awkward_table_is_read_and_trains(case, tmp_path):
    file, content, counts, *more = GOOD[case]
    dropped, note, columns = (*more, *[{}, "", ("text", "label")][len(more) :])
    table = table_of(tmp_path, file, content)
    assert (table.text_column, table.label_column) == columns
    assert list(table.counts().items()) == list(counts.items())
    assert table.dropped == dropped
    assert len(table.notes) == bool(note)
    assert table.name == file
    shown = table.summary()
    for told in (repr(columns[0]), repr(columns[1]), *dropped, *table.notes):
        assert told in shown
    assert pd.Series([shown]).str.contains(note or file).all()
    splits = table.splits()
    assert all(set(part["label"]) == set(range(len(counts))) for part in splits.values())
    result = fine_tuning.run("tfidf", splits, table.label_names)
    assert result.accuracy.value > 0.9


def test_the_texts_are_whole(tmp_path):
    texts = table_of(tmp_path, "a.csv", cells(QUOTED)).rows["text"][:]
    assert texts == [data.clean(text) for text, _ in QUOTED] and texts[0].count("\n") == 2
    for encoding in ("cp1252", "utf-16"):
        texts = table_of(tmp_path, "b.csv", cells(FRENCH).encode(encoding)).rows["text"][:]
        assert texts == [text for text, _ in FRENCH]
    last = table_of(tmp_path, "c.tsv", cells(sign="\t") + '"Not\tneg\n').rows["text"][-1]
    assert last == '"Not'


def test_where_two_columns_could_be_the_text_it_is_named(tmp_path):
    rows = [(f"Title: {text}", text, label) for text, label in ROWS]
    content = cells(rows, header=("headline", "story", "desk"))
    with pytest.raises(DataError, match=r"could be the text: 'headline', 'story'.*text_column"):
        table_of(tmp_path, "a.csv", content)
    table = table_of(tmp_path, "a.csv", content, text_column="story")
    assert (table.text_column, table.label_column) == ("story", "desk")
    assert table.rows["text"][0] == ROWS[0][0]
    assert table_of(tmp_path, "a.csv", content, text_column="story", label_column="desk").counts()


def test_the_summary_shows_all_and_no_control_characters(tmp_path):
    evil = "\x1b[2J\x1b[31mred\u202e\nx"
    rows = [*ROWS, *labelled([evil], 20), ("", "pos"), ("once", "\x1b]0;rare")]
    shown = table_of(tmp_path, "a.csv", cells(rows, header=("review", "mood"))).summary()
    assert all(char.isprintable() or char == "\n" for char in shown)
    assert "\\x1b[31mred" in shown and "\\x1b]0;rare" in shown
    assert "60 rows in 3 classes" in shown and "'review'" in shown and "'mood'" in shown
    assert sum(line.endswith("20 rows  33.3%") for line in shown.splitlines()) == 3
    assert "Rows left out: 1 (62), no text." in shown
    many = table_of(tmp_path, "b.csv", cells(labelled(FIFTY))).summary()
    assert all(name in many for name in FIFTY)


def test_the_fingerprint_is_of_the_content(tmp_path):
    one = table_of(tmp_path, "a.csv", cells(FRENCH)).fingerprint()
    frame = pd.DataFrame(FRENCH[::-1], columns=["text", "label"])
    others = {
        "b.csv": cells(FRENCH[::-1], ";", ("review", "mood"), "\r\n").encode("cp1252"),
        "c.jsonl": frame.to_json(orient="records", lines=True),
        "d.parquet": frame.sample(frac=1, random_state=0).to_parquet(),
        "e.csv": cells([*FRENCH, ("", "neg"), FRENCH[3]]),
    }
    assert len(one) == 12
    assert {table_of(tmp_path, *each).fingerprint() for each in others.items()} == {one}
    swapped = [(text, "neg" if label == "pos" else "pos") for text, label in FRENCH]
    for rows in (FRENCH[1:], swapped, [("Other.", "neg"), *FRENCH[1:]]):
        assert table_of(tmp_path, "f.csv", cells(rows)).fingerprint() != one


def test_numbers_give_one_fingerprint_in_every_format(tmp_path):
    rows = [(text, int(label == "pos")) for text, label in ROWS]
    frame = pd.DataFrame(rows, columns=["text", "label"])
    prints = {
        table_of(tmp_path, "a.csv", cells(rows)).fingerprint(),
        table_of(tmp_path, "b.csv", frame.astype({"label": float}).to_csv()).fingerprint(),
        table_of(tmp_path, "c.json", frame.to_json()).fingerprint(),
        table_of(tmp_path, "d.parquet", frame.to_parquet()).fingerprint(),
    }
    assert len(prints) == 1


def test_minimum_is_the_split_rules():
    """From MINIMUM rows on no part of a class is empty."""
    empty = []
    for n in range(3, 80):
        rows = {"text": [f"{i}" for i in range(n + 100)], "label": [0] * n + [1] * 100}
        parts = data.split(datasets.Dataset.from_dict(rows), label="label")
        empty += [n] * (not all(0 in part["label"] for part in parts.values()))
    assert max(empty) + 1 == tables.MINIMUM


def test_a_data_set_of_the_hub(monkeypatch):
    def fetched(name):
        names = datasets.ClassLabel(names=["neg", "pos"])
        kinds = datasets.Features({"text": datasets.Value("string"), "label": names})
        rows = [*ROWS, ("nobody knows", -1)]
        train = datasets.Dataset.from_list(records(rows), features=kinds)
        return datasets.DatasetDict({"test": train.select([0]), "train": train})

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", fetched)
    table = load_table("owner/reviews")
    assert table.name == "owner/reviews" and table.counts() == BOTH
    assert table.dropped == {NONE: [41]}
    assert "only 'train' is used" in table.summary() and "test, train" in table.summary()


@pytest.mark.slow
@pytest.mark.parametrize("source", tables.REVIEWS)
def test_the_projects_reviews_keep_their_splits(source):
    table, own = load_table(source), data.load_reviews(source)
    assert {name: part["text"][:] for name, part in table.splits().items()} == {
        name: part["text"][:] for name, part in own.items()
    }
    assert table.label_names == ("negative", "positive") and source in table.summary()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's memory figures")
def test_a_million_rows(tmp_path):
    done = python(f"""
import json, re
from pathlib import Path
from llmnb.tables import load_table
with open({str(tmp_path / "a.csv")!r}, "w") as file:
    file.write("id,review,sentiment\\n")
    for n in range(1_000_000):
        words = " ".join(f"word{{n * k % 4999}}" for k in (3, 7, 31, 127, 8191, 131071))
        file.write(f"{{n}},{{words}} and twelve more characters {{n}},{{('neg', 'pos')[n % 2]}}\\n")
table = load_table({str(tmp_path / "a.csv")!r})
status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory too
megabytes = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) / 1024
print(json.dumps([megabytes, table.counts(), len(table.summary())]))
""")
    assert done.returncode == 0, done.stderr
    megabytes, counts, _ = json.loads(done.stdout.splitlines()[-1])
    assert counts == {"neg": 500_000, "pos": 500_000}
    assert megabytes < 2000, "measured: 1,333"
