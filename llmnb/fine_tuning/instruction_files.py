"""Files of instructions that a reader brings: prompts with answers, conversations, preferences.

The usual shapes are understood: prompt and answer, messages (OpenAI, Hugging Face), Alpaca's
instruction, input and output, ShareGPT's conversations, and prompt, chosen and rejected. What
can't be used is left out and counted, by reason; nothing is guessed.
"""

import collections
import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmnb import data, files, text_files
from llmnb.fine_tuning.conversations import Messages
from llmnb.fine_tuning.preferences import Pair
from llmnb.text_files import DataError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")
SHAPES = (
    "prompt and answer; messages; instruction, input and output; conversations; "
    "prompt, chosen and rejected"
)
PROMPTS = ("instruction", "prompt", "question")
CONTEXTS = ("input", "context")  # what the prompt is about; an input may be the prompt itself
ANSWERS = ("answer", "completion", "response", "output")
MESSAGES = ("messages", "conversations")
READ_KEYS = {*PROMPTS, *CONTEXTS, *ANSWERS, *MESSAGES, "chosen", "rejected", "system", "label"}
ROLES = {"human": "user", "prompter": "user", "developer": "system"}
ROLES |= {"gpt": "assistant", "bot": "assistant"}
NAMES = {"system": "system message", "user": "prompt", "assistant": "answer"}  # of a role's text
MIN_EXAMPLES = 8  # fewer can't be split into training and validation
ADVICE = "save it as JSON in UTF-8, one example a line"


class _Refused(Exception):
    """Why a row is left out."""


