"""A corpus as one flat file of token ids a split, and blocks of it in random order.

Every document stands behind a separator, <|endoftext|>. The files are written batch by batch and
read through memory maps, so a corpus may be larger than memory.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tokenizers
from tokenizers import decoders, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from llmnb import data, files, models
from llmnb.concepts import start_token
from llmnb.data import DataError

if TYPE_CHECKING:
    import datasets

LEAST = {"bpe": 256 + 2, "bytes": 0, "characters": 1 + 3}  # kind: the smallest vocab_size
TRAINING_BYTES = 50_000_000  # more text hardly changes a tokenizer

# A long document is encoded in pieces, for an encoding takes over 100 bytes a token. A piece ends
# before a space, which no token of ours goes across; without any space, where it must.
_PIECE = re.compile(r"(?s).{1,16384}(?:(?<=\S)(?=\s)|\Z)|.{1,16384}")
_BATCH = 32  # pieces


def train_tokenizer(
    texts: Iterable[str], kind: str = "bpe", vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """A tokenizer of the texts; decoding gives a text back exactly.

    kind: "bpe" (byte-level byte-pair encoding), "bytes" (its 256 bytes without any merge;
    vocab_size is ignored) or "characters" (the most frequent ones; the others become <|unk|>).
    vocab_size counts the special tokens too: <|endoftext|> (0), <|mask|> (1) and, with characters,
    <|unk|> (2). A small text may give fewer tokens. Text that spells out a special token is
    encoded letter by letter, so it can't forge the end of a document. Raises ValueError.
    """
    if kind not in LEAST:
        raise ValueError(f"kind is {kind!r}; known are {', '.join(LEAST)}.")
    if vocab_size < LEAST[kind]:
        raise ValueError(f"vocab_size is {vocab_size}; {kind!r} needs at least {LEAST[kind]}.")
    texts = filter(None, texts)
    if (first := next(texts, None)) is None:
        raise ValueError("texts holds no text to make a tokenizer of.")
    texts = itertools.chain([first], texts)
    end, mask, unknown = special = ["<|endoftext|>", "<|mask|>", "<|unk|>"]
    if kind == "characters":
        counts = collections.Counter(itertools.chain.from_iterable(texts))
        frequent = [character for character, _ in counts.most_common(vocab_size - 3)]
        vocabulary = {token: index for index, token in enumerate(special + frequent)}
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=unknown))
        backend.pre_tokenizer = pre_tokenizers.FixedLength(1)
        backend.decoder = decoders.Fuse()
    else:
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[end, mask],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts if kind == "bpe" else [], trainer)
    names = {"bos_token": end, "eos_token": end, "pad_token": end, "mask_token": mask}
    names |= {"unk_token": unknown} if kind == "characters" else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **names)


def _documents(rows: "datasets.Dataset", n_bytes: int | None) -> Iterator[str]:
    """The first documents, together about n_bytes: the same ones that data.joined takes."""
    size = 0
    for batch in rows.select_columns(["text"]).iter(batch_size=16):
        for text in batch["text"]:
            yield text
            size += 1 + len(text.encode("utf-8"))
            if n_bytes is not None and size >= n_bytes:
                return


def write_tokens(
    rows: "datasets.Dataset", tokenizer, path: Path, n_bytes: int | None = None
) -> int:
    """Write the documents, each behind a separator, as ids; returns their bytes of UTF-8.

    n_bytes: only the first documents, together about so many (None: all). Memory stays flat but
    for the longest document. The file appears under its name once it is complete.
    """
    encoder, dtype, size = _encoder(tokenizer), token_dtype(tokenizer), 0
    separator = np.array([start_token(tokenizer)], dtype).tobytes()
    texts = (_PIECE.findall(text) for text in _documents(rows, n_bytes))
    pieces = ((separator * (i == 0), piece) for text in texts for i, piece in enumerate(text))
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            while batch := list(itertools.islice(pieces, _BATCH)):
                encoded = encoder.encode_batch_fast([p for _, p in batch], add_special_tokens=False)
                for (before, piece), encoding in zip(batch, encoded, strict=True):
                    file.write(before + np.array(encoding.ids, dtype).tobytes())
                    size += len(piece.encode("utf-8"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return size


def token_dtype(tokenizer) -> np.dtype:
    """The integers of a file: little-endian, 16 bits where every id fits, else 32."""
    return np.dtype("<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4")


def _encoder(tokenizer) -> tokenizers.Tokenizer:
    """A copy of its backend that cuts and pads nothing, and takes no text for a special token."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer is a {type(tokenizer).__name__}; a fast one is wanted.")
    encoder = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """A tokenizer, and the tokens of the two splits that training may see."""

    tokenizer: PreTrainedTokenizerFast
    train: np.ndarray  # (tokens,): memory maps, read-only
    validation: np.ndarray
    n_bytes: dict[str, int]  # UTF-8 of each split's documents, separators not counted
    folder: Path

    @property
    def bytes_per_token(self) -> float:
        """Of validation; nats a token, divided by it and by ln 2, are bits a byte."""
        return self.n_bytes["validation"] / len(self.validation)

    def summary(self) -> str:
        """The sizes in one line."""
        return (
            f"train {len(self.train):,} tokens, validation {len(self.validation):,}; "
            f"{self.bytes_per_token:.1f} bytes a token; vocabulary {len(self.tokenizer):,}"
        )


