"""Text generation: a decoder behind its chat template (notebook 06)."""

import math
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from llmnb import fast_linear, generation, hosted, models, profiles, structured
from llmnb.applications.base import Application, ApplicationError, Result, checked
from llmnb.generation import GREEDY, Sampling
from llmnb.text import StopStrings
from llmnb.transformer import Decoder

TOKENS_PER_BATCH = 8192  # padding and new ones included
BYTES_PER_TOKEN = 3  # of UTF-8; English has about 4 or 5, other languages fewer


@dataclass(eq=False)
class _Generator(Application):
    """What a model here and one on a server have in common."""

    model: Any  # a decoder here, or a HostedModel
    tokenizer: Any = None  # of transformers; a hosted model's stays on the server
    system: str = ""  # instructions before each message
    max_new_tokens: int = 64
    sampling: Sampling = GREEDY  # of it a server is told temperature and seed
    stop: Sequence[str] = ()  # strings that end an answer

    def __post_init__(self) -> None:
        """Raises ApplicationError for a limit or a stop string that can't be."""
        limit = self.context_tokens - 1  # one is the prompt's at least
        if not 1 <= self.max_new_tokens <= limit:
            raise ApplicationError(
                f"max_new_tokens is {self.max_new_tokens}; it is 1 to {limit:,}."
            )
        self.stop = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        if "" in self.stop:
            raise ApplicationError("A stop string is empty: every answer would end at once.")

    @abstractmethod
    def n_tokens(self, text: str) -> int:
        """The tokens of a text, without special ones in front."""

    @abstractmethod
    def without_control_tokens(self, text: str) -> str:
        """The text with control tokens such as "<|im_end|>" made plain characters.

        Otherwise they would end a turn, or begin one, from inside the text.
        """

    def prompt_sizes(self, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt. Raises ApplicationError for one without room for an answer."""
        sizes = [self.n_tokens(prompt) for prompt in prompts]
        room = self.context_tokens - self.max_new_tokens
        for number, size in enumerate(sizes):
            if not 0 < size <= room:
                raise ApplicationError(
                    f"Text {number} is {size:,} tokens; with {self.max_new_tokens} new ones this "
                    f"model has room for 1 to {room:,}: shorten it, or summarize it first."
                )
        return sizes

    def _messages(self, text: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.system}] if self.system else []
        return [*messages, {"role": "user", "content": text}]


@dataclass(eq=False)
class TextGenerator(_Generator):
    """Answers a message, or goes on from a text where the model has no chat template.

    What is drawn depends on the seed, the text and its place in the batch, on nothing else.
    """

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> "Self | HostedGenerator":
        """options: as for the class; max_new_tokens is the profile's.

        model: openai:NAME gives a HostedGenerator. Raises AssetError, HostedError.
        """
        settings = profiles.resolve(profile)
        options = {"max_new_tokens": settings.new_tokens} | options
        if hosted.is_hosted(model):
            return HostedGenerator(hosted.connect(model), **options)
        decoder = Decoder.from_pretrained(model or settings.decoder)
        decoder = fast_linear.optimize_for_cpu(decoder)
        is_bf16 = decoder.embedding.weight.dtype == torch.bfloat16
        if is_bf16 and not fast_linear.unavailable("bf16", decoder):
            decoder = fast_linear.pack(decoder)  # the same results, faster
        return cls(decoder, models.load_tokenizer(model or settings.decoder), **options)

    @property
    def context_tokens(self) -> int:
        """The most tokens that the model reads and writes together."""
        return self.model.config.n_positions

    @property
    def is_chat_model(self) -> bool:
        """Whether it answers a message; without a chat template it goes on from a text."""
        return bool(self.tokenizer.chat_template)

    def prompt(self, text: str) -> str:
        """What the model reads: the text in its chat template, if it has one."""
        text = self.without_control_tokens(text)
        if not self.tokenizer.chat_template:
            return text
        return self.tokenizer.apply_chat_template(
            self._messages(text), tokenize=False, add_generation_prompt=True
        )

    def without_control_tokens(self, text: str) -> str:
        """With a zero-width space behind the first character of each of the tokenizer's."""
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
        return text

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """An answer to each text."""
        return self.complete([self.prompt(text) for text in checked(texts)])

    def records(self, texts: Sequence[str], schema: Mapping[str, Any]) -> list[Any]:
        """For each text a value that matches the JSON schema; its content can still be wrong.

        Raises ApplicationError, and StructuredError for a schema that can't be used or a record
        that doesn't fit into max_new_tokens.
        """
        prompts = [self.prompt(text) for text in checked(texts)]
        self.prompt_sizes(prompts)
        options = {"max_new_tokens": self.max_new_tokens, "sampling": self.sampling}
        return structured.generate_json(self.model, self.tokenizer, prompts, schema, **options)

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
        if not self.sampling.temperature:  # each row has its own random numbers
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
            n_tokens = self.n_tokens(text)
            cut = (f"It is cut off at max_new_tokens, {limit}.",) if n_tokens >= limit else ()
            results.append(Result(text.strip(), warnings=cut, tokens=n_tokens, seconds=seconds))
        return results

    def n_tokens(self, text: str) -> int:
        """As the tokenizer counts them."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(eq=False)
class HostedGenerator(_Generator):
    """A TextGenerator whose model is on a server; every answer is cached (see hosted.py)."""

    context_tokens: int = 8192  # of the model on the server: the protocol doesn't tell
    is_chat_model = True

    @classmethod
    def load(cls, model: str = "", profile: str = "auto", **options) -> Self:
        """model: openai:NAME. Raises HostedError."""
        return cls(hosted.connect(model), **options)

    def prompt(self, text: str) -> str:
        """What the model reads; its chat template stays on the server."""
        return f"{self.system}\n\n{text}" if self.system else text

    def without_control_tokens(self, text: str) -> str:
        """With a space behind each "<" that "|" follows: which ones the server knows is unknown."""
        return text.replace("<|", "< |")

    def n_tokens(self, text: str) -> int:
        """About how many tokens a text has: a server doesn't count them before the request."""
        return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)

    def batch(self, texts: Sequence[str]) -> list[Result]:
        """An answer to each text. Raises HostedError; earlier answers are in the cache."""
        texts = checked(texts)
        self.prompt_sizes([self.prompt(text) for text in texts])
        return [self._answer(self._messages(text), row) for row, text in enumerate(texts)]

    def complete(self, prompts: Sequence[str]) -> list[Result]:
        """An answer to each prompt as a message of its own, without `system`."""
        self.prompt_sizes(prompts)
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return [self._answer(chat, row) for row, chat in enumerate(chats)]

    def stream(self, text: str) -> Iterator[str]:
        """The answer in pieces."""
        stops = StopStrings(self.stop)
        options = {"temperature": self.sampling.temperature, "seed": self.sampling.seed}
        messages = self._messages(*checked([text]))
        for piece in self.model.stream(messages, self.max_new_tokens, **options):
            yield stops.push(piece)
            if stops.is_finished:
                return
        yield stops.close()

    def _answer(self, messages: list[dict[str, str]], row: int) -> Result:
        start = time.perf_counter()
        limit = self.max_new_tokens
        temperature, seed = self.sampling.temperature, self.sampling.seed
        if temperature:  # without chance a text has one answer, and is asked about once
            seed += row
        options = {"temperature": temperature, "seed": seed}
        answer = self.model.answer(messages, max_tokens=limit, **options)
        text = answer.text.lstrip()
        for stop in self.stop:
            text = text.split(stop)[0]
        cut = () if answer.is_complete else (f"It is cut off at max_new_tokens, {limit}.",)
        seconds = time.perf_counter() - start
        tokens = answer.completion_tokens
        return Result(text.strip(), warnings=cut, tokens=tokens, seconds=seconds)
