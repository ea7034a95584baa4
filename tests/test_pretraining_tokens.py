"""Tokens of a corpus: exact tokenizers, flat files written once, and blocks in random order."""

import signal
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest
import tokenizers
import transformers
from conftest import python

from llmnb import data
from llmnb.data import DataError
from llmnb.pretraining import tokens
from llmnb.pretraining.tokens import prepare, train_tokenizer, write_tokens

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


def token_ids(texts, tokenizer, path, n_bytes=None):
    write_tokens(rows(texts), tokenizer, path, n_bytes)
    return np.fromfile(path, tokens.token_dtype(tokenizer))


@pytest.fixture(scope="module", params=["bpe", "bytes", "characters"])
def tokenizer(request):
    return train_tokenizer([*HARD, FORGED] * 3, request.param, 400)


@pytest.fixture
def source(tmp_path):
    """100 documents, in each a character of its ours."""
    path = tmp_path / "corpus.txt"
    texts = [f"Document {i}, whose own letter is {chr(0x4E00 + i)}." for i in range(100)]
    path.write_text("\n\n".join(texts), encoding="utf-8")
    return str(path)


def test_a_saved_tokenizer_gives_every_text_back_and_no_text_forges_a_special_token(
    tokenizer, tmp_path
):
    tokenizer.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    for text in [*HARD, FORGED, "".join(HARD)]:
        ids = tokenizer.encode(text)
        assert loaded(text)["input_ids"] == loaded([text])["input_ids"][0] == ids
        assert loaded.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
        assert not set(ids) & {tokenizer.eos_token_id, tokenizer.mask_token_id}


def test_special_tokens_stand_first(tokenizer):
    names, end = tokenizer.special_tokens_map, "<|endoftext|>"
    assert names["bos_token"] == names["eos_token"] == names["pad_token"] == end
    assert tokenizer.convert_tokens_to_ids([end, "<|mask|>"]) == [0, 1]
    assert tokenizer.mask_token == "<|mask|>"
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))


def test_the_size_of_the_vocabulary():
    unseen = train_tokenizer(["x"], "bytes")
    assert all(unseen.decode(unseen.encode(text)) == text for text in HARD)
    texts = ["the cat and the hat and the bat"] * 9
    assert len(train_tokenizer(texts, "bpe", 265)) == 265
    assert len(train_tokenizer(texts, "bytes", 1000)) == len(train_tokenizer(texts, "bytes")) == 258
    assert len(train_tokenizer(["a", "b", "a"], "characters", 4096)) == 5


def test_the_most_frequent_characters_are_known():
    tokenizer = train_tokenizer(["ccb", "bbc", "cca"], "characters", 5)
    assert tokenizer.convert_tokens_to_ids(["<|unk|>", "c", "b"]) == [2, 3, 4]
    assert tokenizer.encode("cbac") == [3, 4, 2, 3]
    assert tokenizer.unk_token_id == 2


def test_every_document_stands_behind_a_separator(tokenizer, tmp_path):
    texts = [*HARD, FORGED, *HARD]
    expected = [token for text in texts for token in [0, *tokenizer.encode(text)]]
    assert token_ids(texts, tokenizer, tmp_path / "x.bin").tolist() == expected
    assert write_tokens(rows(texts), tokenizer, tmp_path / "y.bin") == len("".join(texts).encode())
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
        assert token_ids([text], tokenizer, tmp_path / "x.bin").tolist() == expected


@pytest.mark.parametrize(("last", "size"), [(65_535, 2), (65_536, 4), (70_000, 4)])
def test_large_vocabularies_take_32_bits(tmp_path, last, size):
    words = {"<|endoftext|>": 0, **{f"w{i}": i for i in range(1, last + 1)}}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_ids([f"w5 w{last}"], fast, tmp_path / "x.bin").tolist() == [0, 5, last]
    assert (tmp_path / "x.bin").stat().st_size == 3 * size


def test_a_foreign_tokenizer_neither_pads_nor_cuts_nor_sees_special_tokens(tmp_path):
    ours = train_tokenizer(HARD, "bpe", 300)
    backend = tokenizers.Tokenizer.from_str(ours.backend_tokenizer.to_str())
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
    expected = [token for text in texts for token in [0, *ours.encode(text)]]
    assert token_ids(texts, foreign, tmp_path / "x.bin").tolist() == expected


@pytest.mark.parametrize("n_bytes", [1, 6, 7, 8, 500, 10_000])
def test_the_first_documents_are_those_of_joined(tmp_path, n_bytes):
    texts = ["short", "é" * 200, *(f"number {i}" for i in range(50))]
    tokenizer = train_tokenizer(texts, "bytes")
    expected = data.joined(rows(texts), n_bytes)
    ids = token_ids(texts, tokenizer, tmp_path / "x.bin", n_bytes)
    parts = np.split(ids, np.flatnonzero(ids == 0))[1:]
    assert "".join("\0" + tokenizer.decode(part[1:]) for part in parts).encode() == expected
    size = write_tokens(rows(texts), tokenizer, tmp_path / "y.bin", n_bytes)
    assert size == len(expected) - len(parts)


