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

_BATCH = 16
_USUAL = 64  # texts whose mean score is taken as a label's bias
_LOADED = weakref.WeakValueDictionary()  # zero- and few-shot share one decoder while it is in use


class Prompted(Classifier):
    """log p(label | prompt), less what the label gets on average, whatever the text.

    So every class is expected about equally often. The prompt's beginning is the same for every
    text: its keys and values are computed once. Source: Brown et al. 2020, section 2.4 (options
    by likelihood); Zhou et al. 2024, section 3 (batch calibration).
    """

    instruction: str = ""
    usual: list[float]  # the labels' mean scores
    model: Decoder | None = None

    @property
    def base(self) -> str:
        """The decoder's name."""
        return self.settings.decoder

    def fit(self, texts: Sequence[str], labels: NDArray[np.integer]) -> "Prompted":
        """Write the prompt: the instruction, then the first settings.shots texts of each class.

        Then read up to 64 further texts, without their labels, for the labels' usual scores.
        """
        names = self.label_names
        lines = [f"Classify each text as {', '.join(names[:-1])} or {names[-1]}."]
        chosen = [
            np.flatnonzero(labels == number)[: self.settings.shots] for number in range(len(names))
        ]
        for round_ in range(self.settings.shots):
            for number, rows in enumerate(chosen):
                if round_ < len(rows):
                    lines.append(self._asked(texts[rows[round_]]) + " " + names[number])
        self.instruction = "\n\n".join(lines) + "\n\n"
        shown = {row for rows in chosen for row in rows}
        others = [text for row, text in enumerate(texts) if row not in shown][:_USUAL]
        self._ready()
        with torch.inference_mode():
            self.usual = self._scores(others or texts).mean(0).tolist()
        return self

    def _asked(self, text: str) -> str:
        return f"Text: {' '.join(text.split())}\nLabel:"

    def _ready(self) -> None:
        if self.model is not None:
            return
        self.tokenizer = models.load_tokenizer(self.base)
        key = self.base, self.settings.dtype
        self.model = _LOADED.get(key) or optimize_for_cpu(Decoder.from_pretrained(*key))
        _LOADED[key] = self.model
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        prefix = start + self._ids(self.instruction)
        self.options = [self._ids(" " + name) for name in self.label_names]
        room = self.model.config.n_positions - max(map(len, self.options)) - 16
        if len(prefix) + self.settings.max_length > room:
            raise FineTuningError(
                f"The prompt takes {len(prefix)} tokens and a text up to {self.settings.max_length}"
                f"; this decoder reads {room}: lower shots or max_length."
            )
        like = self.model.embedding.weight
        self.prefix = KeyValueCache(self.model.config, 1, len(prefix), like)
        with torch.inference_mode():
            ids = torch.tensor([prefix], device=like.device)
            self.model(ids, cache=self.prefix, last_only=True)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(texts, classes)"""
        self._ready()
        with torch.inference_mode():
            scores = self._scores(texts) - torch.tensor(self.usual, dtype=torch.float64)
        return torch.softmax(scores, dim=-1).numpy()

    def _scores(self, texts: Sequence[str]) -> Tensor:
        """log p(label | prompt with the text): (texts, classes), float64 on the CPU"""
        end = self._ids("\nLabel:")
        rows = [
            self._ids("Text: " + " ".join(text.split()))[: self.settings.max_length] + end
            for text in texts
        ]
        found = torch.zeros(len(rows), len(self.options), dtype=torch.float64)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            found[batch] = self._scored([rows[row] for row in batch]).double().cpu()
        return found

    def _scored(self, rows: list[list[int]]) -> Tensor:
        """One batch: (rows, classes). The texts are read once, whatever the number of labels."""
        device, before = self.model.embedding.weight.device, self.prefix.length
        width, longest = max(map(len, rows)), max(map(len, self.options))
        ids = torch.tensor([[row[0]] * (width - len(row)) + row for row in rows], device=device)
        mask = torch.ones(len(rows), before + width, dtype=torch.long, device=device)
        for number, row in enumerate(rows):  # padding on the left, behind the prefix
            mask[number, before : before + width - len(row)] = 0
        cache = KeyValueCache(
            self.model.config, len(rows), before + width + longest, self.model.embedding.weight
        )
        cache.copy_prefix(self.prefix)
        logits = self.model(ids, attention_mask=mask, cache=cache, last_only=True)[:, -1]
        first = logits.float().log_softmax(-1)  # (rows, vocab)
        scores = []
        for option in self.options:
            score = first[:, option[0]]
            if rest := option[1:]:
                cache.length = before + width  # forget the last option
                read = torch.tensor([option[:-1]], device=device).expand(len(rows), -1)
                seen = torch.cat((mask, mask.new_ones(len(rows), len(rest))), dim=1)
                logits = self.model(read, attention_mask=seen, cache=cache)
                logs = logits.float().log_softmax(-1)
                targets = torch.tensor(rest, device=device).expand(len(rows), -1)[:, :, None]
                score = score + logs.gather(-1, targets).sum((1, 2))
            scores.append(score)
        return torch.stack(scores, dim=1)

    def write(self, folder: Path) -> None:
        """The prompt and the usual scores are all there is."""
        files.write_json(folder / "prompt.json", {"prompt": self.instruction, "usual": self.usual})

    def read(self, folder: Path) -> None:
        """Prompt and usual scores."""
        found = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))
        self.instruction, self.usual = found["prompt"], found["usual"]
