"""What a language model is: counting, tokens, and one measure for all of them (notebook 01).

A language model gives p(next symbol | symbols before). Here are the models that count, with
Kneser-Ney smoothing; a compressor seen as a model; and a decoder measured on the same bytes.
"""

import functools
import lzma
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmnb.data import END_OF_TEXT


@dataclass(frozen=True)
class _Level:
    """The k-grams of one order: sorted packed keys, their counts, and sums over each context."""

    keys: NDArray[np.uint64]  # (n_grams,)
    counts: NDArray[np.float64]  # (n_grams,)
    contexts: NDArray[np.uint64]  # (n_contexts,)
    totals: NDArray[np.float64]  # (n_contexts,) sum of counts
    kinds: NDArray[np.float64]  # (n_contexts,) number of different next symbols
    discount: float


class NgramModel:
    """An interpolated Kneser-Ney n-gram model over the symbols 0 … vocab_size-1.

    P_k(w|h) = max(c(hw) - D_k, 0)/c(h) + D_k·N(h)/c(h) · P_{k-1}(w|h'), down to P_0 = 1/V, where
    N(h) counts the different symbols seen after h, h' is h without its oldest symbol, and below
    the highest order c counts different left neighbours instead of occurrences.
    Source: Chen & Goodman 1999, section 2.8; the discounts from Ney, Essen & Kneser 1994.
    """

    def __init__(
        self,
        symbols: NDArray[np.integer],
        order: int,
        vocab_size: int,
        discounts: Sequence[float] | None = None,
    ) -> None:
        """Count. symbols: (n,); discounts: D_1 … D_order, estimated from the counts if not given.

        Raises ValueError for symbols out of range, too few of them, or an order that can't be
        packed into 64 bits.
        """
        symbols = _checked(symbols, vocab_size)
        bits = max(1, (vocab_size - 1).bit_length())
        if order < 1 or order * bits > 64:
            raise ValueError(f"order is {order}; for {vocab_size} symbols it is 1 … {64 // bits}.")
        if len(symbols) < order:
            raise ValueError(f"{len(symbols)} symbols are too few for order {order}.")
        if discounts is not None and len(discounts) != order:
            raise ValueError(f"There are {len(discounts)} discounts for {order} orders.")
        self.order, self.vocab_size, self._bits = order, vocab_size, np.uint64(bits)
        grams = self._pack(symbols, order)
        keys, counts = np.unique(grams, return_counts=True)
        levels = []
        for k in range(order, 0, -1):
            discount = None if discounts is None else discounts[k - 1]
            levels.append(self._level(keys, counts, discount))
            # A shorter gram counts as often as different symbols stand to its left.
            mask = np.uint64((1 << (k - 1) * bits) - 1)
            keys, counts = np.unique(keys & mask, return_counts=True)
        self._levels = levels[::-1]

    def __len__(self) -> int:
        """How many counts are stored, over all orders."""
        return sum(len(level.keys) for level in self._levels)

    def log2_probs(self, symbols: NDArray[np.integer]) -> NDArray[np.float64]:
        """log2 p(symbol | the order-1 before it), for each position from order-1 on: (n-order+1,).

        The first order-1 symbols are context only: put END_OF_TEXT there for a text's beginning.
        """
        symbols = _checked(symbols, self.vocab_size)
        if len(symbols) < self.order:
            raise ValueError(f"{len(symbols)} symbols are too few for order {self.order}.")
        return np.log2(self._probabilities(self._pack(symbols, self.order)))

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """p(w | context) for every symbol w: (vocab_size,). The last order-1 symbols count."""
        need = self.order - 1
        context = _checked(np.asarray(context, dtype=np.int64), self.vocab_size)
        if len(context) < need:
            raise ValueError(
                f"The context has {len(context)} symbols; order {self.order} needs it "
                f"to have {need}."
            )
        key = np.uint64(0)
        for symbol in context[len(context) - need :]:
            key = (key << self._bits) | np.uint64(symbol)
        return self._probabilities(
            (key << self._bits) | np.arange(self.vocab_size, dtype=np.uint64)
        )

    def sample(self, n: int, context: Sequence[int], seed: int = 0) -> list[int]:
        """n symbols drawn one after the other, each from its distribution."""
        generator = np.random.default_rng(seed)
        drawn = list(context)
        for _ in range(n):
            drawn.append(int(generator.choice(self.vocab_size, p=self.distribution(drawn))))
        return drawn[len(context) :]

    def _pack(self, symbols: NDArray[np.uint64], k: int) -> NDArray[np.uint64]:
        """Each window of k symbols as one integer, the newest in the lowest bits: (n-k+1,)."""
        n = len(symbols) - k + 1
        packed = np.zeros(n, dtype=np.uint64)
        for offset in range(k):
            packed <<= self._bits
            packed |= symbols[offset : offset + n]
        return packed

    def _level(self, keys, counts, discount: float | None) -> _Level:
        counts = counts.astype(np.float64)
        contexts, starts, kinds = np.unique(
            keys >> self._bits, return_index=True, return_counts=True
        )
        totals = np.add.reduceat(counts, starts)  # the keys are sorted, so contexts are runs
        if discount is None:
            once, twice = (np.count_nonzero(counts == times) for times in (1, 2))
            discount = once / (once + 2 * twice) if once else 0.5
        return _Level(keys, counts, contexts, totals, kinds.astype(np.float64), float(discount))

    def _probabilities(self, grams: NDArray[np.uint64]) -> NDArray[np.float64]:
        probabilities = np.full(grams.shape, 1 / self.vocab_size)
        for k, level in enumerate(self._levels, start=1):
            mask = np.uint64((1 << k * int(self._bits)) - 1)
            key = grams & mask
            at, known = _find(level.contexts, key >> self._bits)
            gram_at, seen = _find(level.keys, key)
            count = np.where(seen, level.counts[gram_at], 0.0)
            total, kinds = level.totals[at], level.kinds[at]
            direct = np.maximum(count - level.discount, 0) / total
            mixed = direct + level.discount * kinds / total * probabilities
            probabilities = np.where(known, mixed, probabilities)  # an unseen context: shorter one
        return probabilities