@dataclass(frozen=True)
class Instructions:
    """Examples ready for training: conversations, or pairs of answers."""

    name: str
    examples: list[list[dict[str, str]]] | list[Pair]
    dropped: dict[str, list[int]]  # why rows were left out: their numbers, from 1
    notes: tuple[str, ...]

    @property
    def pairs(self) -> list[Pair]:
        """The examples that are pairs: all of them, or none."""
        return [example for example in self.examples if isinstance(example, Pair)]

    def split(self) -> tuple[list, list]:
        """Training and validation examples, nine to one, by the fingerprint of the prompt.

        So the same prompt, with whatever answers, stands on one side only.
        """
        prints = [data.fingerprint(prompt_of(example)) for example in self.examples]
        different = sorted(set(prints))
        if len(different) < 2:
            raise DataError(f"{self.name} has one prompt only: nothing is left to validate on.")
        held_out = set(different[: max(1, len(different) // 10)])
        train, validation = [], []
        for example, fingerprint in zip(self.examples, prints, strict=True):
            (validation if fingerprint in held_out else train).append(example)
        return train, validation

    def fingerprint(self) -> str:
        """12 hex digits that depend on the examples, but not on their order."""
        texts = [json.dumps(e, default=vars, sort_keys=True) for e in self.examples]
        return hashlib.sha256("\n".join(sorted(texts)).encode("utf-8", "replace")).hexdigest()[:12]

    def summary(self) -> str:
        """The file in words: what it holds, and what was left out."""
        kind = "pairs of answers" if self.pairs else "conversations"
        lines = [f"{self.name}: {len(self.examples):,} {kind}."]
        for reason, numbers in self.dropped.items():
            few = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
            lines.append(f"Left out: {len(numbers):,} ({few}), {reason}.")
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def prompt_of(example: Pair | Messages) -> str:
    """All that stands before the last answer, as one text."""
    messages = example.prompt if isinstance(example, Pair) else example[:-1]
    return "\n".join(message["content"] for message in messages)


def leaked(train: Sequence, test: Sequence) -> list[int]:
    """The numbers of the test examples whose prompt is among the training prompts."""
    known = {data.fingerprint(prompt_of(example)) for example in train}
    return [n for n, example in enumerate(test) if data.fingerprint(prompt_of(example)) in known]


def load(source: str | Path, control_tokens: Sequence[str] = ()) -> Instructions:
    """The examples of a .jsonl or .json file.

    control_tokens: strings that mean something to the model, such as the end of a turn; a row
    that contains one is left out. Raises DataError for a file in which nothing can be used.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        raise DataError(f"{str(path)!r} (looked in {Path.cwd()}) is no file: name a .jsonl file.")
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{path.name} can't be read: {ADVICE} ({SHAPES}).")
    notes: list[str] = []
    text = text_files.decode(text_files.read_bytes(path), path.name, ADVICE, notes)
    dropped: dict[str, list[int]] = collections.defaultdict(list)
    examples, seen, n_unread = [], set(), collections.Counter()
    for number, row in enumerate(_rows(text, path.name), start=1):
        try:
            example = _example(row)
            content = json.dumps(example, default=vars, ensure_ascii=False)
            for token in control_tokens:
                if token in content:
                    raise _Refused(f"containing {token}, which the model reads as a command")
            if content in seen:
                raise _Refused("the same as an earlier row")
        except _Refused as reason:
            dropped[str(reason)].append(number)
            continue
        seen.add(content)
        examples.append(example)
        n_unread.update(row.keys() - READ_KEYS)
    if n_unread:
        listed = ", ".join(f"{key} {n:,}" for key, n in sorted(n_unread.items()))
        notes.append(f"keys that are not read (with their rows): {listed}.")
    result = Instructions(path.name, examples, dict(dropped), tuple(notes))
    n_pairs = len(result.pairs)
    if 0 < n_pairs < len(examples):
        raise DataError(
            f"{path.name} mixes {len(examples) - n_pairs:,} answers with {n_pairs:,} pairs of "
            "chosen and rejected ones: make a file of each."
        )
    if len(examples) < MIN_EXAMPLES:
        raise DataError(
            f"{path.name} has {len(examples)} usable examples; at least {MIN_EXAMPLES} are needed. "
            f"{' '.join(result.summary().split())} A row is one of: {SHAPES}."
        )
    return result


def _rows(text: str, name: str) -> list[Any]:
    """The values of a list, also of one within {"data": ...}, or else one value a line."""
    rows = []
    with contextlib.suppress(ValueError, RecursionError):
        whole = json.loads(text)
        lists = [whole] if isinstance(whole, list) else []
        if isinstance(whole, dict) and not whole.keys() & {*MESSAGES}:
            lists = [value for value in whole.values() if isinstance(value, list)]
        if len(lists) == 1:
            return lists[0]
    for number, line in enumerate(re.split(r"\r\n?|\n", text), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            reason = f"line {number} is not JSON ({files.first_line(error)})"
            raise DataError(f"{name}: {reason}. Write one example a line.") from error
    if not rows:
        raise DataError(f"{name} is empty.")
    return rows


def _example(row: Any) -> list[dict[str, str]] | Pair:
    if not isinstance(row, dict):
        raise _Refused("not an object")
    if row.get("label") is False:
        raise _Refused("with an answer that is marked as bad (label: false)")
    if "chosen" in row and "rejected" in row:
        return _pair(row)
    for key in MESSAGES:
        if key in row:
            return _conversation(row[key], row)
    answers = [row[key] for key in ANSWERS if key in row]
    if len(answers) != 1:
        number = "several answers" if answers else "no answer by a known key"
        raise _Refused(f"with {number} (it has {', '.join(map(str, row))[:60]})")
    return _conversation([_user_message(row), _message("assistant", answers[0])], row)


def _user_message(row: Mapping[str, Any]) -> dict[str, Any]:
    """The one prompt of a row, with its context after it."""
    contexts = {key: row[key] for key in CONTEXTS if row.get(key)}
    prompts = [row[key] for key in PROMPTS if key in row]
    if not prompts and "input" in row:
        prompts = [contexts.pop("input", "")]
    if len(prompts) != 1:
        number = "several prompts" if prompts else "no prompt by a known key"
        raise _Refused(f"with {number} (it has {', '.join(map(str, row))[:60]})")
    parts = [_text(part, "prompt") for part in [*prompts, *contexts.values()]]
    return _message("user", "\n\n".join(parts))


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _pair(row: Mapping[str, Any]) -> Pair:
    """A pair from two answers, or two whole conversations that differ only in the last message."""
    prompt = row.get("prompt", [])
    if not isinstance(prompt, list) or (not prompt and row.keys() & {*PROMPTS, "input"}):
        prompt = [_user_message({key: row[key] for key in row if key != "prompt" or row[key]})]
    sides = []
    for key in ("chosen", "rejected"):
        messages = row[key] if isinstance(row[key], list) else [_message("assistant", row[key])]
        is_whole = len(messages) > 1 or not prompt  # a conversation, not an answer alone
        sides.append(messages if is_whole else [*prompt, *messages])
    if len(sides[0]) < 2 or sides[0][:-1] != sides[1][:-1]:
        raise _Refused("a pair whose two answers don't have the same prompt")
    (*before, chosen), (*_, rejected) = (_conversation(messages, row) for messages in sides)
    prompt_texts = [message.get("content", message.get("value")) for message in prompt]
    if prompt and [message["content"] for message in before][-len(prompt) :] != prompt_texts:
        raise _Refused("a pair whose conversations don't contain its prompt before the answer")
    if chosen == rejected:
        raise _Refused("a pair of equal answers")
    return Pair(before, chosen["content"], rejected["content"])


def _conversation(value: Any, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Messages with OpenAI's role and content, or ShareGPT's from and value.

    A system message may also stand in the row. After it, user and assistant must take turns, and
    the assistant must end.
    """
    if not isinstance(value, list) or not value:
        raise _Refused("without messages")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise _Refused("with a message that is no object")
        role = str(message.get("role", message.get("from")))
        role = ROLES.get(role, role)
        if role not in NAMES:
            raise _Refused(f"with a message of the role {role[:20]!r}")
        if message.get("tool_calls"):
            raise _Refused("calling a tool")
        if message.get("weight") == 0:
            raise _Refused("with a message of weight 0, which nothing is to be learned from")
        content = message.get("content", message.get("value"))
        messages.append(_message(role, _text(content, NAMES[role])))
    if row.get("system") and messages[0]["role"] != "system":
        system = _text(row["system"], NAMES["system"])
        messages.insert(0, _message("system", system))
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise _Refused("in which user and assistant don't take turns up to an answer")
    return messages


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise _Refused(f"with no text as {name}")
    if not value.strip():
        raise _Refused(f"with an empty {name}")
    return value.strip().encode("utf-8", "replace").decode()  # a lone surrogate becomes ?
