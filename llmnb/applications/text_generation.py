"""Text generation: a decoder behind its chat template (notebook 06)."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from llmnb import fast_linear, generation, models, profiles
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.generation import GREEDY, Sampling
from llmnb.transformer import Decoder

TOKENS_PER_BATCH = 8192  # padding and new ones included


@dataclass(eq=False)
class TextGenerator(Application):
    """Answers a message, or goes on from a text where the model has no chat template.

    What is drawn depends on the seed, the text and its place in the batch, on nothing else.
    """

    model: Decoder | fast_linear.PackedDecoder
    tokenizer: Any  # of transformers
    system: str = ""  # what the model is told before each message
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()  # strings that end an answer

    def __post_init__(self) -> None:
        """Raises ApplicationError for a limit or a stop string that can't be."""
        limit = self.model.config.n_positions - 1  # one is the prompt's at least
        if not 1 <= self.max_new_tokens <= limit:
            raise ApplicationError(
                f"max_new_tokens is {self.max_new_tokens}; it is 1 to {limit:,}."
            )
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        if "" in self.stop:
            raise ApplicationError("A stop string is empty: every answer would end at once.")

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> Self:
        """options: as for the class; max_new_tokens is the profile's. Raises AssetError."""
        settings = profiles.resolve(profile)
        decoder = Decoder.from_pretrained(model or settings.decoder)
        decoder = fast_linear.optimize_for_cpu(decoder)
        is_bf16 = decoder.embedding.weight.dtype == torch.bfloat16
        if is_bf16 and not fast_linear.unavailable("bf16", decoder):
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
        prompt = self.prompt(*checked([text]))
        self.prompt_sizes([prompt])
        options = (self.max_new_tokens, self.sampling, self.stop)
        yield from generation.stream(self.model, self.tokenizer, prompt, *options)

    def complete(self, prompts: Sequence[str]) -> list[Result]:
        """What follows each prompt, which is read as it is, control tokens too."""
        sizes = self.prompt_sizes(prompts)
        results: list[Result | None] = [None] * len(sizes)
        order = list(range(len(sizes)))
        if not self.sampling.temperature:  # what is drawn follows from the row: it keeps its place
            order.sort(key=sizes.__getitem__, reverse=True)
        while order:
            widest = max(sizes[row] for row in order) + self.max_new_tokens
            n_rows = max(1, TOKENS_PER_BATCH // widest)
            rows = order[:n_rows]
            order = order[n_rows:]
            answers = self._generate([prompts[row] for row in rows], first_row=rows[0])
            for row, answer in zip(rows, answers, strict=True):
                results[row] = answer
        return results

    def _generate(self, prompts: list[str], first_row: int) -> list[Result]:
        """One batch; each row has random numbers of its own, counted from first_row."""
        start = time.perf_counter()
        sampling = replace(self.sampling, first_row=self.sampling.first_row + first_row)
        limit = self.max_new_tokens
        texts = generation.complete(self.model, self.tokenizer, prompts, limit, sampling, self.stop)
        seconds = (time.perf_counter() - start) / len(prompts)
        results = []
        for text in texts:
            n_tokens = self._n_tokens(text)
            cut = (f"It is cut off at max_new_tokens, {limit}.",) if n_tokens >= limit else ()
            results.append(Result(text.strip(), warnings=cut, tokens=n_tokens, seconds=seconds))
        return results

    def _n_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_sizes(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt. Raises ApplicationError for one without room for an answer."""
        sizes = list(map(self._n_tokens, prompts))
        room = self.model.config.n_positions - self.max_new_tokens
        for number, size in enumerate(sizes):
            if not 0 < size <= room:
                raise ApplicationError(
                    f"Text {number} is {size:,} tokens; with {self.max_new_tokens} new ones this "
                    f"model has room for 1 to {room:,}: shorten it, or summarize it first."
                )
        return sizes
