"""What a language model is: n-grams, tokens, and one measure for all models (notebook 01).

A language model gives p(next symbol | symbols before). This module has n-gram models with
Kneser-Ney smoothing, and the bits that an n-gram model, a compressor and a decoder need for the
same text. The transformer itself is in llmnb.transformer.
"""

import lzma
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmnb.data import END_OF_TEXT


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order: sorted packed keys, their counts, and sums over each context."""

    keys: NDArray[np.uint64]  # (n_grams,)
    counts: NDArray[np.float64]  # (n_grams,)
    contexts: NDArray[np.uint64]  # (n_contexts,)
    totals: NDArray[np.float64]  # (n_contexts,) sum of counts
    continuations: NDArray[np.float64]  # (n_contexts,) number of different next symbols
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
        """Count the n-grams of every order in symbols, which have the shape (n,).

        discounts: D_1 … D_order; by default they are estimated from the counts.
        Raises ValueError for symbols out of range, too few symbols, or an order whose n-grams
        don't fit into 64 bits.
        """
        symbols = _as_symbols(symbols, vocab_size)
        bits = max(1, (vocab_size - 1).bit_length())
        if order < 1 or order * bits > 64:
            raise ValueError(
                f"order is {order}; with {vocab_size} symbols choose one of 1 … {64 // bits}."
            )
        if discounts is not None and len(discounts) != order:
            raise ValueError(f"Give {order} discounts, one per order, not {len(discounts)}.")
        self.order = order
        self.vocab_size = vocab_size
        self._bits = np.uint64(bits)
        keys, counts = np.unique(self._pack(symbols), return_counts=True)
        levels = []
        for k in range(order, 0, -1):
            discount = None if discounts is None else discounts[k - 1]
            levels.append(self._level(keys, counts, discount))
            # A shorter n-gram's count is the number of different symbols seen to its left.
            mask = np.uint64((1 << (k - 1) * bits) - 1)
            keys, counts = np.unique(keys & mask, return_counts=True)
        self._levels = levels[::-1]

    def __len__(self) -> int:
        """The number of stored counts, over all orders."""
        return sum(len(level.keys) for level in self._levels)

    def log2_probs(self, symbols: NDArray[np.integer]) -> NDArray[np.float64]:
        """log2 p(symbol | the order-1 symbols before it), for symbols[order-1:]: (n-order+1,).

        The first order-1 symbols are context only: to score a text from its beginning, put that
        many END_OF_TEXT symbols before it.
        """
        grams = self._pack(_as_symbols(symbols, self.vocab_size))
        return np.log2(self._probabilities(grams))

    def distribution(self, context: Sequence[int]) -> NDArray[np.float64]:
        """p(w | context) for every symbol w: (vocab_size,).

        Only the last order-1 symbols of the context matter.
        """
        n_needed = self.order - 1
        context = _as_symbols(np.asarray(context, dtype=np.int64), self.vocab_size)
        if len(context) < n_needed:
            raise ValueError(
                f"The context has {len(context)} symbols; a model of order {self.order} "
                f"needs at least {n_needed}."
            )
        newest = context[len(context) - n_needed :]
        gram = self._pack(np.append(newest, np.uint64(0)))  # 0 stands for the next symbol
        return self._probabilities(gram | np.arange(self.vocab_size, dtype=np.uint64))

    def sample(self, n: int, context: Sequence[int], seed: int = 0) -> list[int]:
        """n symbols drawn one after the other, each from its distribution."""
        generator = np.random.default_rng(seed)
        symbols = list(context)
        for _ in range(n):
            probabilities = self.distribution(symbols)
            symbols.append(int(generator.choice(self.vocab_size, p=probabilities)))
        return symbols[len(context) :]

    def _pack(self, symbols: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Each window of `order` symbols as one integer, the newest in the lowest bits."""
        n = len(symbols) - self.order + 1
        if n < 1:
            raise ValueError(f"{len(symbols)} symbols are too few for order {self.order}.")
        packed = np.zeros(n, dtype=np.uint64)
        for offset in range(self.order):
            packed <<= self._bits
            packed |= symbols[offset : offset + n]
        return packed

    def _level(self, keys, counts, discount: float | None) -> _Level:
        counts = counts.astype(np.float64)
        contexts, starts, continuations = np.unique(
            keys >> self._bits, return_index=True, return_counts=True
        )
        totals = np.add.reduceat(counts, starts)  # the keys are sorted, so contexts are runs
        if discount is None:
            once = np.count_nonzero(counts == 1)
            twice = np.count_nonzero(counts == 2)
            discount = once / (once + 2 * twice) if once else 0.5
        continuations = continuations.astype(np.float64)
        return _Level(keys, counts, contexts, totals, continuations, float(discount))

    def _probabilities(self, grams: NDArray[np.uint64]) -> NDArray[np.float64]:
        probabilities = np.full(grams.shape, 1 / self.vocab_size)
        for k, level in enumerate(self._levels, start=1):
            mask = np.uint64((1 << k * int(self._bits)) - 1)
            keys = grams & mask
            context_index, context_seen = _find(level.contexts, keys >> self._bits)
            key_index, key_seen = _find(level.keys, keys)
            counts = np.where(key_seen, level.counts[key_index], 0.0)
            totals = level.totals[context_index]
            direct = np.maximum(counts - level.discount, 0) / totals
            backoff_weight = level.discount * level.continuations[context_index] / totals
            mixed = direct + backoff_weight * probabilities
            # After an unseen context, the shorter context's probabilities stay as they are.
            probabilities = np.where(context_seen, mixed, probabilities)
        return probabilities


