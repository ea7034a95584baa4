"""Tokens of a corpus: exact tokenizers, flat files made once, batches that need no state."""

import os
import sys

import datasets
import numpy as np
import pytest
import tokenizers
import transformers
from conftest import python

from llmnb import data
from llmnb.pretraining import tokens
from llmnb.pretraining.tokens import train_tokenizer, write_tokens

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
    # The allocator varies by some megabytes; what grows with the file would grow by 36 or more.
    assert rises[1] < 40e6 and rises[1] - rises[0] < 10e6, rises