def test_a_corpus_larger_than_memory_is_written_as_it_is_read(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["x"], "bytes")
    backlogs = []

    def documents(rows, n_bytes):
        for index in range(100):
            backlogs.append(20_000 * index - (tmp_path / "x.bin").stat().st_size)
            yield "x" * 10_000

    monkeypatch.setattr(data, "first_documents", documents)
    write_tokens(None, tokenizer, tmp_path / "x.bin")
    assert len(backlogs) == 100 and max(backlogs) <= 20_000 * (tokens._PIECES_PER_BATCH + 1)


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
        f"{corpus.bytes_per_token:.1f} bytes per token; vocabulary {len(corpus.tokenizer)}"
    )
    assert corpus.folder.parent == cache / "derived"
    for part in (corpus.train, corpus.validation):
        assert isinstance(part, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 1


def test_only_as_much_as_is_wanted(cache, source):
    corpus = prepare(source, "characters", train_bytes=100, validation_bytes=1)
    assert 100 <= corpus.n_bytes["train"] < 150 and corpus.n_bytes["validation"] < 50
    own = [letter for letter in corpus.tokenizer.get_vocab() if "\u4e00" <= letter <= "\u4fff"]
    assert len(own) == (corpus.train == 0).sum() == 3  # trained on the same documents


def test_the_tokenizer_sees_only_so_much(cache, source, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENIZER_TRAINING_BYTES", 100)
    corpus = prepare(source, "characters")
    own = [letter for letter in corpus.tokenizer.get_vocab() if "\u4e00" <= letter <= "\u4fff"]
    assert len(own) == 3 and (corpus.train == 0).sum() == 80


def test_the_second_call_makes_nothing_unless_something_has_changed(cache, source, monkeypatch):
    first = prepare(source, "bytes", 300)

    def never(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(tokens, "write_tokens", never)
    second = prepare(source, "bytes", 999)  # which bytes ignore
    assert second.folder == first.folder and np.array_equal(second.train, first.train)
    assert second.n_bytes == first.n_bytes
    changes = [{"train_bytes": 100}, {"validation_bytes": 100}, {"kind": "bpe"}]
    for other in [*changes, {"kind": "characters", "vocab_size": 301}]:
        with pytest.raises(AssertionError, match="made again"):
            prepare(source, **{"kind": "bytes", "vocab_size": 300} | other)
    with open(source, "a", encoding="utf-8") as file:
        file.write("\n\nOne more document.")
    with pytest.raises(AssertionError, match="made again"):
        prepare(source, "bytes", 300)


def test_a_given_tokenizer(cache, source, tmp_path, monkeypatch):
    trained = train_tokenizer(["Document whose own letter"], "bpe", 270)
    trained.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.setattr(tokens, "train_tokenizer", None)
    corpora = [prepare(source, tokenizer=given) for given in (trained, tmp_path / "tokenizer")]
    corpora.append(prepare(source, tokenizer=str(tmp_path / "tokenizer")))
    assert len({corpus.folder for corpus in corpora}) == 1
    text = data.load_corpus(source)["train"]["text"][0]
    ids = [0, *trained.encode(text)]
    assert corpora[0].train[: len(ids)].tolist() == ids
    other = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained.backend_tokenizer, eos_token="<|endoftext|>"
    )
    assert prepare(source, tokenizer=other).tokenizer.mask_token is None


def test_ten_calls_at_once_write_the_files_once(cache, source, monkeypatch):
    names = []
    write = tokens.write_tokens

    def recording(rows, tokenizer, path, n_bytes):
        names.append(path.name)
        return write(rows, tokenizer, path, n_bytes)

    monkeypatch.setattr(tokens, "write_tokens", recording)
    data.load_corpus(source)
    with ThreadPoolExecutor(10) as pool:
        corpora = list(pool.map(lambda _: prepare(source, "bytes"), range(10)))
    assert len({corpus.folder for corpus in corpora}) == 1
    assert names == ["train.bin", "validation.bin"]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["x"], "words"), "kind is 'words'; known are bpe, bytes, characters"),
        ((["x"], "bpe", 257), "vocab_size is 257; 'bpe' needs at least 258"),
        ((["x"], "characters", 3), "vocab_size is 3; 'characters' needs at least 4"),
        ((iter([]), "characters"), "no text"),
    ],
)
def test_wrong_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_bytes": 0}, "train_bytes is 0"),
        ({"validation_bytes": -1}, "validation_bytes is -1"),
        ({"kind": "words"}, "tokenizer is 'words'"),
        ({"tokenizer": 7}, "tokenizer is a int"),
    ],
)
def test_wrong_options_are_named(options, message, cache, source):
    with pytest.raises(ValueError, match=message):
        prepare(source, **options)
    assert not list((cache / "derived").glob("tokens-*/"))


def test_a_corpus_without_enough_documents_is_refused(cache, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no file or folder"):
        prepare(str(tmp_path / "no.txt"))
    (tmp_path / "two.txt").write_text("one\n\ntwo")
    with pytest.raises(DataError, match="too few: nothing is left for"):
        prepare(str(tmp_path / "two.txt"))
    splits = datasets.DatasetDict(train=rows(["text"]), validation=rows([]))
    monkeypatch.setattr(data, "load_corpus", lambda *_: splits)
    with pytest.raises(DataError, match="leaves no document for validation"):
        prepare("Salesforce/wikitext")
