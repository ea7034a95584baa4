"""Generation: one token after the other, from the scores of a decoder (notebook 02)."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from llmnb.text import StopStrings
from llmnb.transformer import Decoder, TransformerConfig


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The default is the token with the highest score (greedy)."""

    temperature: float = 0.0  # the scores are divided by it; 0: greedy
    top_k: int = 0  # only the k tokens with the highest scores; 0: all
    top_p: float = 1.0  # only the likeliest, p in total (Holtzman et al. 2020, section 3.1)
    seed: int = 0
    first_row: int = 0  # where this batch begins in a larger one

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        ranges = {
            "temperature": (
                self.temperature == 0 or 1e-5 <= self.temperature <= 1e5,
                "0 (greedy), or from 0.00001 to 100000",
            ),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "first_row": (self.first_row >= 0, "0 or more"),
        }
        for name, (is_valid, description) in ranges.items():
            if not is_valid:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {description}.")

    def filtered(self, logits: Tensor) -> Tensor:
        """The scores from which the token is drawn, in fp32; -inf rules it out: (batch, vocab)."""
        logits = logits.float()
        if self.temperature:
            logits = logits / self.temperature
        if self.top_k:
            lowest_kept = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < lowest_kept, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.sort(dim=-1, descending=True, stable=True)
            probabilities = ordered.softmax(dim=-1)
            mass_before = probabilities.cumsum(dim=-1) - probabilities
            ordered = ordered.masked_fill(mass_before >= self.top_p, -torch.inf)
            logits = torch.empty_like(logits).scatter(1, index, ordered)
        return logits

    def generator(self, row: int) -> torch.Generator:
        """The random numbers of a batch's row, counted from 0.

        The first row draws from the seed itself, as a text alone does. The others draw from a seed
        derived from seed and row, so that batches with neighbouring seeds share no random numbers.
        """
        row += self.first_row
        row_seed = self.seed
        if row:
            row_seed = random.Random(f"{self.seed} {row}").getrandbits(63)
        return torch.Generator().manual_seed(row_seed)

    def choose(self, logits: Tensor, generators: Iterable[torch.Generator]) -> Tensor:
        """Each row's next token, drawn with its own generator: (batch, vocab) to (batch,)."""
        logits = self.filtered(logits)
        if not self.temperature:
            return logits.argmax(dim=-1)
        rows = zip(logits.softmax(dim=-1).cpu(), generators, strict=True)
        drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
        return torch.cat(drawn).to(logits.device)


GREEDY = Sampling()


class _LayerCache:
    """One layer's keys and values."""

    def __init__(self, cache: "KeyValueCache", tensor: Tensor) -> None:
        self.cache, self.tensor = cache, tensor

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Store new keys and values, (batch, kv_heads, seq, head_dim) each; returns all so far."""
        start, end = self.cache.length, self.cache.length + key.shape[2]
        if end > self.tensor.shape[3]:
            room = self.tensor.shape[3]
            raise ValueError(f"{end} tokens don't fit into a cache with room for {room}.")
        self.tensor[0, :, :, start:end] = key
        self.tensor[1, :, :, start:end] = value
        return self.tensor[:, :, :, :end].unbind()


class KeyValueCache:
    """The keys and values of the tokens so far, so that each is computed once.

    All memory is allocated at the start: 2 · layers · batch · kv_heads · capacity · head_dim
    numbers.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, capacity: int, like: Tensor | None = None
    ) -> None:
        """capacity: the most tokens that it can hold; like: a tensor of its dtype and device."""
        like = torch.empty(0) if like is None else like
        _, heads, head_dim = config.heads
        shape = (config.n_layers, 2, batch, heads, capacity, head_dim)
        self.length = 0  # tokens stored; the model adds to it after its last layer
        self.layers = [_LayerCache(self, layer) for layer in like.new_empty(shape)]

    def copy_prefix(self, other: "KeyValueCache", length: int | None = None) -> None:
        """Start with the tokens of another cache, which has one row or as many as this one.

        length: how many of them; None: all. A beginning that many texts share is computed once, and
        copied for each of them.
        """
        length = other.length if length is None else length
        if length > other.length:
            raise ValueError(f"The other cache has {other.length} tokens, not {length}.")
        for layer, source in zip(self.layers, other.layers, strict=True):
            layer.tensor[:, :, :, :length] = source.tensor[:, :, :, :length]
        self.length = length


def _check_lengths(seq: int, max_new_tokens: int, n_positions: int) -> None:
    if not seq:
        raise ValueError("There are no tokens: input_ids is empty.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 0 or more.")
    if seq + max_new_tokens > n_positions:
        raise ValueError(
            f"{seq} tokens and {max_new_tokens} new ones are more than this model's "
            f"{n_positions} positions."
        )


class Constraint(Protocol):
    """Rules out tokens before each choice."""

    def restrict(self, logits: Tensor) -> Tensor:
        """(batch, vocab) to the same, with -inf for what can't come next."""

    def accept(self, tokens: Tensor) -> None:
        """Take note of the tokens that were chosen: (batch,)."""


