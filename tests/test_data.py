"""Cleaning, the one split rule, and reading a stranger's files."""

import gzip
import json
import os

import datasets
import pandas as pd
import pytest
from conftest import python
from hypothesis import given
from hypothesis import strategies as st

from llmnb import data
from llmnb.data import DataError


def rows(texts, labels=None):
    columns = {"text": list(texts)}
    return datasets.Dataset.from_dict(columns | ({"label": labels} if labels else {}))


def test_clean():
    assert data.clean("a <br /><br/>b\x00\x07\u200b  c\u00a0 d\r\n") == "a\n\nb c d"
    assert data.clean("  汉字 é ☃ ") == "汉字 é ☃"
    assert data.clean("a\rb\x0bc\fd\u2028e\u2029f\x85g\t\x1fh") == "a\nb\nc\nd\ne\nf g h"


WORD = st.text(
    st.characters(categories=["L", "N", "P"]).filter(lambda c: c not in "<>"), min_size=1
)
SEPARATORS = st.text(st.characters(categories=["Cc", "Z"]) | st.just("\u200b"), min_size=1)


@given(st.lists(st.tuples(WORD, SEPARATORS)))
def test_cleaning_joins_no_two_words(parts):
    text = "".join(word + separator for word, separator in parts)
    assert data.clean(text).split() == [word for word, _ in parts]


def test_split_is_stratified_stable_and_disjoint():
    texts = [f"text number {i}" for i in range(1000)]
    labels = [int(i % 5 == 0) for i in range(1000)]
    parts = data.split(rows(texts, labels), label="label")
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 800,
        "validation": 50,
        "test": 150,
    }
    for part in parts.values():
        assert abs(sum(part["label"]) / len(part) - 0.2) < 0.001
    seen = [text for part in parts.values() for text in part["text"]]
    assert sorted(seen) == sorted(texts)
    # the rows' order doesn't matter, only their texts
    shuffled = data.split(rows(texts[::-1], labels[::-1]), label="label")
    assert list(shuffled["test"]["text"]) == list(parts["test"]["text"])


def test_a_row_added_later_moves_hardly_any_other():
    texts = [f"text number {i}" for i in range(1000)]
    before = set(data.split(rows(texts))["test"]["text"])
    after = set(data.split(rows([*texts, "one more"]))["test"]["text"])
    assert len(before - after) <= 1


def test_duplicates_never_straddle_a_split():
    texts = [f"text {i}" for i in range(200)]
    noisy = [*texts, *(f"  TEXT   {i} " for i in range(200)), "ｔext 7", "te\u00adxt 9"]
    parts = data.split(rows(noisy))
    prints = [{data.fingerprint(t) for t in part["text"]} for part in parts.values()]
    assert sum(map(len, parts.values())) == 200
    assert not (prints[0] & prints[1] or prints[0] & prints[2] or prints[1] & prints[2])


def test_too_few_rows_are_refused():
    with pytest.raises(DataError, match="too few"):
        data.split(rows(["a", "b", "A "]))


def test_the_splits_of_a_sorted_table_begin_mixed():
    labels = [0] * 500 + [1] * 500  # as IMDb comes
    parts = data.split(rows([f"text {i}" for i in range(1000)], labels), label="label")
    assert 0.3 < sum(parts["train"][:100]["label"]) / 100 < 0.7


def test_a_given_test_split_is_kept_apart_from_train():
    own, train = rows(["b", "a", "A ", "shared", "c"]), rows(["x", "SHARED"])
    rest = data.apart(own, train)["text"]
    assert sorted(rest) == ["a", "b", "c"]
    assert list(rest) == sorted(rest, key=data.fingerprint)


@pytest.mark.slow
def test_the_real_reviews():
    imdb = data.load_reviews("imdb")
    sizes = {name: len(part) for name, part in imdb.items()}
    assert sizes == {"train": 19_922, "validation": 1_244, "test": 3_736}
    prints = {name: {data.fingerprint(t) for t in part["text"]} for name, part in imdb.items()}
    assert sum(map(len, prints.values())) == len(set.union(*prints.values())) == 24_902
    for part in imdb.values():
        assert abs(sum(part["label"]) / len(part) - 0.5) < 0.01
        assert not any("<br" in text or "\x00" in text for text in part["text"])
    assert len(data.load_reviews("rotten_tomatoes")["test"]) == 1_280


