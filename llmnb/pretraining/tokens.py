"""A corpus as one flat file of token ids per split, and blocks of it in random order.

A separator, <|endoftext|>, comes before every document. The files are written batch by batch and
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

# The least vocab_size of each kind: its 256 bytes or one letter, and the special tokens.
MIN_VOCAB_SIZE = {"bpe": 256 + 2, "bytes": 0, "characters": 1 + 3}
TOKENIZER_TRAINING_BYTES = 50_000_000  # more text hardly changes a tokenizer

# A long document is encoded in pieces, because an encoding takes over 100 bytes per token. A piece
# ends before white space, which no token of ours crosses; text without any is cut anywhere.
_PIECE = re.compile(r"(?s).{1,16384}(?:(?<=\S)(?=\s)|\Z)|.{1,16384}")
_PIECES_PER_BATCH = 32


def train_tokenizer(
    texts: Iterable[str], kind: str = "bpe", vocab_size: int = 4096
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the texts.

    Decoding gives a text back exactly, except for characters that became <|unk|>.

    kind: "bpe" (byte-level byte-pair encoding), "bytes" (the 256 bytes without any merge, so
    vocab_size is ignored) or "characters" (the most frequent ones; all others become <|unk|>).
    vocab_size counts the special tokens too: <|endoftext|> (0), <|mask|> (1) and, with characters,
    <|unk|> (2). A small text may give fewer tokens. A special token's name in a text is
    encoded as ordinary text, so it can't forge the end of a document. Raises ValueError.
    """
    if kind not in MIN_VOCAB_SIZE:
        raise ValueError(f"kind is {kind!r}; known are {', '.join(MIN_VOCAB_SIZE)}.")
    minimum = MIN_VOCAB_SIZE[kind]
    if vocab_size < minimum:
        raise ValueError(f"vocab_size is {vocab_size}; {kind!r} needs at least {minimum}.")
    texts = filter(None, texts)
    first = next(texts, None)
    if first is None:
        raise ValueError("texts holds no text to train a tokenizer on.")
    texts = itertools.chain([first], texts)
    end, mask, unknown = "<|endoftext|>", "<|mask|>", "<|unk|>"
    if kind == "characters":
        counts = collections.Counter(itertools.chain.from_iterable(texts))
        frequent = [character for character, _ in counts.most_common(vocab_size - 3)]
        vocabulary = {token: index for index, token in enumerate([end, mask, unknown, *frequent])}
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
    if kind == "characters":
        names["unk_token"] = unknown
    return PreTrainedTokenizerFast(tokenizer_object=backend, split_special_tokens=True, **names)


def write_tokens(
    rows: "datasets.Dataset", tokenizer, path: Path, n_bytes: int | None = None
) -> int:
    """Write the documents as token ids, a separator before each; returns their size in UTF-8 bytes.

    n_bytes: only the first documents, together about that many bytes (None: all). The memory needed
    depends on the longest document only.
    """
    encoder = _encoder(tokenizer)
    dtype = token_dtype(tokenizer)
    separator = np.array([start_token(tokenizer)], dtype).tobytes()
    size = 0
    pieces = _pieces(data.first_documents(rows, n_bytes))
    with path.open("wb") as file:
        while batch := list(itertools.islice(pieces, _PIECES_PER_BATCH)):
            texts = [text for text, _ in batch]
            encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
            for (text, is_first), encoding in zip(batch, encodings, strict=True):
                if is_first:
                    file.write(separator)
                file.write(np.array(encoding.ids, dtype).tobytes())
                size += len(text.encode("utf-8"))
    return size


