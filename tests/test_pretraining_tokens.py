"""Tokens of a corpus: exact tokenizers, flat files made once, batches that need no state."""

import hashlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import tokenizers
import transformers
from conftest import ROOT, python

from llmnb import data
from llmnb.data import DataError
from llmnb.pretraining import tokens
from llmnb.pretraining.tokens import batch_at, prepare, train_tokenizer, write_tokens

KINDS = ["bpe", "bytes", "characters"]
HARD = [
    "plain words, plain words",
    "  leading and trailing spaces \t ",
    "\n\nnewlines\r\nof\rall kinds\u2028\x0b\x85\n",
    "a family 👩‍👩‍👧‍👦, a flag 🏳️‍🌈, a skin 👍🏽",
    "שלום \u202eright to left\u202c مرحبا",
    "e\u0301 and é, ﬁ and fi, Ⅷ, ½, 汉字, \ufeff\u200b\u00ad, \U0010ffff, \x01",
    "I don't , you 've . [UNK] ĠÂ Ċ ▁ ## <0x0A> clean up ?",
    "   ",
]
FORGED = "one<|endoftext|>two <|mask|> <|unk|>\n<|endoftext|>"


def rows(texts):
    return datasets.Dataset.from_dict({"text": list(texts)})


def written(texts, tokenizer, path, n_bytes=None):
    write_tokens(rows(texts), tokenizer, path, n_bytes)
    return np.fromfile(path, tokens.token_dtype(tokenizer))


@pytest.fixture(scope="module", params=KINDS)
def trained(request):
    return train_tokenizer([*HARD, FORGED] * 3, request.param, 400)


@pytest.fixture
def source(tmp_path):
    """100 documents, in each a character of its own."""
    path = tmp_path / "corpus.txt"
    texts = [f"Document {i}, whose own letter is {chr(0x4E00 + i)}." for i in range(100)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return str(path)


# Tokenizers


@pytest.mark.parametrize("text", [*HARD, FORGED, "".join(HARD)])
def test_decoding_gives_the_text_back(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert trained.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("kind", ["bpe", "bytes"])
def test_bytes_know_text_they_have_never_seen(kind):
    tokenizer = train_tokenizer(["x"], kind, 300)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in HARD)


def test_a_saved_tokenizer_comes_back_equal(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    back = transformers.AutoTokenizer.from_pretrained(
        tmp_path, trust_remote_code=False, local_files_only=True
    )
    assert back.backend_tokenizer.to_str() == trained.backend_tokenizer.to_str()
    assert back.special_tokens_map == trained.special_tokens_map
    for text in [*HARD, FORGED]:
        assert back(text)["input_ids"] == back([text])["input_ids"][0] == trained.encode(text)
        assert back.decode(back.encode(text)) == text


def test_text_can_not_forge_a_special_token(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    back = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    for tokenizer in (trained, back):
        for ids in (tokenizer.encode(FORGED), tokenizer([FORGED])["input_ids"][0]):
            assert not set(ids) & set(tokenizer.all_special_ids)


def test_special_tokens_stand_first(trained):
    names = trained.special_tokens_map
    end = "<|endoftext|>"
    assert names["bos_token"] == names["eos_token"] == names["pad_token"] == end
    assert (trained.eos_token_id, trained.mask_token_id, trained.mask_token) == (0, 1, "<|mask|>")
    assert sorted(trained.get_vocab().values()) == list(range(len(trained)))


def test_the_size_of_the_vocabulary():
    texts = ["the cat and the hat and the bat"] * 9
    assert len(train_tokenizer(texts, "bpe", 265)) == 265
    assert len(train_tokenizer(texts, "bytes", 1000)) == len(train_tokenizer(texts, "bytes")) == 258
    assert len(train_tokenizer(["a", "b", "a"], "characters", 4096)) == 5


def test_the_most_frequent_characters_are_known():
    tokenizer = train_tokenizer(["ccb", "bbc", "cca"], "characters", 5)
    assert tokenizer.convert_tokens_to_ids(["<|unk|>", "c", "b"]) == [2, 3, 4]
    assert tokenizer.encode("cbac") == [3, 4, 2, 3]
    assert tokenizer.unk_token_id == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x"], "words"), "kind is 'words'; known are bpe, bytes, characters"),
        ((["x"], "bpe", 257), "vocab_size is 257; 'bpe' needs at least 258"),
        ((["x"], "characters", 3), "vocab_size is 3; 'characters' needs at least 4"),
        (([], "bpe"), "no text"),
        ((["", ""], "bytes"), "no text"),
        ((iter([]), "characters"), "no text"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments)


# Token files


def test_every_document_stands_behind_a_separator(trained, tmp_path):
    texts = [*HARD, FORGED, *HARD]
    expected = [token for text in texts for token in [0, *trained.encode(text)]]
    assert written(texts, trained, tmp_path / "x.bin").tolist() == expected
    assert write_tokens(rows(texts), trained, tmp_path / "y.bin") == len("".join(texts).encode())
    raw = (tmp_path / "y.bin").read_bytes()
    assert raw[:2] == b"\0\0" and len(raw) == 2 * len(expected)  # 16 bits each
    assert int.from_bytes(raw[2:4], "little") == expected[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "y.bin"]


@pytest.mark.parametrize("start", ["", " " * 9, "\n\n"])
def test_a_long_document_is_cut_where_it_does_not_show(tmp_path, monkeypatch, start):
    text = start + "  ".join([*HARD, FORGED] * 20)
    tokenizer = train_tokenizer([text], "bpe", 600)  # knows runs of spaces, too
    expected = [0, *tokenizer.encode(text)]
    for size in range(40, 70):  # HARD's words are shorter
        pieces = tokens._PIECE.pattern.replace("16384", str(size))
        monkeypatch.setattr(tokens, "_PIECE", tokens.re.compile(pieces))
        assert len(tokens._PIECE.findall(text)) > 40
        assert written([text], tokenizer, tmp_path / "x.bin").tolist() == expected


def test_long_documents_and_many_batches_lose_nothing(tmp_path):
    tokenizer = train_tokenizer(HARD, "bpe", 300)
    texts = ["汉" * 70_000, "word " * 20_000, *(f"number {i}" for i in range(200)), " " * 40_000]
    ids = written(texts, tokenizer, tmp_path / "x.bin")
    parts = np.split(ids, np.flatnonzero(ids == 0))
    assert len(parts[0]) == 0
    assert [tokenizer.decode(part[1:]) for part in parts[1:]] == texts


@pytest.mark.parametrize(("last", "size"), [(65_535, 2), (65_536, 4), (70_000, 4)])
def test_large_vocabularies_take_32_bits(tmp_path, last, size):
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, last + 1)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    assert written([f"w5 w{last}"], fast, tmp_path / "x.bin").tolist() == [0, 5, last]
    assert (tmp_path / "x.bin").stat().st_size == 3 * size


def test_a_foreign_tokenizer_neither_pads_nor_cuts_nor_sees_special_tokens(tmp_path):
    own = train_tokenizer(HARD, "bpe", 300)
    backend = tokenizers.Tokenizer.from_str(own.backend_tokenizer.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|mask|>", special_tokens=[("<|mask|>", 1)]
    )
    foreign = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", mask_token="<|mask|>"
    )
    assert 0 in foreign.encode(FORGED)
    foreign.backend_tokenizer.enable_truncation(3)  # as an earlier call may leave them
    foreign.backend_tokenizer.enable_padding(length=50)
    texts = [FORGED, "a", "longer than three tokens"]
    expected = [token for text in texts for token in [0, *own.encode(text)]]
    assert written(texts, foreign, tmp_path / "x.bin").tolist() == expected


@pytest.mark.parametrize("n_bytes", [1, 6, 7, 8, 500, 10_000])
def test_the_first_documents_are_those_of_joined(tmp_path, n_bytes):
    texts = ["short", "é" * 200, *(f"number {i}" for i in range(50))]
    tokenizer = train_tokenizer(texts, "bytes")
    expected = data.joined(rows(texts), n_bytes)
    ids = written(texts, tokenizer, tmp_path / "x.bin", n_bytes)
    parts = np.split(ids, np.flatnonzero(ids == 0))[1:]
    assert "".join("\0" + tokenizer.decode(part[1:]) for part in parts).encode() == expected
    size = write_tokens(rows(texts), tokenizer, tmp_path / "y.bin", n_bytes)
    assert size == len(expected) - len(parts)


def test_an_error_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["x"], "bytes")
    path = tmp_path / "x.bin"
    before = written(["old"], tokenizer, path)

    def broken(rows, n_bytes):
        yield "new " * 1000
        assert list(tmp_path.glob("*.partial")) and np.fromfile(path, "<u2").tolist() == [*before]
        raise OSError("disk full")

    monkeypatch.setattr(tokens, "_documents", broken)
    with pytest.raises(OSError, match="disk full"):
        write_tokens(rows(["new"]), tokenizer, path)
    assert np.fromfile(path, "<u2").tolist() == before.tolist()
    assert list(tmp_path.iterdir()) == [path]


