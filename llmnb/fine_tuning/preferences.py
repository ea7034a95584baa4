"""Preferences: from two answers to one prompt, and which is better, to a model that prefers it.

Direct preference optimization needs no reward model and no sampling during training: only the
log-probabilities of the two answers under the trained model and under a copy that stays as it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from llmnb.fine_tuning.base import FineTuningError
from llmnb.fine_tuning.conversations import Messages, batch_of, encode
from llmnb.fine_tuning.instructions import Assistant, answer_log_probs, rows_at


@dataclass(frozen=True)
class Pair:
    """A prompt, which ends with a user's message, and two answers to it."""

    prompt: Messages
    chosen: str
    rejected: str

    def conversations(self) -> list[list[Mapping[str, str]]]:
        """The prompt with the better answer, and with the worse one."""
        answers = (self.chosen, self.rejected)
        return [[*self.prompt, {"role": "assistant", "content": text}] for text in answers]


def best(example: Pair | Messages) -> Messages:
    """The conversation to imitate: the example itself, or a pair's prompt and better answer."""
    return example.conversations()[0] if isinstance(example, Pair) else example


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """-log σ(β (log π(y₊)/π₀(y₊) - log π(y₋)/π₀(y₋))), the mean over the pairs.

    policy, reference: log P(answer | prompt) under the trained model π and under π₀, which stays
    as it was: (pairs, 2) each, the better answer first. Source: Rafailov et al. 2023, equation 7.
    """
    rewards = implicit_reward(policy, reference, beta)  # (pairs, 2)
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()


def implicit_reward(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """β log π(y|x)/π₀(y|x): how much more likely training made an answer, in the reward's unit.

    Source: Rafailov et al. 2023, equation 5, without the term that every answer shares.
    """
    return beta * (policy - reference)


def pairs_from_samples(
    prompts: Sequence[Messages],
    samples: Sequence[Sequence[str]],
    score: Callable[[int, str], float],
) -> list[Pair]:
    """One pair for each prompt whose two samples differ in score.

    samples: two lists of answers, one for each prompt in both; score(number, answer): how good an
    answer to that prompt is. Where both are equally good, nothing is to be learned.
    """
    pairs = []
    for number, (prompt, *answers) in enumerate(zip(prompts, *samples, strict=True)):
        worse, better = sorted(answers, key=lambda answer: score(number, answer))
        if score(number, better) > score(number, worse):
            pairs.append(Pair(prompt, better, worse))
    return pairs


def log_probs(assistant: Assistant, conversations: Sequence[Messages]) -> Tensor:
    """log P(answer | prompt) of each conversation under the model as it is now: (n,)."""
    rows = [encode(assistant.tokenizer, messages) for messages in conversations]
    size = assistant.settings.batch_size
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            batch = batch_of(rows[start : start + size], assistant.device)
            parts.append(answer_log_probs(assistant.model, batch))
    return torch.cat(parts)


def train(
    assistant: Assistant,
    pairs: Sequence[Pair],
    snapshots: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Direct preference optimization; returns the loss of each step.

    The model as it is now is the reference. snapshots: a folder from which a killed training goes
    on. A pair with too long an answer is left out, and their number said. Raises FineTuningError
    where none is left.
    """
    settings = assistant.settings
    rows = []
    for pair in pairs:
        encoded = [encode(assistant.tokenizer, messages) for messages in pair.conversations()]
        if max(len(ids) for ids, _ in encoded) <= settings.max_length:
            rows.append(encoded)
    if n_long := len(pairs) - len(rows):
        say(f"{n_long:,} pairs longer than {settings.max_length} tokens are left out")
    if not rows:
        raise FineTuningError(f"No pair has at most max_length = {settings.max_length} tokens.")
    reference = []
    with torch.inference_mode():  # it never changes, so it is computed once
        for pair_rows in rows:
            batch = batch_of(pair_rows, assistant.device)
            reference.append(answer_log_probs(assistant.model, batch))

    def loss_at(step: int) -> Tensor:
        chosen = rows_at(step, len(rows), settings.batch_size, settings.seed)
        batch = batch_of([row for n in chosen for row in rows[n]], assistant.device)
        policy = answer_log_probs(assistant.model, batch).reshape(-1, 2)  # (pairs, 2)
        return dpo_loss(policy, torch.stack([reference[n] for n in chosen]), settings.beta)

    return assistant.optimize(loss_at, len(rows), rows, snapshots, say)
