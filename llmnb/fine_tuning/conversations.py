"""Conversations as token ids: who speaks, where a turn ends, and what the assistant wrote.

A conversation is a list of messages, {"role": …, "content": …}.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from llmnb.fine_tuning.base import FineTuningError

Messages = Sequence[Mapping[str, str]]
IGNORED = -100  # the label of a token that doesn't count, in transformers' losses
# How a turn begins and ends, where the tokenizer has no chat template of its own.
MARKERS = (("<start_of_turn>", "<end_of_turn>"), ("<|im_start|>", "<|im_end|>"))
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}START{{ message['role'] }}\n"
    "{{ message['content'] }}END\n{% endfor %}"
    "{% if add_generation_prompt %}STARTassistant\n{% endif %}"
)


def with_chat_format(tokenizer):
    """The tokenizer, with a chat template; its own, or else one with the markers that it has.

    The end of a turn becomes the end-of-sequence token, so generation stops there.
    """
    if tokenizer.chat_template is None:
        vocabulary = tokenizer.get_vocab()
        start, end = "### ", tokenizer.eos_token
        for markers in MARKERS:
            if vocabulary.keys() >= set(markers):
                start, end = markers
        tokenizer.eos_token = end
        tokenizer.chat_template = TEMPLATE.replace("START", start).replace("END", end)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


def control_tokens(tokenizer) -> list[str]:
    """Strings that the tokenizer reads as commands: a reader's own texts must not contain them."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    markers = [marker for pair in MARKERS for marker in pair if marker in tokenizer.get_vocab()]
    return sorted({*added, *markers})


def rendered(tokenizer, messages: Messages) -> str:
    """The conversation as one text, up to where the assistant begins to answer."""
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def encode(tokenizer, messages: Messages) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and for each of them whether the assistant wrote it.

    The end of its turn counts as written by it: that is how it learns to stop. Raises
    FineTuningError for a chat template that changes earlier turns when a later one comes.
    """
    ids: list[int] = []
    is_answer: list[bool] = []
    text = ""  # what has been encoded so far
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = rendered(tokenizer, messages[:number])
        turns = list(messages[: number + 1])
        after = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        if not before.startswith(text) or not after.startswith(before):
            raise FineTuningError("This chat template changes earlier turns: use another one.")
        for piece, counts in ((before[len(text) :], False), (after[len(before) :], True)):
            piece_ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
            ids += piece_ids
            is_answer += [counts] * len(piece_ids)
        text = after
    return ids, is_answer


@dataclass(frozen=True)
class Batch:
    """Conversations of a step, padded on the right: (rows, seq) each."""

    input_ids: Tensor
    attention_mask: Tensor  # 1 for tokens, 0 for padding
    is_answer: Tensor  # bool; which tokens the assistant wrote

    @property
    def labels(self) -> Tensor:
        """The ids as transformers' losses take them: IGNORED outside the answers."""
        return self.input_ids.masked_fill(~self.is_answer, IGNORED)


def batch_of(rows: Sequence[tuple[list[int], list[bool]]], device: str | None = None) -> Batch:
    """A batch of encoded conversations, each a row."""
    ids = pad_sequence([torch.tensor(ids) for ids, _ in rows], batch_first=True)
    is_answer = pad_sequence([torch.tensor(answers) for _, answers in rows], batch_first=True)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    attention_mask = torch.arange(ids.shape[1]) < lengths[:, None]  # (rows, seq)
    return Batch(*(part.to(device) for part in (ids, attention_mask.long(), is_answer)))