@torch.inference_mode()
def steps(
    model: Decoder,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    constraint: Constraint | None = None,
) -> Iterator[Tensor]:
    """The next token of each row, then the one after it, …: (batch,) each.

    input_ids: (batch, seq), shorter rows padded on the left; attention_mask: (batch, seq), 0 there.
    constraint: what may come next, for example a structured.Grammar.
    Raises ValueError where prompt and new tokens are more than the model has positions.
    """
    batch, seq = input_ids.shape
    _check_lengths(seq, max_new_tokens, model.config.n_positions)
    generators = [sampling.generator(row) for row in range(batch)]
    cache = KeyValueCache(model.config, batch, seq + max_new_tokens, like=model.embedding.weight)
    new_ids = input_ids  # (batch, seq), later (batch, 1)
    for _ in range(max_new_tokens):
        logits = model(new_ids, attention_mask=attention_mask, cache=cache, last_only=True)
        next_logits = logits[:, -1]  # (batch, vocab)
        if constraint is not None:
            next_logits = constraint.restrict(next_logits)
        tokens = sampling.choose(next_logits, generators)  # (batch,)
        if constraint is not None:
            constraint.accept(tokens)
        yield tokens
        new_ids = tokens[:, None]
        if attention_mask is not None:
            attention_mask = torch.cat((attention_mask, torch.ones_like(tokens)[:, None]), dim=1)


def generate(
    model: Decoder,
    input_ids: Tensor,
    *,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
) -> Tensor:
    """Prompt and new tokens: (batch, seq + new). A row that has stopped repeats its stop id."""
    stops = torch.tensor(list(stop_ids), dtype=torch.long, device=input_ids.device)
    columns = [input_ids]
    last = input_ids.new_zeros(len(input_ids))
    is_done = torch.zeros_like(last, dtype=torch.bool)
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling}
    for tokens in steps(model, input_ids, attention_mask=attention_mask, **options):
        last = torch.where(is_done, last, tokens)
        columns.append(last[:, None])
        is_done = is_done | torch.isin(last, stops)
        if is_done.all():
            break
    return torch.cat(columns, dim=1)


class _Writer:
    """Turns tokens into pieces of text: whole characters, and nothing from a stop string on."""

    def __init__(self, tokenizer, stop_ids: Sequence[int], stop_strings: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = set(stop_ids)
        self.stops = StopStrings(stop_strings)
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.ids: list[int] = []
        self.n_characters = 0  # that the decoder has given

    def push(self, token: int) -> str:
        """Take one token; returns the text that is certain now. A stop finishes the text."""
        if token in self.stop_ids:
            return self.close()
        self.ids.append(token)
        piece = self.decoder.step(self.tokenizer.backend_tokenizer, token) or ""
        self.n_characters += len(piece)
        return self.stops.push(piece)

    def close(self) -> str:
        """What was held back: a possible stop string, and bytes that are no whole character."""
        text = self.tokenizer.decode(
            self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return self.stops.push(text[self.n_characters :]) + self.stops.close()


def stop_ids_of(tokenizer) -> list[int]:
    """The ids that end a text or a turn: EOS, <|endoftext|>, <|im_end|>, where they exist."""
    vocabulary = tokenizer.get_vocab()
    ids = {tokenizer.eos_token_id, vocabulary.get("<|endoftext|>"), vocabulary.get("<|im_end|>")}
    return sorted(ids - {None})


def stream(
    model: Decoder,
    tokenizer,
    prompt: str,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The continuation of a prompt, piece by piece. Raises ValueError for an empty prompt."""
    for (piece,) in _pieces(model, tokenizer, [prompt], max_new_tokens, sampling, stop):
        if piece:
            yield piece


def complete(
    model: Decoder,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    constraint: Constraint | None = None,
) -> list[str]:
    """The continuation of each prompt, all computed together; constraint as for steps."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list of them.")
    texts = [""] * len(prompts)
    if prompts:
        options = (max_new_tokens, sampling, stop, constraint)
        for pieces in _pieces(model, tokenizer, prompts, *options):
            texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    return texts


def _pieces(
    model, tokenizer, prompts, max_new_tokens, sampling, stop, constraint=None
) -> Iterator[list[str]]:
    """The new piece of each row's text, step by step, until every row has stopped."""
    stop_strings = [stop] if isinstance(stop, str) else list(stop)
    if "" in stop_strings:
        raise ValueError("A stop string is empty, which would match at once: remove it.")
    ids, mask = padded(tokenizer, prompts, model.embedding.weight.device)
    if len(prompts) == 1:  # without padding no mask is needed, and that is faster
        mask = None
    stop_ids = stop_ids_of(tokenizer)
    writers = [_Writer(tokenizer, stop_ids, stop_strings) for _ in prompts]
    options = {"max_new_tokens": max_new_tokens, "sampling": sampling, "constraint": constraint}
    for tokens in steps(model, ids, attention_mask=mask, **options):
        pieces = []
        for writer, token in zip(writers, tokens.tolist(), strict=True):
            pieces.append("" if writer.stops.is_finished else writer.push(token))
        yield pieces
        if all(writer.stops.is_finished for writer in writers):
            return
    yield ["" if writer.stops.is_finished else writer.close() for writer in writers]


def padded(tokenizer, prompts: Sequence[str], device=None) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask of prompts, padded on the left: (batch, seq) each."""
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if [] in rows:
        raise ValueError(f"Prompt {rows.index([])} is empty: give the beginning of a text.")
    width = max(map(len, rows))
    # Any token will do as padding: the mask hides it.
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
