"""Models behind a server that speaks OpenAI's chat API, named `openai:NAME`.

The server and the key are found by the client's own conventions, OPENAI_BASE_URL and
OPENAI_API_KEY, so the same name reaches OpenAI, vLLM, llama.cpp, Ollama or `transformers serve`.
A hosted model gives text and no probabilities: what needs the next token's distribution (the
pictures of notebooks 01 and 02, answers by likelihood) can't use one.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llmnb import LlmnbError, files

PREFIX = "openai:"
TOKENS_PER_MESSAGE = 8  # a chat template adds about this many around each message
CHARACTERS_OF_AN_ERROR = 200  # of a server's own words, at most
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}

Message = Mapping[str, str]  # {"role": "user", "content": "…"}


class HostedError(LlmnbError, RuntimeError):
    """A hosted model can't be used or would cost too much; the message says what to do.

    Answers that came before are in the cache: the same call goes on where it stopped.
    """


@dataclass(frozen=True)
class Answer:
    """What the model answered, and the tokens that it was charged for."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    is_complete: bool  # False where it was cut off at max_tokens


@dataclass
class Usage:
    """What a model's calls have cost so far; answers from the cache cost nothing."""

    requests: int = 0
    answers_from_cache: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def __str__(self) -> str:
        tokens = f"{self.prompt_tokens:,} tokens read, {self.completion_tokens:,} written"
        cached = f"{self.answers_from_cache:,} answers from the cache"
        return f"{self.requests:,} requests, {cached}, {tokens}, ${self.dollars:.4f}"


def is_hosted(name: str) -> bool:
    """Whether the name is that of a hosted model."""
    return name.startswith(PREFIX)


