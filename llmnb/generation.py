"""Generation: one token after the other, from the scores of a decoder (notebook 02)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmnb.transformer import Decoder, EncoderDecoder, TransformerConfig


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; as it stands, the one with the highest score (greedy)."""

    temperature: float = 0.0  # the scores are divided by it; 0: greedy
    top_k: int = 0  # only the k best; 0: all
    top_p: float = 1.0  # only the best that together have p (Holtzman et al. 2020, section 3.1)
    repetition_penalty: float = 1.0  # > 1: what was there already gets less (Keskar et al. 2019)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for a value out of range."""
        ranges = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all) or more"),
            "top_p": (0 < self.top_p <= 1, "more than 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "more than 0"),
        }
        for name, (right, wanted) in ranges.items():
            if not right:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be {wanted}.")

    def filtered(self, logits: Tensor, seen: Tensor) -> Tensor:
        """The scores the draw is made from, fp32, -inf for what is left out: (batch, vocab).

        seen: the ids so far, (batch, seq); padding must repeat a token that is there anyway.
        """
        logits = logits.float()
        if self.repetition_penalty != 1:
            scores = logits.gather(1, seen)
            less = torch.where(scores > 0, 1 / self.repetition_penalty, self.repetition_penalty)
            logits = logits.scatter(1, seen, scores * less)
        if self.temperature:
            logits = logits / self.temperature
        if self.top_k:
            worst = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.sort(dim=-1, descending=True, stable=True)
            probabilities = ordered.softmax(dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities
            ordered = ordered.masked_fill(before >= self.top_p, -torch.inf)
            logits = torch.empty_like(logits).scatter(1, index, ordered)
        return logits


GREEDY = Sampling()


class _Chooser:
    """The next token of each row; every row has its own random numbers."""

    def __init__(self, sampling: Sampling, batch: int) -> None:
        self.sampling = sampling
        self.generators = [torch.Generator().manual_seed(sampling.seed + r) for r in range(batch)]

    def __call__(self, logits: Tensor, seen: Tensor) -> Tensor:
        """logits: (batch, vocab) to ids: (batch,)."""
        logits = self.sampling.filtered(logits, seen)
        if not self.sampling.temperature:
            return logits.argmax(dim=-1)
        rows = zip(logits.softmax(dim=-1).cpu(), self.generators, strict=True)
        drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in rows]
        return torch.cat(drawn).to(logits.device)