def _pieces(documents: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The documents in pieces, and whether a piece is its document's first."""
    for document in documents:
        for index, piece in enumerate(_PIECE.findall(document)):
            yield piece, index == 0


def token_dtype(tokenizer) -> np.dtype:
    """The integer type of a token file: little-endian, 16 bits if every id fits, else 32."""
    return np.dtype("<u2" if max(tokenizer.get_vocab().values()) < 1 << 16 else "<u4")


def _encoder(tokenizer) -> tokenizers.Tokenizer:
    """A copy of the tokenizer's backend that neither truncates nor pads.

    It reads special tokens as text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer is a {type(tokenizer).__name__}; it must be a fast one.")
    encoder = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


@dataclass(frozen=True, eq=False)
class TokenCorpus:
    """A tokenizer, and the tokens of the two splits that training uses."""

    tokenizer: PreTrainedTokenizerFast
    train: np.ndarray  # (tokens,): a read-only memory map, as validation is
    validation: np.ndarray
    n_bytes: dict[str, int]  # of each split's documents in UTF-8, without separators
    folder: Path

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes per token of the validation split.

        Bits per byte are the nats per token divided by this and by ln 2.
        """
        return self.n_bytes["validation"] / len(self.validation)

    def summary(self) -> str:
        """The sizes in one line."""
        return (
            f"train {len(self.train):,} tokens, validation {len(self.validation):,}; "
            f"{self.bytes_per_token:.1f} bytes per token; vocabulary {len(self.tokenizer):,}"
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
    """The tokens of a corpus (see data.load_corpus), computed once and kept in the cache.

    train_bytes, validation_bytes: only the first documents of a split, together about that many
    bytes (None: all). tokenizer: a folder, a model's name, or an object; None: one is trained on
    the training documents, at most on their first TOKENIZER_TRAINING_BYTES.
    Raises DataError, AssetError, ValueError.
    """
    limits = {"train": train_bytes, "validation": validation_bytes}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ValueError(f"{name}_bytes is {limit}; it must be at least 1, or None for all.")
    if tokenizer is None and kind not in MIN_VOCAB_SIZE:
        raise ValueError(f"tokenizer is {kind!r}; known are {', '.join(MIN_VOCAB_SIZE)}.")
    splits = data.load_corpus(source, column)
    for name in limits:
        if not len(splits[name]):
            raise DataError(f"{source!r} leaves no document for {name}.")
    identity = [kind, vocab_size if kind != "bytes" else None]
    if tokenizer is not None:
        tokenizer = _load(tokenizer) if isinstance(tokenizer, str | Path) else tokenizer
        identity = [_encoder(tokenizer).to_str(), str(tokenizer.special_tokens_map)]

    def write(folder: Path) -> None:
        used = tokenizer
        if used is None:
            limit = min(train_bytes or TOKENIZER_TRAINING_BYTES, TOKENIZER_TRAINING_BYTES)
            used = train_tokenizer(data.first_documents(splits["train"], limit), kind, vocab_size)
        used.save_pretrained(folder)
        n_bytes = {}
        for name, limit in limits.items():
            n_bytes[name] = write_tokens(splits[name], used, folder / f"{name}.bin", limit)
        (folder / "n_bytes.json").write_text(json.dumps(n_bytes))

    arrow_files = [file["filename"] for name in limits for file in splits[name].cache_files]
    name = f"tokens-{Path(source).stem}-{_digest(arrow_files, limits, identity)}"
    folder = files.build(files.cache_dir() / "derived" / name, write)
    return _open(folder)


def _open(folder: Path) -> TokenCorpus:
    """The corpus that `prepare` has written into a folder."""
    tokenizer = _load(folder)
    dtype = token_dtype(tokenizer)
    return TokenCorpus(
        tokenizer,
        train=np.memmap(folder / "train.bin", dtype, mode="r"),
        validation=np.memmap(folder / "validation.bin", dtype, mode="r"),
        n_bytes=json.loads((folder / "n_bytes.json").read_text()),
        folder=folder,
    )


def _digest(paths: list[str], *settings) -> str:
    """A digest of all that the tokens depend on: the documents' files, settings, this code."""
    facts = [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in paths]
    key = json.dumps([facts, *settings]).encode()
    return hashlib.sha256(Path(__file__).read_bytes() + key).hexdigest()[:8]


def _load(name: str | Path):
    """A tokenizer from a folder that holds one, or by the name of a model."""
    folder = Path(name).expanduser()
    if not (folder / "tokenizer.json").is_file():
        return models.load_tokenizer(str(name))
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def batch_at(
    tokens: np.ndarray, seed: int, index: int, batch_size: int, block_size: int
) -> np.ndarray:
    """Batch number index of endless shuffled epochs: (batch_size, block_size + 1), int64.

    Each epoch reads every block once, in a new order and from a new offset, so that the blocks'
    borders move. A batch depends on seed and index alone, so a resumed run needs no further state.
    The tokens form a ring: after the last one comes the first, a separator.
    """
    _need_one_block(tokens, block_size)
    n_blocks = len(tokens) // block_size
    rows = range(index * batch_size, (index + 1) * batch_size)
    starts = []
    for row in rows:
        epoch, number = divmod(row, n_blocks)
        starts.append(_block_starts(seed, epoch, n_blocks, block_size)[number])
    positions = np.add.outer(starts, np.arange(block_size + 1)) % len(tokens)
    return tokens[positions].astype(np.int64)


@functools.lru_cache(maxsize=4)  # a batch may span two epochs, and two runs may take turns
def _block_starts(seed: int, epoch: int, n_blocks: int, block_size: int) -> np.ndarray:
    random = np.random.default_rng([seed, epoch])
    return random.integers(block_size) + random.permutation(n_blocks) * block_size


def _need_one_block(tokens: np.ndarray, block_size: int, split: str = "") -> None:
    if not 1 <= block_size < len(tokens):
        raise DataError(
            f"{len(tokens):,} tokens {split}hold no block of {block_size:,} and the token that "
            f"follows it: give more text, or another block_size."
        )


def validation_blocks(tokens: np.ndarray, block_size: int) -> np.ndarray:
    """All blocks in order, (n_blocks, block_size + 1), int64.

    A block's last token is the next one's first, so every token after the first is predicted
    once, except up to block_size - 1 at the end.
    """
    _need_one_block(tokens, block_size, "of the validation split ")
    windows = np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)
    return windows[::block_size].astype(np.int64)