def _find(sorted_keys, keys):
    """Where each key stands, and whether it is there at all."""
    at = np.searchsorted(sorted_keys, keys)
    at = np.minimum(at, len(sorted_keys) - 1)
    return at, sorted_keys[at] == keys


def _checked(symbols, vocab_size: int) -> NDArray[np.uint64]:
    symbols = np.asarray(symbols)
    if symbols.ndim != 1 or not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(
            f"Symbols are a flat array of integers, not {symbols.dtype} of shape {symbols.shape}."
        )
    if len(symbols) and not (symbols.min() >= 0 and symbols.max() < vocab_size):
        raise ValueError(
            f"Symbols go from {symbols.min()} to {symbols.max()}; the vocabulary has "
            f"0 … {vocab_size - 1}."
        )
    return symbols.astype(np.uint64)


def to_bytes(text: str | bytes, context: int = 0) -> NDArray[np.uint8]:
    """The UTF-8 bytes as symbols, behind `context` END_OF_TEXT bytes: (context + n,)."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return np.frombuffer(bytes([END_OF_TEXT]) * context + raw, dtype=np.uint8)


_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s\0]")


def words(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return _WORD.findall(text.lower())


class Vocabulary:
    """The most frequent words, numbered from 1; everything else is 0, <unk>."""

    def __init__(self, tokens: Iterable[str], size: int) -> None:
        """size: how many words are known, <unk> not counted."""
        self.tokens = ["<unk>", *(word for word, _ in Counter(tokens).most_common(size))]
        self._ids = {token: index for index, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, tokens: Iterable[str]) -> NDArray[np.int64]:
        """The numbers of the tokens: (n,)."""
        return np.array([self._ids.get(token, 0) for token in tokens], dtype=np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """The tokens with spaces between them."""
        return " ".join(self.tokens[index] for index in ids)


def perplexity(log2_probs: NDArray[np.floating]) -> float:
    """2 to the mean surprise: the number of equally likely choices that would surprise as much."""
    return float(2 ** -np.mean(log2_probs))


def bits_per_byte(bits: NDArray[np.floating], n_bytes: NDArray[np.integer] | int) -> float:
    """All bits over all bytes. It asks the same of every tokenizer: to account for the bytes."""
    return float(np.sum(bits) / np.sum(n_bytes))


def block_sizes(blocks: Sequence[str]) -> NDArray[np.int64]:
    """UTF-8 bytes of each block: (n_blocks,)."""
    return np.array([len(block.encode("utf-8")) for block in blocks])


def ngram_bits(model: NgramModel, blocks: Sequence[str]) -> NDArray[np.float64]:
    """Bits a byte n-gram model needs for each block, read from its beginning: (n_blocks,)."""
    starts = [to_bytes(block, context=model.order - 1) for block in blocks]
    return np.array([-model.log2_probs(block).sum() for block in starts])


def xz_bits(train: bytes, blocks: Sequence[str]) -> float:
    """Bits that LZMA, xz's method, adds for all blocks once it has read the training text.

    C(train + test) - C(train), with a dictionary that holds all of both.
    """
    both = train + "".join(blocks).encode("utf-8")
    size = 1 << max(16, (len(both) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": size}]

    def packed(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as threads:  # lzma works outside Python's lock
        together, alone = threads.map(packed, (both, train))
    return 8.0 * (together - alone)


def decoder_bits(model, tokenizer, blocks: Sequence[str], batch_size: int = 8):
    """Bits a decoder needs for each block, read behind its end-of-text token: (n_blocks,).

    The tokens of a block together are the block, so their bits are comparable with any model's.
    Raises ValueError where a tokenizer loses text, since the missing bytes would cost nothing.
    """
    import torch

    encoded = [tokenizer(block, add_special_tokens=False)["input_ids"] for block in blocks]
    for block, ids in zip(blocks, encoded, strict=True):
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != block:
            raise ValueError(f"The tokenizer does not give back the text it read: {block[:60]!r} …")
    start = start_token(tokenizer)
    bits = np.zeros(len(blocks))
    by_length = sorted(range(len(blocks)), key=lambda index: len(encoded[index]))
    for first in range(0, len(blocks), batch_size):
        chosen = by_length[first : first + batch_size]
        width = max(len(encoded[index]) for index in chosen)
        rows = [[start, *encoded[i], *[start] * (width - len(encoded[i]))] for i in chosen]
        input_ids = torch.tensor(rows, device=model.device)  # (batch, 1 + width)
        with torch.inference_mode():
            logits = model(input_ids[:, :-1]).logits  # (batch, width, vocab)
        for row, index in enumerate(chosen):
            n = len(encoded[index])
            nats = torch.nn.functional.cross_entropy(
                logits[row, :n].float(), input_ids[row, 1 : n + 1], reduction="sum"
            )
            bits[index] = float(nats) / math.log(2)
    return bits


def start_token(tokenizer) -> int:
    """The id that stands between documents in pretraining: <|endoftext|>, else BOS, else EOS."""
    known = tokenizer.get_vocab()
    candidates = [known.get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id]
    found = [token for token in candidates if token is not None]
    if not found:
        raise ValueError("The tokenizer has no token that could stand before a text.")
    return found[0]


def next_tokens(model, tokenizer, prompt: str, top: int = 12) -> tuple[list[str], NDArray]:
    """The most likely next tokens after the prompt, and the probability of every token (vocab,)."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [start_token(tokenizer)]
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device)).logits[0, -1]  # (vocab,)
    probabilities = torch.softmax(logits.double(), dim=-1).cpu().numpy()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [pieces(tokenizer, [int(token)])[0] for token in best], probabilities


@functools.cache
def _byte_of() -> dict[str, int]:
    """GPT-2's alphabet: the printable stand-in of each byte (Radford et al. 2019, section 2.2)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token as a reader can see it.

    · is a space, ⏎ a newline, ⟨e4⟩ one byte of a character that was cut into several tokens.
    """
    shown = []
    for token in tokenizer.convert_ids_to_tokens(list(ids)):
        text = tokenizer.decode([tokenizer.convert_tokens_to_ids(token)])
        if "\ufffd" in text:
            text = "".join(f"⟨{_byte_of().get(c, 63):02x}⟩" for c in token)
        elif token.startswith("##"):  # WordPiece: goes on without a space
            text = token
        shown.append(text.replace(" ", "·").replace("\n", "⏎") or token)
    return shown