class _LayerCache:
    """One layer's keys and values."""

    def __init__(self, whole: "KeyValueCache", tensor: Tensor) -> None:
        self.whole, self.tensor = whole, tensor

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Take in (batch, kv_heads, seq, head_dim) each; all keys and values so far."""
        start, end = self.whole.length, self.whole.length + key.shape[2]
        self.tensor[0, :, :, start:end] = key
        self.tensor[1, :, :, start:end] = value
        return self.tensor[:, :, :, :end].unbind()


class KeyValueCache:
    """The keys and values of the tokens so far, so that each is computed once.

    All memory is taken at the start: 2 · layers · batch · kv_heads · length · head_dim numbers.
    """

    def __init__(
        self, config: TransformerConfig, batch: int, length: int, like: Tensor | None = None
    ) -> None:
        """length: how many tokens there is room for; like: a tensor of the dtype and device."""
        like = torch.empty(0) if like is None else like
        _, heads, head_dim = config.heads
        shape = (config.n_layers, 2, batch, heads, length, head_dim)
        self.length = 0  # tokens in it
        self.layers = [_LayerCache(self, layer) for layer in like.new_empty(shape)]

    def copy_prefix(self, other: "KeyValueCache") -> None:
        """Start with the tokens of another cache, which has one row or as many as this one.

        A beginning that many texts share is computed once, and copied for each of them.
        """
        for layer, source in zip(self.layers, other.layers, strict=True):
            layer.tensor[:, :, :, : other.length] = source.tensor[:, :, :, : other.length]
        self.length = other.length


@torch.inference_mode()
def steps(
    model: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    use_cache: bool = True,
    constraint=None,
) -> Iterator[Tensor]:
    """The next token of each row, then the one after it, …: (batch,) each.

    input_ids: (batch, seq), shorter rows padded on the left; attention_mask: (batch, seq), 0 there.
    Raises ValueError where prompt and new tokens are more than the model has positions.
    """
    batch, seq = input_ids.shape
    if not seq:
        raise ValueError("There are no tokens: input_ids is empty.")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it is 0 or more.")
    if (total := seq + max_new_tokens) > model.config.n_positions:
        raise ValueError(
            f"{seq} tokens and {max_new_tokens} new ones are more than this model's "
            f"{model.config.n_positions} positions."
        )
    choose, cache = _Chooser(sampling, batch), None
    if use_cache:
        cache = KeyValueCache(model.config, batch, total, like=model.embedding.weight)
    seen, new = input_ids, input_ids
    if attention_mask is not None:  # for the penalty: padding repeats the row's last token
        seen = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])
    for _ in range(max_new_tokens):
        logits = model(new, attention_mask, cache, last_only=True)
        next_logits = logits[:, -1]
        if constraint is not None:
            next_logits = constraint.restrict(next_logits)
        chosen = choose(next_logits, seen)
        if constraint is not None:
            constraint.accept(chosen)
        yield chosen
        new = chosen[:, None]
        if sampling.repetition_penalty != 1:
            seen = torch.cat((seen, new), dim=1)
        if not use_cache:  # then everything is read again
            new = input_ids = torch.cat((input_ids, new), dim=1)
        if attention_mask is not None:
            ones = torch.ones_like(chosen)[:, None]
            attention_mask = torch.cat((attention_mask, ones), dim=1)


def generate(
    model: Decoder,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop_ids: Sequence[int] = (),
) -> Tensor:
    """Prompt and new tokens: (batch, seq + new). After a stop id a row goes on with that id."""
    stops = torch.tensor(list(stop_ids), dtype=torch.long, device=input_ids.device)
    columns, last = [input_ids], input_ids.new_zeros(len(input_ids))
    done = torch.zeros_like(last, dtype=torch.bool)
    for chosen in steps(model, input_ids, attention_mask, max_new_tokens, sampling):
        last = torch.where(done, last, chosen)
        columns.append(last[:, None])
        done = done | torch.isin(last, stops)
        if done.all():
            break
    return torch.cat(columns, dim=1)


class _Writer:
    """Tokens to text, piece by piece: whole characters only, and nothing from a stop string on."""

    def __init__(self, tokenizer, stop_ids: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop_ids, self.stop = tokenizer, set(stop_ids), tuple(stop)
        self.ids: list[int] = []
        self.start = self.read = 0  # ids[start:read] are written, and give the rest its context
        self.shown = 0  # characters of ids[start:] that are written
        self.held = ""  # could be the beginning of a stop string
        self.finished = False

    def push(self, token: int) -> str:
        """The text that is certain now; sets `finished` at a stop id or string."""
        if token in self.stop_ids:
            return self.close()
        self.ids.append(token)
        now = self._text()
        whole = now.rstrip("\ufffd")  # could be the first bytes of a character
        piece, self.shown = whole[self.shown :], max(self.shown, len(whole))
        if whole == now:
            self.start, self.read = self.read, len(self.ids)
            self.shown = len(self._text())
        return self._released(piece)

    def close(self) -> str:
        """What was held back."""
        text = self._released(self._text()[self.shown :])
        text, self.held, self.finished = text + self.held, "", True
        return text

    def _text(self) -> str:
        return self.tokenizer.decode(
            self.ids[self.start :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _released(self, piece: str) -> str:
        text = self.held + piece
        found = [at for each in self.stop if (at := text.find(each)) >= 0]
        if found:
            self.finished, self.held = True, ""
            return text[: min(found)]
        tails = (text[-n:] for n in range(min(len(text), self._longest()), 0, -1))
        self.held = next((t for t in tails if any(s.startswith(t) for s in self.stop)), "")
        return text[: len(text) - len(self.held)]

    def _longest(self) -> int:
        return max(map(len, self.stop), default=1) - 1


def stop_ids_of(tokenizer) -> list[int]:
    """The ids that end a text or a turn: EOS, <|endoftext|>, <|im_end|>, where they exist."""
    known = tokenizer.get_vocab()
    names = ("<|endoftext|>", "<|im_end|>")
    found = {known[name] for name in names if name in known} | {tokenizer.eos_token_id}
    return sorted(found - {None})


def stream(
    model: Decoder,
    tokenizer,
    prompt: str,
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The continuation of a prompt, in pieces, as it is made. Raises ValueError if it is empty."""
    for row in _written(model, tokenizer, [prompt], max_new_tokens, sampling, stop):
        if row[0]:
            yield row[0]


