"""No training: ask the decoder, and compare how likely it finds each label as the answer."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmnb import hardware, models
from llmnb.fast_linear import optimize_for_cpu
from llmnb.fine_tuning.base import Classifier, FineTuningError, example_rows
from llmnb.generation import KeyValueCache
from llmnb.transformer import Decoder

PROMPTS_PER_BATCH = 16
CALIBRATION_TEXTS = 64
TEMPLATE_TOKENS = 16  # room for the words around a text, such as "Text:" and "Label:"

_decoders = weakref.WeakValueDictionary()  # zero- and few-shot share a decoder while it is in use


class Prompted(Classifier):
    """log p(label | prompt) minus the label's mean over many texts, its usual score.

    Without that, a label that is likely after any text would always win; with it, every class is
    expected about equally often. The beginning of the prompt is the same for every text, so its
    keys and values are computed once. Source: Brown et al. 2020, section 2.4 (options by
    likelihood); Zhou et al. 2024, section 3 (batch calibration).
    """

    needs_base = True
    learned = ("instruction", "usual")
    instruction: str = ""
    usual: list[float]  # each label's usual score
    model: Decoder | None = None
    prefix: KeyValueCache | None = None  # the keys and values of the instruction's tokens

    @property
    def base(self) -> str:
        """The decoder's name."""
        return self.settings.decoder

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Prompted":
        """Write the prompt: the instruction, then the first settings.shots texts of each class.

        Then score up to CALIBRATION_TEXTS other texts, without their labels, for `usual`.
        """
        names = self.label_names
        parts = [f"Classify each text as {', '.join(names[:-1])} or {names[-1]}."]
        rows = example_rows(labels, len(names), self.settings.shots)
        for row in rows:
            parts.append(f"Text: {_on_one_line(texts[row])}\nLabel: {names[labels[row]]}")
        self.instruction = "\n\n".join(parts) + "\n\n"
        self.prefix = None  # an earlier instruction's
        others = [text for row, text in enumerate(texts) if row not in rows]
        self.usual = self._label_scores(others[:CALIBRATION_TEXTS] or texts).mean(0).tolist()
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes)"""
        scores = self._label_scores(texts) - torch.tensor(self.usual, dtype=torch.float64)
        return torch.softmax(scores, dim=-1).numpy()

    def _load(self) -> None:
        """The decoder, and the keys and values of the instruction."""
        if self.model is None:
            self.tokenizer = models.load_tokenizer(self.base)
            key = (self.base, models.digest(self.base), hardware.dtype(self.settings.dtype))
            self.model = _decoders.get(key)
            if self.model is None:
                plain = Decoder.from_pretrained(self.base, self.settings.dtype)
                self.model = _decoders[key] = optimize_for_cpu(plain)
        if self.prefix is not None:
            return
        start = "\nLabel:"
        n_start = len(self._token_ids(start))
        self.label_ids = [self._token_ids(f"{start} {n}")[n_start:] for n in self.label_names]
        self.prefix_ids = self._prompt_ids(self.instruction)
        longest_label = max(len(ids) for ids in self.label_ids)
        room = self.model.config.n_positions - longest_label - TEMPLATE_TOKENS
        if len(self.prefix_ids) + self.settings.max_length > room:
            raise FineTuningError(
                f"The prompt has {len(self.prefix_ids)} tokens and a text up to "
                f"{self.settings.max_length}, but this decoder reads only {room} together: "
                "lower shots or max_length."
            )
        weight = self.model.embedding.weight
        prefix = KeyValueCache(self.model.config, 1, len(self.prefix_ids), like=weight)
        ids = torch.tensor([self.prefix_ids], device=weight.device)
        self.model(ids, cache=prefix, last_only=True)
        self.prefix = prefix

    def _token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _prompt_ids(self, text: str) -> list[int]:
        """The tokens of a whole prompt, or of its beginning."""
        bos = self.tokenizer.bos_token_id
        return ([] if bos is None else [bos]) + self._token_ids(text)

    def _prompt(self, text: str) -> list[int]:
        """The instruction, at most settings.max_length tokens of the text, and "Label:".

        It is tokenized as a whole, because its parts alone can give other tokens: between the
        instruction and a text, GPT-2's tokenizer reads two line ends as two tokens, and at the end
        of the instruction as one.
        """
        text = _on_one_line(text)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]  # of each token, its first character and its end
        if len(offsets) > self.settings.max_length:
            text = text[: offsets[self.settings.max_length - 1][1]]
        return self._prompt_ids(f"{self.instruction}Text: {text}\nLabel:")

    @torch.inference_mode()
    def _label_scores(self, texts: Sequence[str]) -> Tensor:
        """log p(label | prompt with the text): (texts, classes), float64 on the CPU."""
        self._load()
        prompts = [self._prompt(text) for text in texts]
        scores = torch.zeros(len(prompts), len(self.label_ids), dtype=torch.float64)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            rows = order[start : start + PROMPTS_PER_BATCH]
            scores[rows] = self._score_batch([prompts[row] for row in rows]).double().cpu()
        return scores

    def _score_batch(self, prompts: list[list[int]]) -> Tensor:
        """(prompts, classes). The prompts are read once, whatever the number of labels."""
        weight = self.model.embedding.weight
        # What the prompts and the instruction have in common is in the cache already.
        is_same = [len({*ids}) == 1 for ids in zip(self.prefix_ids, *prompts, strict=False)]
        n_shared = [*is_same, False].index(False)
        rests = [ids[n_shared:] for ids in prompts]
        width = max(len(ids) for ids in rests)
        n_read = n_shared + width
        # Padding is on the left of a text, so it stands between the instruction and the text.
        padded = [ids[:1] * (width - len(ids)) + ids for ids in rests]
        mask = torch.ones(len(prompts), n_read, dtype=torch.long, device=weight.device)
        for row, ids in enumerate(rests):
            mask[row, n_shared : n_read - len(ids)] = 0
        longest_label = max(len(ids) for ids in self.label_ids)
        n_positions = n_read + longest_label
        cache = KeyValueCache(self.model.config, len(prompts), n_positions, like=weight)
        cache.copy_prefix(self.prefix, n_shared)
        ids = torch.tensor(padded, device=weight.device)
        logits = self.model(ids, attention_mask=mask, cache=cache, last_only=True)[:, -1]
        first_log_probs = logits.float().log_softmax(-1)  # (prompts, vocab)
        scores = []
        for label_ids in self.label_ids:
            score = first_log_probs[:, label_ids[0]]
            if len(label_ids) > 1:
                cache.length = n_read  # forget the previous label
                label = torch.tensor([label_ids], device=weight.device).expand(len(prompts), -1)
                rest = label[:, 1:]
                longer_mask = torch.cat((mask, torch.ones_like(rest)), dim=1)
                logits = self.model(label[:, :-1], attention_mask=longer_mask, cache=cache)
                log_probs = logits.float().log_softmax(-1)  # (prompts, label tokens - 1, vocab)
                score = score + log_probs.gather(-1, rest[:, :, None]).sum((1, 2))
            scores.append(score)
        return torch.stack(scores, dim=1)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
