"""A task that a program can judge: read a short message, and return its facts as a record.

The messages were written for this project; a program can say whether a record is exactly right.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmnb import handbook

FILES = {"first": "messages", "second": "messages_second_style"}
INSTRUCTION = "Return the facts of this message as JSON."
_NO_SPACE_FIRST = r"^\S.*$"  # a decoder likes to begin a word with a space, even within quotes
_TEXT = {"type": "string", "pattern": _NO_SPACE_FIRST, "maxLength": 60}
MAX_WORDS_COPIED = 6  # of a product or a date
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["order", "complaint", "return", "question"]},
        "product": _TEXT,
        "amount": {"type": ["integer", "null"], "minimum": 0, "maximum": 100_000},
        "date": {"type": ["string", "null"], "pattern": _NO_SPACE_FIRST, "maxLength": 40},
        "urgency": {"enum": ["low", "normal", "high"]},
    },
    "required": ["kind", "product", "amount", "date", "urgency"],
    "additionalProperties": False,
}


def copying_schema(message: str) -> dict[str, Any]:
    """The schema of this message's record: product and date are words of the message, or no date.

    So a value that isn't in the message, or is spelled differently, can't be written.
    """
    words = [match.span() for match in re.finditer(r"\w+", message)]
    spans = dict.fromkeys(
        message[start:end]
        for first, (start, _) in enumerate(words)
        for _, end in words[first : first + MAX_WORDS_COPIED]
    )
    copied = {"product": {"enum": [*spans]}, "date": {"enum": [*spans, None]}}
    return SCHEMA | {"properties": SCHEMA["properties"] | copied}


def load(style: str = "first") -> dict[str, list[dict[str, Any]]]:
    """The splits, each a list of {"message", "record"}: train, validation and test.

    style: "second" has test messages only, written by someone else in another tone.
    """
    return handbook.resource(FILES[style])


def written(record: Mapping[str, Any]) -> str:
    """The record as the one line of JSON that the schema's grammar allows."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def conversation(message: str, record: Mapping[str, Any] | None = None) -> list[dict[str, str]]:
    """The user's request, and the right answer if there is one."""
    turns = [{"role": "user", "content": f"{INSTRUCTION}\n\n{message}"}]
    if record is not None:
        turns.append({"role": "assistant", "content": written(record)})
    return turns


def few_shot(message: str, examples: Sequence[Mapping[str, Any]] = ()) -> str:
    """A prompt for a model that only continues text: examples, then the message."""
    properties = SCHEMA["properties"]
    parts = [
        f"{INSTRUCTION} The keys are kind ({', '.join(properties['kind']['enum'])}), product, "
        f"amount, date and urgency ({', '.join(properties['urgency']['enum'])})."
    ]
    for example in examples:
        parts.append(f"Message: {example['message']}\nJSON: {written(example['record'])}")
    return "\n\n".join([*parts, f"Message: {message}\nJSON:"])


def parsed(answer: str) -> Any:
    """The answer as a JSON value; None if it isn't JSON."""
    try:
        return json.loads(answer)
    except ValueError:
        return None


def is_exact(answer: str, record: Mapping[str, Any]) -> bool:
    """Whether the answer is this record, in every field and letter."""
    return parsed(answer) == dict(record)