def complete(
    model: Decoder,
    tokenizer,
    prompts: Sequence[str],
    max_new_tokens: int = 64,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> list[str]:
    """The continuation of each prompt, all computed together."""
    if isinstance(prompts, str):
        raise ValueError("prompts is one string; give a list of them.")
    texts = [""] * len(prompts)
    if prompts:
        for row in _written(model, tokenizer, prompts, max_new_tokens, sampling, stop):
            texts = [text + piece for text, piece in zip(texts, row, strict=True)]
    return texts


def _written(model, tokenizer, prompts, max_new_tokens, sampling, stop) -> Iterator[list[str]]:
    """The new piece of each row's text, step by step, until every row has stopped."""
    stop = [stop] if isinstance(stop, str) else list(stop)
    if "" in stop:
        raise ValueError("A stop string is empty: everything would stop before it begins.")
    ids, mask = padded(tokenizer, prompts, model.embedding.weight.device)
    writers = [_Writer(tokenizer, stop_ids_of(tokenizer), stop) for _ in prompts]
    masked = mask if len(prompts) > 1 else None  # alone, there is no padding: a faster way
    for chosen in steps(model, ids, masked, max_new_tokens, sampling):
        pairs = zip(writers, chosen.tolist(), strict=True)
        yield ["" if writer.finished else writer.push(token) for writer, token in pairs]
        if all(writer.finished for writer in writers):
            return
    yield ["" if writer.finished else writer.close() for writer in writers]


def padded(tokenizer, prompts: Sequence[str], device=None) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask of prompts, padded on the left: (batch, seq) each."""
    rows = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if empty := [number for number, row in enumerate(rows) if not row]:
        raise ValueError(f"Prompt {empty[0]} is empty: give the beginning of a text.")
    width = max(map(len, rows))
    ids = [[row[0]] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@torch.inference_mode()
def beam_search(
    model: EncoderDecoder,
    source: Tensor,
    start_id: int,
    stop_id: int,
    beams: int = 4,
    max_new_tokens: int = 64,
    length_penalty: float = 1.0,
) -> tuple[list[int], float]:
    """The best target found for one source, (1, seq): its ids without start and stop, its score.

    Keeps the `beams` best beginnings; a text, cut at max_new_tokens or not, scores
    log P / length^length_penalty, its stop token counted. Source: Wu et al. 2016, section 7.
    """
    if beams < 1 or max_new_tokens < 1:
        raise ValueError(f"beams is {beams}, max_new_tokens {max_new_tokens}: at least 1 of each.")
    if length_penalty < 0:
        raise ValueError(f"length_penalty is {length_penalty}; it is 0 or more.")
    encoded = model.encode(source)
    rows = torch.tensor([[start_id]], device=source.device)  # (beams, seq)
    scores = torch.zeros(1, device=source.device)  # log P of each row
    finished: list[tuple[float, list[int]]] = []
    limit = max_new_tokens**length_penalty
    for length in range(1, max_new_tokens + 1):
        logits = model.decode(rows, encoded.expand(len(rows), -1, -1))[:, -1].float()
        totals = scores[:, None] + logits.log_softmax(dim=-1)  # (beams, vocab)
        best = totals.flatten().topk(min(beams, totals.numel()))
        going: list[tuple[float, list[int]]] = []
        for score, index in zip(*map(Tensor.tolist, best), strict=True):
            row, token = divmod(index, totals.shape[1])
            ids = [*rows[row].tolist(), token]
            if token == stop_id:
                finished.append((score / length**length_penalty, ids[1:-1]))
            else:
                going.append((score, ids))
        if not going or (finished and max(finished)[0] >= going[0][0] / limit):
            break  # what still grows can only lose probability
        rows = torch.tensor([ids for _, ids in going], device=source.device)
        scores = torch.tensor([score for score, _ in going], device=source.device)
    # A text that is still growing at the last step may be better than a poor early end.
    score, ids = max(finished + [(score / limit, ids[1:]) for score, ids in going])
    return ids, score
