"""No training: ask the decoder, and compare how likely it finds each label as the answer."""

import json
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmnb import files, models
from llmnb.fast_linear import optimize_for_cpu
from llmnb.fine_tuning.base import Classifier, FineTuningError
from llmnb.generation import KeyValueCache
from llmnb.transformer import Decoder

PROMPTS_PER_BATCH = 16
CALIBRATION_TEXTS = 64
TEMPLATE_TOKENS = 16  # room for the words around a text, such as "Text:" and "Label:"
PROMPT_FILE = "prompt.json"

_decoders = weakref.WeakValueDictionary()  # zero- and few-shot share a decoder while it is in use


class Prompted(Classifier):
    """log p(label | prompt) minus the label's mean over many texts, its usual score.

    Without that, a label that is likely after any text would always win; with it, every class is
    expected about equally often. The beginning of the prompt is the same for every text, so its
    keys and values are computed once. Source: Brown et al. 2020, section 2.4 (options by
    likelihood); Zhou et al. 2024, section 3 (batch calibration).
    """

    instruction: str = ""
    usual: list[float]  # each label's usual score
    model: Decoder | None = None

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
        rows_of_class = [np.flatnonzero(labels == number) for number in range(len(names))]
        shown_rows = set()
        for shot in range(self.settings.shots):
            for name, rows in zip(names, rows_of_class, strict=True):
                if shot < len(rows):
                    parts.append(f"Text: {_on_one_line(texts[rows[shot]])}\nLabel: {name}")
                    shown_rows.add(rows[shot])
        self.instruction = "\n\n".join(parts) + "\n\n"
        others = [text for row, text in enumerate(texts) if row not in shown_rows]
        self._load()
        self.usual = self._label_scores(others[:CALIBRATION_TEXTS] or texts).mean(0).tolist()
        return self

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes)"""
        self._load()
        scores = self._label_scores(texts) - torch.tensor(self.usual, dtype=torch.float64)
        return torch.softmax(scores, dim=-1).numpy()

    @torch.inference_mode()
    def _load(self) -> None:
        """The decoder, and the keys and values of the instruction."""
        if self.model is not None:
            return
        self.tokenizer = models.load_tokenizer(self.base)
        key = (self.base, self.settings.dtype)
        self.model = _decoders.get(key) or optimize_for_cpu(Decoder.from_pretrained(*key))
        _decoders[key] = self.model
        self.label_ids = [self._token_ids(" " + name) for name in self.label_names]
        prefix = self._token_ids(self.instruction)
        if self.tokenizer.bos_token_id is not None:
            prefix.insert(0, self.tokenizer.bos_token_id)
        longest_label = max(len(ids) for ids in self.label_ids)
        room = self.model.config.n_positions - longest_label - TEMPLATE_TOKENS
        if len(prefix) + self.settings.max_length > room:
            raise FineTuningError(
                f"The prompt has {len(prefix)} tokens and a text up to {self.settings.max_length}, "
                f"but this decoder reads only {room} together: lower shots or max_length."
            )
        weight = self.model.embedding.weight
        self.prefix = KeyValueCache(self.model.config, 1, len(prefix), like=weight)
        ids = torch.tensor([prefix], device=weight.device)
        self.model(ids, cache=self.prefix, last_only=True)

    def _token_ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def _label_scores(self, texts: Sequence[str]) -> Tensor:
        """log p(label | prompt with the text): (texts, classes), float64 on the CPU."""
        end = self._token_ids("\nLabel:")
        prompts = []
        for text in texts:
            ids = self._token_ids("Text: " + _on_one_line(text))
            prompts.append(ids[: self.settings.max_length] + end)
        scores = torch.zeros(len(prompts), len(self.label_ids), dtype=torch.float64)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), PROMPTS_PER_BATCH):
            rows = order[start : start + PROMPTS_PER_BATCH]
            scores[rows] = self._score_batch([prompts[row] for row in rows]).double().cpu()
        return scores

    def _score_batch(self, prompts: list[list[int]]) -> Tensor:
        """(prompts, classes). The prompts are read once, whatever the number of labels."""
        weight = self.model.embedding.weight
        width = max(len(ids) for ids in prompts)
        n_read = self.prefix.length + width
        # Padding is on the left of a text, so it stands between the instruction and the text.
        padded = [ids[:1] * (width - len(ids)) + ids for ids in prompts]
        mask = torch.ones(len(prompts), n_read, dtype=torch.long, device=weight.device)
        for row, ids in enumerate(prompts):
            mask[row, self.prefix.length : n_read - len(ids)] = 0
        longest_label = max(len(ids) for ids in self.label_ids)
        n_positions = n_read + longest_label
        cache = KeyValueCache(self.model.config, len(prompts), n_positions, like=weight)
        cache.copy_prefix(self.prefix)
        ids = torch.tensor(padded, device=weight.device)
        logits = self.model(ids, attention_mask=mask, cache=cache, last_only=True)[:, -1]
        first_log_probs = logits.float().log_softmax(-1)  # (prompts, vocab)
        scores = []
        for label_ids in self.label_ids:
            score = first_log_probs[:, label_ids[0]]
            if len(label_ids) > 1:
                cache.length = n_read  # forget the label before
                label = torch.tensor([label_ids], device=weight.device).expand(len(prompts), -1)
                rest = label[:, 1:]
                longer_mask = torch.cat((mask, torch.ones_like(rest)), dim=1)
                logits = self.model(label[:, :-1], attention_mask=longer_mask, cache=cache)
                log_probs = logits.float().log_softmax(-1)  # (prompts, label tokens - 1, vocab)
                score = score + log_probs.gather(-1, rest[:, :, None]).sum((1, 2))
            scores.append(score)
        return torch.stack(scores, dim=1)

    def write(self, folder: Path) -> None:
        """The prompt and the usual scores; the decoder stays where it is."""
        files.write_json(folder / PROMPT_FILE, {"prompt": self.instruction, "usual": self.usual})

    def read(self, folder: Path) -> None:
        """The prompt and the usual scores."""
        saved = json.loads((folder / PROMPT_FILE).read_text(encoding="utf-8"))
        self.instruction = saved["prompt"]
        self.usual = saved["usual"]


def _on_one_line(text: str) -> str:
    return " ".join(text.split())