def test_unknown_reviews_are_refused():
    with pytest.raises(DataError, match="Did you mean 'imdb'"):
        data.load_reviews("imbd")


DOCUMENTS = [f"Document {i}: größer, 汉字, a <br /> break." for i in range(95)]
DOCUMENTS += ["NA", "None", "null", "nan", "n/a"]  # which pandas takes for missing cells
PER_LINE = "\n".join(json.dumps({"text": text}) for text in DOCUMENTS)
COLUMN = [f'"{text}"' for text in ["text", *DOCUMENTS]]
CORPORA = {
    "a.txt": "\n\n".join(DOCUMENTS),
    "spaces.txt": " \n".join(f"{text}\n\t" for text in DOCUMENTS),
    "form feeds.txt": "\f".join(DOCUMENTS),
    "colours.txt": "\n\n".join(f"\x1b[1;31m{text}\x1b[0m" for text in DOCUMENTS),
    "packed.txt.gz": gzip.compress("\n\n".join(DOCUMENTS).encode()),
    "a.jsonl": PER_LINE,
    "other keys.jsonl": f'\ufeff{PER_LINE}\n\n{{"text": null, "a": 1}}\n{{"b": {{}}}}',
    "a.json": f'{{"data": [{PER_LINE.replace(chr(10), ",")}]}}',
    "a.csv": "\n".join(COLUMN),
    "semicolons.csv": "\n".join(f"{number};{cell}" for number, cell in enumerate(COLUMN)),
    "a.parquet": pd.DataFrame({"text": [text.encode() for text in DOCUMENTS]}).to_parquet(),
}