def prepare(
    source: str = "imdb",
    kind: str = "bpe",
    vocab_size: int = 4096,
    train_bytes: int | None = None,
    validation_bytes: int | None = None,
    column: str = "text",
    tokenizer=None,
) -> TokenCorpus:
    """The tokens of a corpus (see data.load_corpus), made once and kept in the cache.

    train_bytes, validation_bytes: only the first documents of a split, together about so many
    (None: all). The tokenizer is trained on the chosen training documents, on the first
    TRAINING_BYTES of them at most, and never on validation; or it is the given one: a folder,
    a model's name, or an object. Raises DataError, AssetError, ValueError.
    """
    limits = {"train": train_bytes, "validation": validation_bytes}
    if wrong := [f"{name}_bytes is {n}" for name, n in limits.items() if n is not None and n < 1]:
        raise ValueError(f"{wrong[0]}; at least 1 is wanted, or None for all.")
    if tokenizer is None and kind not in LEAST:
        raise ValueError(f"tokenizer is {kind!r}; known are {', '.join(LEAST)}.")
    splits = data.load_corpus(source, column)
    if empty := [name for name in limits if not len(splits[name])]:
        raise DataError(f"{source!r} leaves no document for {' and '.join(empty)}.")
    identity = [kind, vocab_size if kind != "bytes" else None]
    if tokenizer is not None:
        tokenizer = _load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        identity = [_encoder(tokenizer).to_str(), str(tokenizer.special_tokens_map)]

    def make(folder: Path) -> None:
        chosen = tokenizer
        if chosen is None:
            first = min(train_bytes or TRAINING_BYTES, TRAINING_BYTES)
            chosen = train_tokenizer(_documents(splits["train"], first), kind, vocab_size)
        chosen.save_pretrained(folder)
        n_bytes = {
            name: write_tokens(splits[name], chosen, folder / f"{name}.bin", limit)
            for name, limit in limits.items()
        }
        (folder / "n_bytes.json").write_text(json.dumps(n_bytes))

    arrow_files = [file["filename"] for name in limits for file in splits[name].cache_files]
    name = f"tokens-{Path(source).stem}-{_digest(arrow_files, limits, identity)}"
    folder = files.build(files.cache_dir() / "derived" / name, make)
    own, n_bytes = _load(folder), json.loads((folder / "n_bytes.json").read_text())
    maps = [np.memmap(folder / f"{name}.bin", token_dtype(own), mode="r") for name in limits]
    return TokenCorpus(own, *maps, n_bytes, folder)


def _digest(paths: list[str], *settings) -> str:
    """What decides the tokens: the documents' files, the settings, this module's code."""
    facts = [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in paths]
    key = json.dumps([facts, *settings]).encode()
    return hashlib.sha256(Path(__file__).read_bytes() + key).hexdigest()[:8]


def _load(name: str | Path):
    """A tokenizer from a folder of its own, or by the name of a model."""
    folder = Path(name).expanduser()
    if not (folder / "tokenizer.json").is_file():
        return models.load_tokenizer(str(name))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def batch_at(
    tokens: np.ndarray, seed: int, index: int, batch_size: int, block_size: int
) -> np.ndarray:
    """Batch number index of an endless shuffled reading: (batch_size, block_size + 1), int64.

    Each epoch reads every block once, in an order of its own and from an offset of its own, so
    that the blocks' borders move. All follows from (seed, index): to resume takes no state.
    The tokens are a ring: behind the last comes the first, a separator.
    """
    _check(tokens, block_size)
    n_blocks = len(tokens) // block_size
    rows = range(index * batch_size, (index + 1) * batch_size)
    starts = [_starts(seed, row // n_blocks, n_blocks, block_size)[row % n_blocks] for row in rows]
    positions = np.add.outer(starts, np.arange(block_size + 1)) % len(tokens)
    return tokens[positions].astype(np.int64)


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and two runs may take turns
def _starts(seed: int, epoch: int, n_blocks: int, block_size: int) -> np.ndarray:
    random = np.random.default_rng([seed, epoch])
    return random.integers(block_size) + random.permutation(n_blocks) * block_size


def _check(tokens: np.ndarray, block_size: int, split: str = "") -> None:
    if not 1 <= block_size < len(tokens):
        raise DataError(
            f"{len(tokens):,} tokens {split}hold no block of {block_size:,} and the one after it: "
            f"give more text, or another block_size."
        )


def validation_blocks(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """All blocks in order, (n_blocks, block_size + 1), int64; neighbours share one token.

    So every token but the first is predicted once, less at most block_size - 1 at the end.
    """
    _check(tokens, block_size, "of the validation split ")
    windows = np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)
    return windows[::block_size].astype(np.int64)