MEMORY = """
import sys, threading
import datasets
from llmnb.pretraining.tokens import train_tokenizer, write_tokens
from pathlib import Path

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

tokenizer = train_tokenizer(["x"], "bytes")
rows = datasets.load_from_disk(sys.argv[1])
peak, done = anonymous(), threading.Event()
before, thread = peak, threading.Thread(target=watch)
thread.start()
write_tokens(rows, tokenizer, Path(sys.argv[1]) / "tokens.bin")
done.set()
thread.join()
print(before, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_whatever_the_size(tmp_path):
    """The process's own memory, that is: pages of mapped files are the system's to take back."""
    rises = []
    for n in (1000, 10_000):
        folder = str(tmp_path / str(n))
        rows(f"{i} " + "words and more words " * 100 for i in range(n)).save_to_disk(folder)
        result = python(f"import sys; sys.argv = ['', {folder!r}]\n{MEMORY}")
        assert result.returncode == 0, result.stderr
        before, peak = map(int, result.stdout.split())
        rises.append(peak - before)
    assert os.path.getsize(f"{folder}/tokens.bin") > 40e6
    assert rises[1] < 40e6 and rises[1] - rises[0] < 5e6, rises


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
    with pytest.raises(ValueError, match="kind is 'words'"):
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
from test_pretraining_tokens import digest
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
    with pytest.raises(DataError, match=f"{n} tokens hold no block of {block_size}"):
        tokens.validation_blocks(few, block_size)


def test_the_least_that_makes_a_block():
    few = np.arange(11, dtype=np.uint16)
    assert tokens.validation_blocks(few, 10).tolist() == [list(range(11))]
    assert sorted(batch_at(few, 0, 0, 1, 10)[0]) == list(range(11))
    assert batch_at(few, 0, 0, 1, 10).dtype == np.int64