def _find(sorted_keys, keys):
    """The index of each key, and whether the key is present at all."""
    index = np.searchsorted(sorted_keys, keys)
    index = np.minimum(index, len(sorted_keys) - 1)
    return index, sorted_keys[index] == keys


def _as_symbols(symbols, vocab_size: int) -> NDArray[np.uint64]:
    symbols = np.asarray(symbols)
    if symbols.ndim != 1 or not np.issubdtype(symbols.dtype, np.integer):
        raise ValueError(
            f"Give the symbols as a flat array of integers, not {symbols.dtype} of shape "
            f"{symbols.shape}."
        )
    if len(symbols) and (symbols.min() < 0 or symbols.max() >= vocab_size):
        raise ValueError(
            f"Symbols go from {symbols.min()} to {symbols.max()}; the vocabulary has "
            f"0 … {vocab_size - 1}."
        )
    return symbols.astype(np.uint64)


def to_bytes(text: str | bytes, context: int = 0) -> NDArray[np.uint8]:
    """The UTF-8 bytes as symbols, after `context` END_OF_TEXT bytes: (context + n,)."""
    raw = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return np.frombuffer(bytes([END_OF_TEXT]) * context + raw, dtype=np.uint8)


_WORD_OR_MARK = re.compile(r"\w+(?:['’]\w+)*|[^\w\s\0]")


def word_tokens(text: str) -> list[str]:
    """The text's lower-case words and punctuation marks, each a token of its own.

    llmnb.text.words leaves the punctuation out; retrieval and scores use that one.
    """
    return _WORD_OR_MARK.findall(text.lower())


def perplexity(log2_probs: NDArray[np.floating]) -> float:
    """Two to the power of the mean surprise: so many equally likely choices surprise as much."""
    return float(2 ** -np.mean(log2_probs))


def bits_per_byte(bits: NDArray[np.floating], n_bytes: NDArray[np.integer] | int) -> float:
    """All bits divided by all bytes.

    Bytes don't depend on the tokenizer, so models with different tokenizers can be compared.
    """
    return float(np.sum(bits) / np.sum(n_bytes))


def block_sizes(blocks: Sequence[str]) -> NDArray[np.int64]:
    """UTF-8 bytes of each block: (n_blocks,)."""
    return np.array([len(block.encode("utf-8")) for block in blocks])


def ngram_bits(model: NgramModel, blocks: Sequence[str]) -> NDArray[np.float64]:
    """Bits a byte n-gram model needs for each block, read from its beginning: (n_blocks,)."""
    starts = [to_bytes(block, context=model.order - 1) for block in blocks]
    return np.array([-model.log2_probs(block).sum() for block in starts])


def xz_bits(train: bytes, blocks: Sequence[str]) -> float:
    """Bits that LZMA (xz's method) needs for all blocks after it has read the training text.

    This is C(train + blocks) - C(train), where C is the compressed size. The dictionary is large
    enough for both texts.
    """
    both = train + "".join(blocks).encode("utf-8")
    size = 1 << max(16, (len(both) - 1).bit_length())
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 6, "dict_size": size}]

    def compressed_size(text: bytes) -> int:
        return len(lzma.compress(text, lzma.FORMAT_RAW, filters=filters))

    with ThreadPoolExecutor(2) as threads:  # lzma works outside Python's lock
        size_of_both, size_of_train = threads.map(compressed_size, (both, train))
    return 8.0 * (size_of_both - size_of_train)


