"""Words and fusion by hand, an index that updates what changed; the real encoder."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import python

from llmnb import handbook, models
from llmnb.applications import ApplicationError, documents, retrieval
from llmnb.applications.retrieval import Index


@pytest.fixture
def folder(tmp_path):
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.md").write_text("# A\n\n## Good\n\nA good film.\n\n## Bad\n\nA bad film.")
    (docs / "b.txt").write_text("a b c")
    (docs / "sub" / "c.txt").write_text("d e f")
    return docs


@pytest.fixture
def build(folder, tiny_models, cache):
    """Builds the index of the folder with the tiny encoder, and keeps its messages."""

    def build(encoder=str(tiny_models / "encoder")):
        messages = []
        index = Index.build(folder, encoder, messages.append)
        index.messages = messages
        return index

    return build


def test_what_is_left_out_is_listed(folder, build, monkeypatch):
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 3_000_000)
    (folder / "empty.md").touch()
    (folder / "huge.txt").write_bytes(b"a " * 2_000_000)
    (folder / "binary.txt").write_bytes(b"\x89PNG\0\0")
    (folder / "latin.txt").write_bytes(b"caf\xe9 good")
    (folder / "marks.md").write_text("***")
    (folder / "broken.py").write_text("def (")
    (folder / "scan.png").touch()
    (folder / "scan2.PNG").touch()
    (folder / "._a.md").touch()
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("hidden")
    (folder / "sub" / "loop").symlink_to(folder)
    (folder / "link.md").symlink_to(folder / "a.md")
    os.mkfifo(folder / "pipe.txt")
    index = build()
    assert dict(index.skipped) == {
        ".git": "hidden, or a link: not entered",
        "sub/loop": "hidden, or a link: not entered",
        "empty.md": "empty",
        "huge.txt": "too large: 4 MB; the most is 3",
        "link.md": "a link, or not a regular file",
        "pipe.txt": "a link, or not a regular file",
        "*.png": "not read: 2 files",
        "hidden files": "not read: 1 file",
        "binary.txt": "left out: binary.txt is not a text file: save it as plain text (UTF-8).",
        "latin.txt": "not UTF-8 (line 1), so read as cp1252 (Western): check the accented letters.",
        "marks.md": "left out: there is no word in it",
        "broken.py": "read as plain text: it doesn't parse as .py (SyntaxError)",
    }
    names = {p.file for p in index.passages}
    assert names == {"a.md", "b.txt", "sub/c.txt", "latin.txt", "broken.py"}
    assert dict(build().skipped) == dict(index.skipped)  # from the kept index as well


def test_a_file_that_cannot_be_read_is_listed(build, monkeypatch):
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert ("b.txt", "can't be read: Permission denied") in build().skipped


def test_a_second_start_reads_and_embeds_nothing(build, monkeypatch):
    first = build()
    assert first.embedded == 3 and first.messages == ["Indexing 3 new or changed files of 3"]
    monkeypatch.setattr(models, "load_encoder", None)
    monkeypatch.setattr(Path, "read_bytes", None)
    again = build()
    assert again.embedded == 0 and again.messages == []
    assert again.passages == first.passages
    np.testing.assert_array_equal(again.vectors, first.vectors)


def index_texts(index):
    return [retrieval._index_text(passage) for passage in index.passages]


def test_only_a_file_with_other_bytes_is_embedded_again(folder, build, monkeypatch):
    first = build()
    before = (folder / "b.txt").stat()
    (folder / "b.txt").write_text("c b a")  # as long as before, and as old
    os.utime(folder / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = build()
    assert changed.embedded == 1 and changed.passages[2].text == "c b a"
    assert not np.allclose(changed.vectors[2], first.vectors[2])
    np.testing.assert_array_equal(changed.vectors[[0, 1, 3]], first.vectors[[0, 1, 3]])
    np.testing.assert_allclose(changed.vectors, changed.embed(index_texts(changed)), atol=1e-6)
    os.utime(folder / "b.txt", ns=(1, 1))
    assert build().embedded == 0
    monkeypatch.setattr(Path, "read_bytes", None)
    assert build().embedded == 0  # its new time is kept


def test_deleted_and_new_files_are_followed(folder, build):
    build()
    (folder / "a.md").unlink()
    (folder / "a0.txt").write_text("g h")
    for n_new in (1, 0):
        index = build()
        assert index.embedded == n_new
        assert [p.file for p in index.passages] == ["a0.txt", "b.txt", "sub/c.txt"]
        np.testing.assert_allclose(index.vectors, index.embed(index_texts(index)), atol=1e-6)


def test_a_killed_build_keeps_what_it_finished(build, monkeypatch):
    monkeypatch.setattr(retrieval, "FILES_PER_SAVE", 1)
    embed, calls = Index.embed, []

    def embed_two(self, texts):
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(self, texts)

    monkeypatch.setattr(Index, "embed", embed_two)
    with pytest.raises(KeyboardInterrupt):
        build()
    assert build().embedded == 1


def test_a_damaged_index_is_made_again_with_a_message(build, cache):
    build()
    (store,) = (cache / "derived").glob("index-*.npz")
    whole = store.read_bytes()
    for damaged in (whole[: len(whole) // 2], b""):
        store.write_bytes(damaged)
        index = build()
        assert "is damaged" in index.messages[0] and index.embedded == 3
    with store.open("wb") as file:
        np.savez(file, files=np.array([{}], dtype=object), vectors=np.zeros(1))
    assert "is damaged" in build().messages[0]  # a pickle is never opened


def test_another_encoder_has_an_index_of_its_own(build, tiny_models, tmp_path):
    build()
    other = shutil.copytree(tiny_models / "encoder", tmp_path / "other")
    assert build(str(other)).embedded == 3
    assert build().embedded == 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "is no folder and no file"),
        ("sub", r"holds no text in .md.*\*.jpg: not read: 1 file"),
    ],
)
def test_a_folder_without_text_is_refused(folder, cache, tiny_models, name, message):
    (folder / "sub" / "c.txt").rename(folder / "sub" / "b.jpg")
    with pytest.raises(ApplicationError, match=message):
        Index.build(folder / name, str(tiny_models / "encoder"))


def test_the_passage_with_the_identifier_is_first(cache, tiny_models, tmp_path):
    folder = tmp_path / "invoices"
    folder.mkdir()
    for n in range(30):
        customer = f"The customer of this invoice is {'abcdefgh'[n % 8]} {'e f ' * (n % 5)}."
        (folder / f"{n}.txt").write_text(f"Invoice 2024000{n}7. {customer}")
    index = Index.build(folder, str(tiny_models / "encoder"), lambda line: None)
    for n in (3, 17, 29):
        (hit,) = index.search(f"Who is the customer of invoice 2024000{n}7?", k=1)
        assert hit.passage.file == f"{n}.txt"


def test_passages_have_no_invisible_characters_and_one_form_of_a_letter(
    cache, tiny_models, tmp_path
):
    (tmp_path / "a.md").write_text("# Cafe\u0301\n\nThe do\u00adnau ba\u0301r.")
    index = Index.build(tmp_path / "a.md", str(tiny_models / "encoder"), lambda line: None)
    (passage,) = index.passages  # of a single file
    assert (passage.title, passage.text) == ("Café", "The donau bár.")


def test_ranks_are_fused_by_hand(build, monkeypatch):
    index = build()
    cosines = np.array([[0.9, 0.5, 0.1, -0.2]], np.float32)  # good, bad, b.txt, c.txt
    index.__dict__["vectors"] = np.eye(4, dtype=np.float32)
    monkeypatch.setattr(index, "embed", lambda texts: cosines)
    hits = index.search("b bad", k=4)
    expected = {
        "b": (3, 1),  # three times in title, heading and text
        "Bad": (2, 2),
        "Good": (1, 4),  # no word in common: the last place, with the other one
        "c": (4, 4),
    }
    assert [hit.passage.heading for hit in hits] == list(expected)
    for hit, ranks in zip(hits, expected.values(), strict=True):
        assert hit.fused == pytest.approx(sum(1 / (60 + rank) for rank in ranks))
    assert len(index.search("b bad", k=99)) == 4 and len(index.search("b bad", k=1)) == 1


def test_many_questions_are_answered_as_one_by_one(build):
    index = build()
    questions = ["good film", "a b", "\U0001f600", "e"]
    for question, hits in zip(questions, index.search_all(questions), strict=True):
        alone = index.search(question)
        assert [h.passage for h in hits] == [h.passage for h in alone]
    assert index.search_all([]) == []


def test_no_question_is_refused(build):
    with pytest.raises(ApplicationError, match="Text 0 is empty or isn"):
        build().search("  ")
    with pytest.raises(ApplicationError, match="k is 0"):
        build().search("good", k=0)


def test_the_vectors_are_masked_means_of_length_one(build):
    import torch

    index = build()
    tokenizer, model = index._model
    ours = index.embed(["good film", "a"])
    for text, row in zip(["good film", "a"], ours, strict=True):
        with torch.inference_mode():
            inputs = tokenizer(text, return_tensors="pt").to(model.device)
            mean = model(**inputs).last_hidden_state[0].mean(0).cpu()
        np.testing.assert_allclose(row, (mean / mean.norm()).float(), atol=0.02)


def test_a_second_start_needs_no_torch(folder, build, tiny_models):
    build()
    code = f"""
import sys
from llmnb.applications.retrieval import Index
index = Index.build({str(folder)!r}, {str(tiny_models / "encoder")!r})
print(index.embedded, len(index.passages), "torch" in sys.modules)
"""
    assert python(code).stdout.split() == ["0", "4", "False"]


@pytest.mark.slow
def test_the_evidence_is_among_the_first_three():
    index = Index.build(handbook.FOLDER)
    questions = [q for q in handbook.questions() if q.answerable]
    texts = [question.question for question in questions]
    first = {"fused": [[hit.passage for hit in hits] for hits in index.search_all(texts, k=3)]}
    by_meaning = index.embed(texts) @ index.vectors.T  # (questions, passages)
    for name, scores in (("meaning", by_meaning), ("words", index.bm25.scores(texts))):
        order = np.argsort(-scores, axis=1)[:, :3]
        first[name] = [[index.passages[number] for number in row] for row in order]
    share = {}
    for name, rows in first.items():
        found = [
            question.evidence in {passage.id.replace(".md#", "#") for passage in row}
            for question, row in zip(questions, rows, strict=True)
        ]
        share[name] = np.mean(found)
    assert share["fused"] >= 0.95 and share["fused"] > max(share["meaning"], share["words"])
