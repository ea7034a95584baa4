"""Words and fusion by hand, an index that updates what changed; the real encoder."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import python

from llmnb import handbook, models
from llmnb.applications import ApplicationError, documents, retrieval
from llmnb.applications.retrieval import Bm25, Index, coverage, stems


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
    (folder / "binary.txt").write_bytes(b"a\0b")
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
        "link.md": "a link, or no file",
        "pipe.txt": "a link, or no file",
        "*.png": "not read: 2 files",
        "hidden files": "not read: 1 file",
        "binary.txt": "left out: it is no text, or in an unknown encoding; save it as UTF-8",
        "latin.txt": "read as Windows-1252, since it isn't UTF-8: "
        "save it as UTF-8 if letters look wrong",
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


def test_bm25_by_hand():
    bm25 = Bm25(["red boat", "red red sea and sky", "blue"], k1=1.2, b=0.75)
    mean = 8 / 3
    idf = {"red": np.log(1 + 1.5 / 2.5), "boat": np.log(1 + 2.5 / 1.5)}

    def part(word, often, length):
        return idf[word] * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * length / mean))

    expected = [part("red", 1, 2) + part("boat", 1, 2), part("red", 2, 5), 0]
    np.testing.assert_allclose(bm25.scores(["A red RED boat?"])[0], expected)
    assert bm25.scores(["?", "zebra"]).sum() == 0
    rare = Bm25(["a-17 boat", "a-18 boat"])
    n17, boat = (rare.vectorizer.vocabulary_[term] for term in ("a-17", "boat"))
    assert rare.idf[n17] == pytest.approx(2 * np.log(2)) and rare.idf[boat] < 0.2


def test_words_are_cut_to_stems_and_identifiers_never():
    words = "pretraining pretrained pays pay classes class stopping stop policies policy uses used"
    pairs = stems(words)
    assert pairs[::2] == pairs[1::2] and len(set(pairs)) == 6 and max(map(len, pairs)) == 6
    identifiers = ["202400037", "llmnb_cache", "1e-4", "v2.1.3", "a-17", "c#"]
    assert [term for term in stems(", ".join(identifiers)) if term in identifiers] == identifiers
    assert stems("猫在") == ["猫", "在"]


def test_a_words_weight_is_the_same_in_a_small_folder_and_a_large_one():
    small = Bm25(["The tenant pays the deposit."])
    large = Bm25(["The tenant pays the deposit."] + ["The sea is blue."] * 999)
    question = "How much is the deposit that a tenant named Oyl pays?"
    for bm25 in (small, large):
        weights = bm25.term_weights(question)
        assert set(weights) == {"deposi", "tenant", "pai", "oyl", "nam"}
        assert weights["pai"] < weights["deposi"] <= weights["oyl"] < 1.5 * weights["pai"]
        share = coverage(weights, set(stems("A tenant has to pay a deposit.")))
        assert share == pytest.approx(0.64, abs=0.02)
    assert coverage({}, {"deposi"}) == 0
    weights = small.term_weights("a 24-month lease of A-17")
    assert set(weights) == {"24-month", "leas", "a-17"}
    assert coverage(weights, {"24", "month", "leas"}) == coverage(weights, {"24-month", "leas"})


def test_identifiers_and_names_that_no_text_has_are_missing():
    bm25 = Bm25(["Invoice 202400037 was paid by Ines Vogt, 24 months ago, for A-17."])
    assert bm25.missing("Who paid invoice 202400037 for Ines in the 24-month term?") == []
    assert bm25.missing("Who paid invoice 202400999?") == ["202400999"]
    assert bm25.missing("When did Olga pay 12 euros for A-18?") == ["a-18", "Olga"]
    assert bm25.missing("Wann war in Bonn die Rechnung bezahlt?") == []  # German nouns


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
    assert [(h.passage.heading, h.ranks) for h in hits] == [
        ("b", (3, 1)),  # three times in title, heading and text
        ("Bad", (2, 2)),
        ("Good", (1, 4)),  # no word in common: the last place, with the other one
        ("c", (4, 4)),
    ]
    for hit in hits:
        assert hit.fused == pytest.approx(sum(1 / (60 + rank) for rank in hit.ranks))
    assert [h.score for h in hits] == pytest.approx([0.1, 0.5, 0.9, 0])
    assert hits[0].words > hits[1].words > hits[2].words == hits[3].words == 0
    assert len(index.search("b bad", k=99)) == 4 and len(index.search("b bad", k=1)) == 1


def test_many_questions_are_answered_as_one_by_one(build):
    index = build()
    questions = ["good film", "a b", "\U0001f600", "e"]
    for question, hits in zip(questions, index.search_all(questions), strict=True):
        alone = index.search(question)
        assert [h.passage for h in hits] == [h.passage for h in alone]
        assert [h.score for h in hits] == pytest.approx([h.score for h in alone], abs=1e-6)
    assert index.search_all([]) == []


def test_no_question_is_refused(build):
    with pytest.raises(ApplicationError, match="Text 0 is empty or no text"):
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
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
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
    results = index.search_all([q.question for q in questions], k=len(index.passages))
    ranks = []  # fused, by meaning, by words
    for question, hits in zip(questions, results, strict=True):
        ids = [hit.passage.id.replace(".md#", "#") for hit in hits]
        fused_rank = ids.index(question.evidence)
        ranks.append((fused_rank + 1, *hits[fused_rank].ranks))
    fused, meaning, words = (np.array(ranks) <= 3).mean(axis=0)
    assert fused >= 0.95 and fused > max(meaning, words)