class HostedModel:
    """A chat model on a server. Every answer is kept on disk, so no request is sent twice."""

    def __init__(
        self,
        name: str,
        prices: str = "",
        max_dollars: float = 0.0,
        timeout_seconds: float = 120.0,
        max_retries: int = 5,
    ) -> None:
        """name: openai:NAME, where NAME is what the server calls the model.

        prices: dollars per million tokens read and written, such as "0.15 0.60". max_dollars: the
        most that this object's requests may cost, 0 for no limit; a request is not sent if it could
        exceed that. max_retries: after 429, 5xx and lost connections, with growing pauses. Raises
        HostedError without the package openai, a name, or a key, and for prices that can't be read.
        """
        self.model = name.removeprefix(PREFIX)
        if not is_hosted(name) or not self.model:
            raise HostedError(f"{name!r} names no hosted model: write {PREFIX}NAME.")
        try:
            read, written = map(float, (prices or "0 0").replace(",", " ").split())
        except ValueError:
            raise HostedError(
                f"prices is {prices!r}: write the dollars per million tokens read and written, "
                'as in "0.15 0.60".'
            ) from None
        if min(read, written, max_dollars) < 0:
            raise HostedError("Prices and max_dollars must be 0 or more.")
        if max_dollars and not read and not written:
            raise HostedError("max_dollars needs prices: name the dollars per million tokens.")
        self.price_read, self.price_written = read / 1e6, written / 1e6
        self.max_dollars = max_dollars
        self.usage = Usage()
        self._client = _connect(timeout_seconds, max_retries)
        # The address without a user name, password or query.
        self.server = str(self._client.base_url.copy_with(userinfo=b"", query=None)).rstrip("/")

    def answer(
        self,
        messages: Sequence[Message],
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Answer:
        """The model's answer to a conversation, from the cache where it was asked before.

        Raises HostedError where the server refuses, is silent, or the budget ends.
        """
        request = self._request(messages, max_tokens, temperature, seed)
        file = self._cache_file(request)
        if file.is_file():
            self.usage.answers_from_cache += 1
            return Answer(**json.loads(file.read_text(encoding="utf-8")))
        self._check_budget(request)
        answer = self._send(request)
        self._count(answer.prompt_tokens, answer.completion_tokens)
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, asdict(answer))
        return answer

    def stream(
        self,
        messages: Sequence[Message],
        max_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The answer in pieces, as the server sends them; not cached. Raises HostedError."""
        import openai

        request = self._request(messages, max_tokens, temperature, seed)
        self._check_budget(request)
        # The most that this can cost; the server's own count replaces it, but comes last.
        usage = self._most_read(request), max_tokens
        begun = False
        try:
            for event in self._create(request | STREAMED):
                begun = True
                if event.usage:
                    usage = event.usage.prompt_tokens, event.usage.completion_tokens
                if event.choices and event.choices[0].delta.content:
                    yield event.choices[0].delta.content
        except (openai.OpenAIError, OSError) as error:
            raise self._explained(error) from None
        finally:
            if begun:
                self._count(*usage)

    def _request(self, messages, max_tokens, temperature, seed) -> dict:
        return {
            "model": self.model,
            "messages": [dict(message) for message in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage.requests += 1
        self.usage.prompt_tokens += prompt_tokens
        self.usage.completion_tokens += completion_tokens
        self.usage.dollars += prompt_tokens * self.price_read
        self.usage.dollars += completion_tokens * self.price_written

    def _create(self, request: dict):
        """What the server sends: a completion, or its events."""
        import openai

        create = self._client.chat.completions.create
        try:
            return create(**request)
        except openai.BadRequestError as error:
            if "max_completion_tokens" not in str(error):
                raise
            # OpenAI's reasoning models know the limit by this name, and take no temperature.
            options = {k: v for k, v in request.items() if k not in ("temperature", "seed")}
            options["max_completion_tokens"] = options.pop("max_tokens")
            return create(**options)

    def _send(self, request: dict) -> Answer:
        import openai

        try:
            completion = self._create(request)
        except (openai.OpenAIError, OSError) as error:
            raise self._explained(error) from None  # the client's own text can quote the key
        if not completion.choices or completion.usage is None:
            raise HostedError(f"{self.server} sent an answer without text or token counts.")
        choice = completion.choices[0]
        return Answer(
            text=choice.message.content or "",
            prompt_tokens=completion.usage.prompt_tokens,
            completion_tokens=completion.usage.completion_tokens,
            is_complete=choice.finish_reason != "length",
        )

    def _cache_file(self, request: dict) -> Path:
        """The file of this request's answer. Only a digest of the messages is written down."""
        key = json.dumps([self.server, request], sort_keys=True, ensure_ascii=True)
        digest = hashlib.sha256(key.encode()).hexdigest()
        return files.cache_dir() / "hosted" / digest[:2] / f"{digest}.json"

    def _most_read(self, request: dict) -> int:
        """Most tokens that the server can charge for reading: each has a byte or more."""
        contents = [message["content"].encode() for message in request["messages"]]
        return sum(map(len, contents)) + TOKENS_PER_MESSAGE * len(contents)

    def _check_budget(self, request: dict) -> None:
        if not self.max_dollars:
            return
        most = (
            self._most_read(request) * self.price_read + request["max_tokens"] * self.price_written
        )
        if self.usage.dollars + most > self.max_dollars:
            raise HostedError(
                f"The budget ends here: ${self.usage.dollars:.4f} of ${self.max_dollars:.4f} are "
                f"spent, and the next request could cost up to ${most:.4f}. Raise max_dollars and "
                "run it again: answers that are in the cache cost nothing."
            )

    def _explained(self, error: Exception) -> HostedError:
        """What happened and what to do, without the key."""
        import openai

        if isinstance(error, openai.APITimeoutError):
            return HostedError(
                f"{self.server} did not answer in time: ask for fewer tokens, or a faster server."
            )
        if isinstance(error, openai.APIConnectionError | OSError):
            return HostedError(
                f"Nobody answers at {self.server}. Is the server running, and is OPENAI_BASE_URL "
                "its address (often ending in /v1)?"
            )
        status = getattr(error, "status_code", None)
        reasons = {
            401: "refused the key. Check OPENAI_API_KEY.",
            403: "refused the key. Check OPENAI_API_KEY.",
            404: f"has no model {self.model!r}. Check name and address.",
            429: "asks to slow down, or the quota is used up. Try later.",
        }
        if status in reasons:
            return HostedError(f"{self.server} {reasons[status]}")
        words = " ".join(str(getattr(error, "body", "") or error).split())
        words = words.replace(self._client.api_key, "…")[:CHARACTERS_OF_AN_ERROR]
        return HostedError(
            f"{self.server} refused the request for {self.model!r} "
            f"({status or 'no status'}: {words})."
        )


_connected: dict[tuple[str, str | None], HostedModel] = {}  # by name and server


def connect(name: str, prices: str = "", max_dollars: float = 0.0) -> HostedModel:
    """The one HostedModel of this name in this process, so that one budget covers all its uses.

    prices, max_dollars, errors: as for HostedModel; naming either of the two begins a new count.
    """
    key = (name, os.environ.get("OPENAI_BASE_URL"))
    if key not in _connected or prices or max_dollars:
        _connected[key] = HostedModel(name, prices, max_dollars)
    return _connected[key]


def choose(model: HostedModel, prompts: Sequence[str], options: Sequence[str]) -> list[str | None]:
    """For each prompt the option that the answer names; None where it names none, or several.

    The prompt has to ask for one of the options. Raises HostedError.
    """
    answers = []
    for prompt in prompts:
        answer = model.answer([{"role": "user", "content": prompt}], max_tokens=16)
        answers.append(_named_option(answer.text, options))
    return answers


def _named_option(answer: str, options: Sequence[str]) -> str | None:
    """The option that the answer consists of; else the only one that stands in it.

    An option that contains another one, such as "not sad", is looked for before it; a single letter
    only as it is written, because "a" is a word.
    """
    for option in options:
        if answer.strip(" \t\n.,:;!\"'*").casefold() == option.casefold():
            return option
    rest = answer
    named = []
    for option in sorted(options, key=len, reverse=True):
        flags = re.IGNORECASE if len(option) > 1 else 0
        pattern = re.compile(rf"(?<!\w){re.escape(option)}(?!\w)", flags)
        if pattern.search(rest):
            named.append(option)
            rest = pattern.sub(" ", rest)
    return named[0] if len(named) == 1 else None


def _connect(timeout_seconds: float, max_retries: int):
    try:
        import openai
    except ImportError:
        raise HostedError("Hosted models need the package openai: pip install openai") from None
    is_elsewhere = bool(os.environ.get("OPENAI_BASE_URL"))
    key = os.environ.get("OPENAI_API_KEY") or ("no-key-needed" if is_elsewhere else "")
    if not key:
        raise HostedError(
            "No key: set OPENAI_API_KEY, or OPENAI_BASE_URL to a server that needs none "
            "(for example http://127.0.0.1:8000/v1)."
        )
    return openai.OpenAI(api_key=key, timeout=timeout_seconds, max_retries=max_retries)
