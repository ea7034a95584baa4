"""Text generation: a decoder behind its chat template (notebook 06)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import torch

from llmnb import fast_linear, generation, models, profiles
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.generation import GREEDY, Sampling
from llmnb.transformer import Decoder

_TOGETHER = 8192  # tokens computed at once, padding and new ones included


class TextGenerator(Application):
    """Answers a message, or goes on from a text where the model has no chat template.

    What is drawn depends on the seed, the text and its place in the batch, on nothing else.
    """

    def __init__(
        self,
        model: Decoder | fast_linear.PackedDecoder,
        tokenizer,
        system: str = "",
        max_new_tokens: int = 64,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> None:
        """system: what the model is told before each message; stop: strings that end an answer."""
        most = model.config.n_positions - 1  # one is the prompt's at least
        if not 1 <= max_new_tokens <= most:
            raise ApplicationError(f"max_new_tokens is {max_new_tokens}; it is 1 to {most:,}.")
        self.model, self.tokenizer, self.system = model, tokenizer, system
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.stop = [stop] if isinstance(stop, str) else list(stop)
        if "" in self.stop:
            raise ApplicationError("A stop string is empty: every answer would end at once.")

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> Self:
        """options: as for the class; max_new_tokens is the profile's. Raises AssetError."""
        settings = profiles.resolve(profile)
        decoder = Decoder.from_pretrained(model or settings.decoder)
        decoder = fast_linear.optimize_for_cpu(decoder)
        half = decoder.embedding.weight.dtype == torch.bfloat16
        if half and not fast_linear.unavailable("bf16", decoder):
            decoder = fast_linear.pack(decoder)  # the same numbers, sooner
        tokenizer = models.load_tokenizer(model or settings.decoder)
        return cls(decoder, tokenizer, **{"max_new_tokens": settings.new_tokens} | options)

    def prompt(self, text: str) -> str:
        """What the model reads: the text in its chat template, if it has one.

        A control token inside the text, such as "<|im_end|>", would begin a turn of its own: a
        zero-width space behind its first character makes it plain characters.
        """
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
        if not self.tokenizer.chat_template:
            return text
        turns = [{"role": "system", "content": self.system}] if self.system else []
        turns.append({"role": "user", "content": text})
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """An answer to each text."""
        return self.complete([self.prompt(text) for text in checked(texts)])

    def stream(self, text: str) -> Iterator[str]:
        """The answer in pieces."""
        (prompt,) = [self.prompt(text) for text in checked([text])]
        self._sizes([prompt])
        options = (self.max_new_tokens, self.sampling, self.stop)
        yield from generation.stream(self.model, self.tokenizer, prompt, *options)

    def complete(self, prompts: Sequence[str]) -> list[Result]:
        """What follows each prompt, which is read as it is, control tokens too."""
        sizes = self._sizes(prompts)
        found: list[Result | None] = [None] * len(sizes)
        rows = list(range(len(sizes)))
        if not self.sampling.temperature:  # what is drawn follows from the row: it keeps its place
            rows.sort(key=sizes.__getitem__, reverse=True)
        while rows:
            widest = max(sizes[row] for row in rows)
            n = max(1, _TOGETHER // (widest + self.max_new_tokens))
            together, rows = rows[:n], rows[n:]
            start = time.perf_counter()
            texts = self._written([prompts[row] for row in together], together[0])
            share = (time.perf_counter() - start) / len(together)
            for row, text in zip(together, texts, strict=True):
                n_tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
                cut = f"It is cut off at max_new_tokens, {self.max_new_tokens}."
                said = (cut,) if n_tokens >= self.max_new_tokens else ()
                found[row] = Result(text.strip(), warnings=said, tokens=n_tokens, seconds=share)
        return found

    def _written(self, prompts: list[str], first: int) -> list[str]:
        sampling = replace(self.sampling, seed=self.sampling.seed + first)
        return generation.complete(
            self.model, self.tokenizer, prompts, self.max_new_tokens, sampling, self.stop
        )

    def _sizes(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt. Raises ApplicationError for one without room for an answer."""
        sizes = [len(self.tokenizer(p, add_special_tokens=False)["input_ids"]) for p in prompts]
        room = self.model.config.n_positions - self.max_new_tokens
        for number, size in enumerate(sizes):
            if not 0 < size <= room:
                raise ApplicationError(
                    f"Text {number} is {size:,} tokens; with {self.max_new_tokens} new ones this "
                    f"model has room for 1 to {room:,}: shorten it, or summarize it first."
                )
        return sizes
