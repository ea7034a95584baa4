"""A corpus is prepared once, and read in blocks that need no state."""

import hashlib
import json
import signal
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import transformers
from conftest import ROOT, python

from llmnb import data
from llmnb.data import DataError
from llmnb.pretraining import tokens
from llmnb.pretraining.tokens import batch_at, prepare, train_tokenizer, write_tokens

KINDS = ["bpe", "bytes", "characters"]


def rows(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def written(texts, tokenizer, path, n_bytes=None):
    write_tokens(rows(texts), tokenizer, path, n_bytes)
    return np.fromfile(path, tokens.token_dtype(tokenizer))


@pytest.fixture
def source(tmp_path):
    """100 documents, in each a character of its own."""
    path = tmp_path / "corpus.txt"
    texts = [f"Document {i}, whose own letter is {chr(0x4E00 + i)}." for i in range(100)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return str(path)


# A prepared corpus


def test_a_corpus_is_prepared(cache, source):
    corpus = prepare(source, "characters", 4096)
    splits = data.load_corpus(source)
    decoded = corpus.tokenizer.decode(corpus.train).split("<|endoftext|>")[1:]
    assert decoded == list(splits["train"]["text"])
    known = set("".join(decoded)) | {"<|endoftext|>", "<|mask|>", "<|unk|>"}
    assert set(corpus.tokenizer.get_vocab()) == known  # nothing of validation's own letters
    assert corpus.tokenizer.unk_token_id in corpus.validation
    assert corpus.n_bytes == {
        name: sum(len(text.encode()) for text in splits[name]["text"])
        for name in ("train", "validation")
    }
    assert corpus.bytes_per_token == corpus.n_bytes["validation"] / len(corpus.validation)
    assert corpus.summary() == (
        f"train {len(corpus.train):,} tokens, validation {len(corpus.validation)}; "
        f"{corpus.bytes_per_token:.1f} bytes a token; vocabulary {len(corpus.tokenizer)}"
    )
    assert corpus.folder.parent == cache / "derived"
    for part in (corpus.train, corpus.validation):
        assert isinstance(part, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder"])
def test_a_corpus_of_any_kind(cache, tmp_path, kind):
    path = tmp_path / f"corpus.{kind}"
    texts = [f"Document {i}: größer." for i in range(60)]
    if kind == "folder":
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i}.txt").write_text(text, encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    else:
        table = datasets.Dataset.from_dict({"body": texts})
        getattr(table, f"to_{kind}")(str(path))
    corpus = prepare(str(path), "bytes", column="text" if kind == "folder" else "body")
    assert (corpus.train == 0).sum() == 48 and (corpus.validation == 0).sum() == 3


def test_only_as_much_as_is_wanted(cache, source):
    corpus = prepare(source, "characters", train_bytes=100, validation_bytes=1)
    assert 100 <= corpus.n_bytes["train"] < 150 and corpus.n_bytes["validation"] < 50
    own = [letter for letter in corpus.tokenizer.get_vocab() if "\u4e00" <= letter <= "\u4fff"]
    assert len(own) == (corpus.train == 0).sum() == 3  # trained on the same documents


def test_the_tokenizer_sees_only_so_much(cache, source, monkeypatch):
    monkeypatch.setattr(tokens, "TRAINING_BYTES", 100)
    corpus = prepare(source, "characters")
    own = [letter for letter in corpus.tokenizer.get_vocab() if "\u4e00" <= letter <= "\u4fff"]
    assert len(own) == 3 and (corpus.train == 0).sum() == 80


def test_the_second_call_makes_nothing(cache, source, monkeypatch):
    first = prepare(source, "bytes", 300)

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(tokens, "write_tokens", never)
    second = prepare(source, "bytes", 999)  # which bytes ignore
    assert second.folder == first.folder and np.array_equal(second.train, first.train)
    assert second.n_bytes == first.n_bytes
    for other in ({"train_bytes": 100}, {"validation_bytes": 100}, {"kind": "bpe"}):
        with pytest.raises(AssertionError, match="made again"):
            prepare(source, **{"kind": "bytes"} | other)


def test_what_decides_the_result_decides_the_folder(cache, source):
    before = prepare(source, "bpe", 300)
    assert prepare(source, "bpe", 301).folder != before.folder
    with open(source, "a", encoding="utf-8") as file:
        file.write("\n\nOne more document.")
    assert prepare(source, "bpe", 300).folder != before.folder


def test_a_given_tokenizer(cache, source, tmp_path, monkeypatch):
    own = train_tokenizer(["Document whose own letter"], "bpe", 270)
    own.save_pretrained(tmp_path / "own")
    monkeypatch.setattr(tokens, "train_tokenizer", None)
    corpora = [prepare(source, tokenizer=each) for each in (own, tmp_path / "own")]
    corpora.append(prepare(source, tokenizer=str(tmp_path / "own")))
    assert len({corpus.folder for corpus in corpora}) == 1
    text = data.load_corpus(source)["train"]["text"][0]
    ids = [0, *own.encode(text)]
    assert corpora[0].train[: len(ids)].tolist() == ids
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=own.backend_tokenizer, eos_token="<|endoftext|>"
    )
    assert prepare(source, tokenizer=other).tokenizer.mask_token is None


def test_ten_calls_at_once_make_it_once(cache, source, monkeypatch):
    made = []
    real = tokens.write_tokens
    monkeypatch.setattr(
        tokens, "write_tokens", lambda *given: made.append(given[2].name) or real(*given)
    )
    data.load_corpus(source)
    with ThreadPoolExecutor(10) as pool:
        folders = {each.folder for each in pool.map(lambda _: prepare(source, "bytes"), range(10))}
    assert len(folders) == 1 and made == ["train.bin", "validation.bin"]


def test_a_killed_call_leaves_nothing_half_made(cache, source):
    code = f"""
import os
from llmnb.pretraining import tokens
real = tokens.write_tokens
def dying(*given):
    real(*given)
    os.kill(os.getpid(), 9)
tokens.write_tokens = dying
tokens.prepare({source!r}, "bytes")
"""
    result = python(code, LLMNB_CACHE=str(cache))
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = [path.name for path in (cache / "derived").glob("tokens-*/")]
    assert len(left) == 1 and ".partial-" in left[0]
    corpus = prepare(source, "bytes")
    assert (corpus.train == 0).sum() == 80 and (corpus.validation == 0).sum() == 5
    assert list((cache / "derived").glob("tokens-*/")) == [corpus.folder]


def test_bad_inputs_are_refused(cache, source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="train_bytes is 0"):
        prepare(source, train_bytes=0)
    with pytest.raises(ValueError, match="validation_bytes is -1"):
        prepare(source, validation_bytes=-1)
    with pytest.raises(ValueError, match="tokenizer is 'words'"):
        prepare(source, "words")
    with pytest.raises(ValueError, match="tokenizer is a int"):
        prepare(source, tokenizer=7)
    with pytest.raises(DataError, match="no file or folder"):
        prepare(str(tmp_path / "no.txt"))
    assert not list((cache / "derived").glob("tokens-*/"))
    (tmp_path / "two.txt").write_text("one\n\ntwo")
    with pytest.raises(DataError, match="too few: nothing is left for"):
        prepare(str(tmp_path / "two.txt"))
    splits = datasets.DatasetDict(train=rows(["text"]), validation=rows([]))
    monkeypatch.setattr(data, "load_corpus", lambda *_: splits)
    with pytest.raises(DataError, match="leaves no document for validation"):
        prepare("Salesforce/wikitext")


# Blocks

POSITIONS = np.arange(1003)  # tokens that say where they stand


def epoch_of(seed, epoch, batch_size=7, block_size=10, positions=POSITIONS):
    """The rows (n_blocks, block_size + 1) of one epoch, as its batches bring them."""
    n_blocks = len(positions) // block_size
    first, last = epoch * n_blocks // batch_size, ((epoch + 1) * n_blocks - 1) // batch_size
    batches = [
        batch_at(positions, seed, index, batch_size, block_size) for index in range(first, last + 1)
    ]
    skipped = epoch * n_blocks - first * batch_size
    return np.concatenate(batches)[skipped : skipped + n_blocks]


@pytest.mark.parametrize("epoch", range(4))
def test_an_epoch_has_every_block_once(epoch):
    blocks = epoch_of(0, epoch)
    assert blocks.shape == (100, 11) and blocks.dtype == np.int64
    assert np.array_equal(blocks, (blocks[:, :1] + np.arange(11)) % 1003)
    starts = np.sort(blocks[:, 0])
    offset = int(starts.min()) if starts.min() else int(starts[starts < 10].max())
    assert 0 <= offset < 10
    assert sorted((starts - offset) % 1003) == list(range(0, 1000, 10))


def test_epochs_differ_in_order_and_borders():
    firsts = [epoch_of(0, epoch)[:, 0] for epoch in range(12)]
    orders = [tuple(first // 10) for first in firsts]
    assert len(set(orders)) == 12
    assert len({int(first[0]) % 10 for first in firsts}) > 3  # the offsets
    for order in orders:
        assert np.mean(np.diff(order) == 1) < 0.1  # neighbours are torn apart
    assert not np.array_equal(epoch_of(1, 0), epoch_of(0, 0))


@pytest.mark.parametrize("n", [1003, 1000, 1001, 11, 19])
def test_every_token_is_read_and_predicted_sooner_or_later(n):
    blocks = np.concatenate([epoch_of(5, e, positions=np.arange(n)) for e in range(60)])
    assert set(blocks[:, :-1].flat) == set(blocks[:, 1:].flat) == set(range(n))


def test_a_batch_may_span_epochs():
    small = batch_at(np.arange(35), 0, 0, 20, 10)  # 3 blocks an epoch
    expected = np.concatenate([epoch_of(0, e, positions=np.arange(35)) for e in range(7)])
    assert np.array_equal(small, expected[:20])
    assert np.array_equal(batch_at(np.arange(35), 0, 1, 3, 10), expected[3:6])


def test_only_the_rows_wanted_are_read():
    class Spy:
        asked = 0

        def __len__(self):
            return 10_000_000

        def __getitem__(self, positions):
            self.asked += positions.size
            return positions

    spy = Spy()
    batch_at(spy, 0, 123, 4, 1000)
    assert spy.asked == 4 * 1001


def digest(tokens, indices):
    batches = [batch_at(tokens, 3, index, 8, 16).tobytes() for index in indices]
    return hashlib.sha256(b"".join(batches)).hexdigest()


def test_another_process_reads_the_same():
    corpus = np.arange(5000, dtype=np.uint16)
    code = f"""
import sys
import numpy as np
sys.path.insert(0, {str(ROOT / "tests")!r})
from test_pretraining_corpus import digest
print(digest(np.arange(5000, dtype=np.uint16), [70, 71, 3, 500]))
"""
    result = python(code, PYTHONHASHSEED="7")
    assert result.returncode == 0, result.stderr
    for index in range(100):  # another past
        batch_at(corpus, 3, index, 8, 16)
    assert result.stdout.split()[-1] == digest(corpus, [70, 71, 3, 500])


@pytest.mark.parametrize(("n", "n_blocks", "left"), [(1003, 100, 2), (1001, 100, 0), (1000, 99, 9)])
def test_validation_predicts_every_token_but_the_first_once(n, n_blocks, left):
    blocks = tokens.validation_blocks(np.arange(n, dtype=np.uint16), 10)
    assert blocks.shape == (n_blocks, 11) and blocks.dtype == np.int64
    assert np.array_equal(blocks[:, 1:].ravel(), np.arange(1, n - left))
    assert np.array_equal(blocks[1:, 0], blocks[:-1, -1])


@pytest.mark.parametrize(("n", "block_size"), [(0, 10), (10, 10), (5, 10), (50, 0), (50, -1)])
def test_too_few_tokens_for_a_block_are_refused(n, block_size):
    few = np.arange(n)
    with pytest.raises(DataError, match=f"{n} tokens hold no block of {block_size}"):
        batch_at(few, 0, 0, 2, block_size)
    with pytest.raises(DataError, match=f"{n} tokens of the validation split hold no block of"):
        tokens.validation_blocks(few, block_size)


def test_the_least_that_makes_a_block():
    few = np.arange(11, dtype=np.uint16)
    assert tokens.validation_blocks(few, 10).tolist() == [list(range(11))]
    assert sorted(batch_at(few, 0, 0, 1, 10)[0]) == list(range(11))
    assert batch_at(few, 0, 0, 1, 10).dtype == np.int64