def decoder_bits(model, tokenizer, blocks: Sequence[str], batch_size: int = 8):
    """Bits a decoder needs for each block, which follows a start token: (n_blocks,).

    Raises ValueError if the tokenizer loses text, as token_surprises does.
    """
    return np.array([s.sum() for _, s in token_surprises(model, tokenizer, blocks, batch_size)])


def token_surprises(
    model, tokenizer, blocks: Sequence[str], batch_size: int = 8
) -> list[tuple[list[int], NDArray[np.float64]]]:
    """For each block its token ids, and -log2 p(token | the block so far) of each: (n_tokens,).

    A block follows a start token. Its tokens decode to exactly the block, so their bits add up to
    the block's, and any other model's bits for it can be compared with them.
    Raises ValueError if the tokenizer loses text, since the missing bytes would cost nothing.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    encoded = [tokenizer(block, add_special_tokens=False)["input_ids"] for block in blocks]
    for block, ids in zip(blocks, encoded, strict=True):
        if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != block:
            raise ValueError(
                f"Encoding and decoding changes the text {block[:60]!r} …, so its bits would be "
                f"incomplete. Use a tokenizer that keeps every character."
            )
    start = start_token(tokenizer)
    surprises: dict[int, NDArray[np.float64]] = {}
    by_length = sorted(range(len(blocks)), key=lambda index: len(encoded[index]))
    for first in range(0, len(blocks), batch_size):
        batch = by_length[first : first + batch_size]
        rows = [torch.tensor([start, *encoded[index]]) for index in batch]
        input_ids = pad_sequence(rows, batch_first=True, padding_value=start)
        input_ids = input_ids.to(next(model.parameters()).device)  # (batch, 1 + width)
        with torch.inference_mode():
            output = model(input_ids[:, :-1])
        logits = getattr(output, "logits", output)  # (batch, width, vocab)
        for row, index in enumerate(batch):
            n = len(encoded[index])
            nats = torch.nn.functional.cross_entropy(
                logits[row, :n].float(), input_ids[row, 1 : n + 1], reduction="none"
            )
            surprises[index] = nats.cpu().double().numpy() / math.log(2)
    return [(ids, surprises[index]) for index, ids in enumerate(encoded)]


def start_token(tokenizer) -> int:
    """The id that stands between documents in pretraining: <|endoftext|>, else BOS, else EOS."""
    end_of_text = tokenizer.get_vocab().get("<|endoftext|>")
    for token in (end_of_text, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise ValueError("The tokenizer has no <|endoftext|>, BOS or EOS token to start a text with.")


def next_tokens(model, tokenizer, prompt: str, top: int = 12) -> tuple[list[str], NDArray]:
    """The `top` likeliest next tokens, readable, and the probability of every token: (vocab,)."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or [start_token(tokenizer)]
    with torch.inference_mode():
        logits = model(torch.tensor([ids], device=model.device)).logits[0, -1]  # (vocab,)
    probabilities = torch.softmax(logits.double(), dim=-1).cpu().numpy()
    best = np.argsort(-probabilities, kind="stable")[:top]
    return [pieces(tokenizer, [int(token)])[0] for token in best], probabilities


def pieces(tokenizer, ids: Sequence[int]) -> list[str]:
    """The tokens as readable strings.

    · is a space, ⏎ a newline, ⟨e4⟩ one byte of a character that was cut into several tokens.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    # GPT-2's printable character for each byte, and that byte.
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    readable = []
    for id, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        text = tokenizer.decode([id])
        if byte := re.fullmatch("<0x(..)>", token):  # as SentencePiece writes one
            text = f"⟨{byte[1].lower()}⟩"
        elif "\ufffd" in text:
            text = "".join(f"⟨{byte_of.get(character, ord('?')):02x}⟩" for character in token)
        elif token.startswith("##"):  # WordPiece's mark for a token that continues a word
            text = token
        readable.append(text.replace(" ", "·").replace("\n", "⏎") or token)
    return readable