@pytest.mark.parametrize("name", CORPORA)
def test_a_corpus_of_any_kind(cache, tmp_path, capsys, name):
    content = CORPORA[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    corpus = data.load_corpus(str(path))
    documents = [text for part in corpus.values() for text in part["text"]]
    assert sorted(documents) == sorted(map(data.clean, DOCUMENTS))
    again = data.load_corpus(str(path))
    assert list(again["test"]["text"]) == list(corpus["test"]["text"])
    note = f"{path}: documents without a text, left out: 2.\n"
    assert capsys.readouterr().out == (note * 2 if "keys" in name else "")


def test_of_a_folder_hidden_and_other_files_are_left_out_and_counted(cache, tmp_path, capsys):
    for i, text in enumerate(DOCUMENTS):
        (tmp_path / f"{i}.txt").write_text(text + "\n\nsecond paragraph", encoding="utf-8")
    for name in ("._3.txt", ".DS_Store", "~$a.txt", "a.bin", "empty.txt"):
        (tmp_path / name).write_bytes(b"\xff" if name != "empty.txt" else b"")
    for folder in (".git", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "note.txt").write_text("a program's")
    (tmp_path / "photo.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "again.txt").write_text(DOCUMENTS[0] + "\n\nsecond paragraph", encoding="utf-8")
    corpus = data.load_corpus(str(tmp_path))
    documents = [text for part in corpus.values() for text in part["text"]]
    assert sorted(documents) == sorted(f"{data.clean(t)}\n\nsecond paragraph" for t in DOCUMENTS)
    printed = capsys.readouterr().out
    assert "left out: photo.txt is not a text file: save it as plain text (UTF-8)." in printed
    assert "files left out: 5 hidden, 2 empty or of another kind." in printed
    assert "documents that repeat an earlier one, left out: 1." in printed


@pytest.mark.parametrize("folder", [False, True])
def test_a_novel_without_blank_lines_is_cut_into_pages(cache, tmp_path, folder):
    novel = "".join(f"Sentence {i}, größer than the last.\n" for i in range(5000))
    (tmp_path / "novel.txt").write_text(novel, encoding="utf-8")
    corpus = data.load_corpus(str(tmp_path if folder else tmp_path / "novel.txt"))
    pages = [text for part in corpus.values() for text in part["text"]]
    assert max(len(page.encode()) for page in pages) <= data.PAGE and len(pages) > 40
    assert sorted("".join(pages)) == sorted(data.clean(novel))


def test_a_changed_file_is_read_again(cache, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(DOCUMENTS), encoding="utf-8")
    data.load_corpus(str(path))
    path.write_text("\n\n".join([*DOCUMENTS, "A new document."]), encoding="utf-8")
    assert sum(map(len, data.load_corpus(str(path)).values())) == 101


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.csv", None, "There is no file"),
        ("empty.txt", b"", "holds no text: it is empty"),
        ("what.docx", b"x", "is a document of a word processor: save it as plain text"),
        ("what.bin", b"x", "what.bin is of a kind that isn't read: save it as plain text"),
        ("lines.txt", b"one\ntwo\n", "1 different texts.*a blank line ends a text"),
        ("latin.txt", "größer\n\n".encode("latin1") * 50, "nothing is left for"),
        ("two.csv", b"id,body\n1,a\n2,b\n", r"no column 'text'.*id, body"),
        ("numbers.csv", b"text\n1\n2\n", "holds only numbers"),
        ("bad.jsonl", b'{"text": \n{', "bad.jsonl can't be read as json .UTF-8.: "),
    ],
)
def test_what_cannot_be_read_is_refused(cache, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load_corpus(str(tmp_path / name))


def test_mixed_folders_are_refused(cache, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.csv").write_text("text\nb\n")
    with pytest.raises(DataError, match=r"mixes kinds of files \(a.txt and b.csv\)"):
        data.load_corpus(str(tmp_path))


def test_read_text(tmp_path):
    file = tmp_path / "x.txt"
    file.write_bytes("\ufeffgrün\r\n".encode())
    assert data.read_text(str(file)) == "grün"
    messages = {
        b"caf\xe9": "line 1: a character is not UTF-8: save it as plain text",
        b" ": "is empty",
    }
    for content, message in messages.items():
        file.write_bytes(content)
        with pytest.raises(DataError, match=message):
            data.read_text(str(file))
    with pytest.raises(DataError, match="There is no file"):
        data.read_text(str(tmp_path))


def test_chop_splits_no_character_and_loses_none():
    text = "aé汉☃" * 500
    pieces = data.chop(text, 100)
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= 100
    assert min(len(piece.encode()) for piece in pieces[:-1]) > 96
    with pytest.raises(ValueError, match="4 bytes"):
        data.chop(text, 0)


def test_blocks_and_joined():
    corpus = rows(["short", "x" * 2000, "é" * 1000, "y" * 1024])
    assert [len(b.encode()) for b in data.first_blocks(corpus, 3)] == [1024, 1024, 1024]
    with pytest.raises(DataError, match="Only 3 documents"):
        data.first_blocks(corpus, 4)
    assert data.joined(corpus, 6) == b"\0short"
    assert data.joined(corpus, 7) == b"\0short\0" + b"x" * 2000


@pytest.mark.slow
def test_memory_stays_flat_for_a_corpus_on_disk(cache, tmp_path):
    """200 MB of text, read and split by a process that is allowed far less than a copy more."""
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for i in range(40_000):
            file.write(json.dumps({"text": f"{i} " + "words and more words " * 240}) + "\n")
    code = f"""
import datasets, numpy, psutil
from llmnb import data
before = psutil.Process().memory_full_info().uss
corpus = data.load_corpus({str(path)!r})
assert sum(map(len, corpus.values())) == 40_000
print(before, psutil.Process().memory_full_info().uss)
"""
    result = python(code, LLMNB_CACHE=str(cache), MALLOC_ARENA_MAX="2")
    assert result.returncode == 0, result.stderr
    before, after = map(int, result.stdout.split()[-2:])
    assert os.path.getsize(path) > 190e6
    assert after - before < 150e6, (before, after)


def test_what_was_built_is_built_again_when_a_module_that_reads_changes():
    code = "import sys; from llmnb import data; print(*(n for n in sys.modules if 'llmnb.' in n))"
    imported = {name.removeprefix("llmnb.") for name in python(code).stdout.split()}
    assert imported - {"assets", "download", "files"} == {*data.READING_MODULES}


def test_brackets_in_the_names_of_files_are_no_pattern(cache, tmp_path):
    folder = tmp_path / "corpus [old]"
    folder.mkdir()
    for name in ("b1", "b[1]"):
        rows = [json.dumps({"text": f"text {number} of {name}"}) for number in range(20)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    assert sum(map(len, data.load_corpus(str(folder)).values())) == 40
