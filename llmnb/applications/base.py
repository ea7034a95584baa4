"""What the five applications share: how they are called, and the result that they give."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from llmnb import LlmnbError


class ApplicationError(LlmnbError, ValueError):
    """An application can't do what is asked; the message says why, and what to do."""


@dataclass(frozen=True)
class Result:
    """An application's answer to one text."""

    text: str
    score: float | None = None  # how sure it is, 0 to 1, where it can say
    evidence: tuple[Any, ...] = ()  # the passages that an answer stands on
    warnings: tuple[str, ...] = ()  # what can be seen to be wrong with `text`
    tokens: int = 0  # generated
    seconds: float = 0.0  # since the call; a batch divides its time among the results


class Application(ABC):
    """Load once, then call: app(text), or app.batch(texts), which computes together."""

    @classmethod
    @abstractmethod
    def load(cls, model: str = "", profile: str = "auto") -> Self:
        """model: an asset, a folder or a Hub id; empty: the profile's. Raises AssetError."""

    @abstractmethod
    def batch(self, texts: Sequence[str]) -> list[Result]:
        """A result for each text, in their order."""

    def __call__(self, text: str) -> Result:
        """The result for one text."""
        return self.batch([text])[0]

    def stream(self, text: str) -> Iterator[str]:
        """The result's text, piece by piece. Raises ApplicationError where none is generated."""
        raise ApplicationError(f"{type(self).__name__} makes no text piece by piece: call it.")


def checked(texts: Sequence[str]) -> list[str]:
    """The texts as a list.

    Raises ApplicationError for a single string, an item that isn't a string, an empty text, or a
    lone surrogate, which is half of a character.
    """
    if isinstance(texts, str):
        raise ApplicationError(
            "batch takes a list of texts, not a single string: call app(text) instead."
        )
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise ApplicationError(f"Text {number} is empty or isn't a string: {text!r:.60}.")
        if text.encode("utf-8", "replace").decode() != text:  # no tokenizer takes a surrogate
            raise ApplicationError(f"Text {number} wasn't decoded as UTF-8: {text!r:.60}.")
    return texts
