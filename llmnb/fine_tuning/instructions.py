"""Supervised fine-tuning on instructions: the loss on the answers alone, the training, the result.

conversations.py has the format and the mask; preferences.py trains further, on pairs of answers.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from llmnb import card, files, generation, models
from llmnb.fine_tuning.base import FineTuningError, with_lora
from llmnb.fine_tuning.completion import complete
from llmnb.fine_tuning.conversations import (
    Batch,
    Messages,
    batch_of,
    encode,
    rendered,
    with_chat_format,
)
from llmnb.pretraining.checkpoint import load_state, save_state
from llmnb.pretraining.optimizers import learning_rate

FACTS = "assistant.json"  # a file beside the weights: settings, metrics, the data's fingerprint
SECONDS_PER_SNAPSHOT = 60
_CAVEATS = """It has learned to answer as that data does, mistakes and prejudice included. Outside
of it it can be wrong in the same confident form. A constraint on the form of an answer does not
make its content right."""


@dataclass(frozen=True)
class Settings:
    """How an assistant is trained. Raises FineTuningError for a value that makes no sense."""

    base: str = "gemma-3-270m-q4_k_m"  # a known model, a folder or a Hub id
    steps: int = 0  # optimizer steps; 0: three times through the examples
    lr: float = 1e-3
    batch_size: int = 8  # conversations, or pairs, a step
    max_length: int = 512  # tokens; a longer conversation is left out
    lora_rank: int = 16
    lora_dropout: float = 0.0  # the share of LoRA's inputs that a step of SFT leaves out
    beta: float = 0.1  # of DPO
    dtype: str = "auto"  # or fp32, bf16, fp16
    seed: int = 0

    def __post_init__(self) -> None:
        minimum = {"steps": 0, "batch_size": 1, "max_length": 8, "lora_rank": 1, "seed": 0}
        for name, low in minimum.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise FineTuningError(f"{name} is {value!r}; it must be {low} or more.")
        for name, high in (("lr", 0.1), ("beta", 100)):
            value = getattr(self, name)
            if not 0 < value <= high:
                raise FineTuningError(
                    f"{name} is {value!r}; it must be above 0 and at most {high}."
                )
        if not 0 <= self.lora_dropout < 1:
            raise FineTuningError(f"lora_dropout is {self.lora_dropout!r}; it is 0 to below 1.")


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that predict the answers' n tokens, (n, vocab); these tokens and their rows, (n,).

    The vocabulary is by far the widest layer, and most positions belong to the prompt. Raises
    FineTuningError for an architecture that scales its logits.
    """
    hidden = model.get_decoder()(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state  # (rows, seq, d_model)
    scales = {"logits_scaling": "Granite", "logit_scale": "Cohere"}
    if names := [name for name in scales if getattr(model.config, name, 1) not in (None, 1)]:
        raise FineTuningError(
            f"This model scales its logits ({names[0]}, as {scales[names[0]]} does), which isn't "
            f"implemented: take another base."
        )
    is_next = batch.is_answer[:, 1:]
    logits = model.get_output_embeddings()(hidden[:, :-1][is_next])  # 2-D: much faster than 3-D
    if cap := getattr(model.config, "final_logit_softcapping", None):  # Gemma 2
        logits = cap * torch.tanh(logits / cap)
    return logits.float(), batch.input_ids[:, 1:][is_next], is_next.nonzero()[:, 0]


def sft_loss(model: nn.Module, batch: Batch) -> Tensor:
    """-1/n · Σ log P(token | what stands before it), over the n tokens of the answers.

    Source: Ouyang et al. 2022, section 3.1; the mask: Wei et al. 2022.
    """
    logits, targets, _ = answer_logits(model, batch)
    return F.cross_entropy(logits, targets)


def answer_log_probs(model: nn.Module, batch: Batch) -> Tensor:
    """log P(answer | prompt) of each row, the sum over its tokens: (rows,)."""
    logits, targets, rows = answer_logits(model, batch)
    scores = -F.cross_entropy(logits, targets, reduction="none")  # (n,)
    return scores.new_zeros(len(batch.input_ids)).index_add(0, rows, scores)


def rows_at(step: int, n_rows: int, batch_size: int, seed: int) -> list[int]:
    """The rows of a step: every row once an epoch, in an order drawn from seed and epoch."""
    rows = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, n_rows)
        generator = torch.Generator().manual_seed(1_000_003 * seed + epoch)
        rows.append(torch.randperm(n_rows, generator=generator)[place].item())
    return rows


def optimize(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    lr: float,
    snapshot: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[float]:
    """Train what requires gradients, with AdamW; returns the loss of each step.

    loss_at: the loss of a step, which must depend on nothing but its number. snapshot: a file from
    which a killed training is resumed. Raises FineTuningError where the loss isn't finite any more.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained = nn.ParameterList(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses: list[float] = []
    if snapshot is not None and snapshot.is_file():
        losses = load_state(snapshot, trained, [optimizer])["losses"]
        say(f"goes on from step {len(losses)}")
    last_saved = start = time.monotonic()
    for step in range(len(losses), steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(step, steps, warmup=0.1, decay=0.7)
        loss = loss_at(step)
        if not loss.isfinite():
            raise FineTuningError(f"The loss is not finite at step {step}: lower lr ({lr:g}).")
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        now = time.monotonic()
        if (step + 1) % max(1, steps // 8) == 0 or step + 1 == steps:
            say(f"step {step + 1:4} of {steps} {now - start:6.1f} s   loss {losses[-1]:.3f}")
        if snapshot is not None and now - last_saved >= SECONDS_PER_SNAPSHOT:
            save_state(snapshot, trained, [optimizer], {"losses": losses})
            last_saved = now
    return losses


class Assistant:
    """A decoder with LoRA's matrices beside its own, and the chat format that it is tuned to.

    Before any training it answers exactly as the base model does. Raises AssetError, and
    FineTuningError for a setting that makes no sense.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokenizer = with_chat_format(models.load_tokenizer(settings.base))
        base = models.load_decoder(settings.base, settings.dtype)
        self.device = base.device
        torch.manual_seed(settings.seed)  # LoRA's A is random; B is zero
        options = {"rank": settings.lora_rank, "dropout": settings.lora_dropout}
        self.adapted = with_lora(base, "CAUSAL_LM", **options)
        self.adapted.peft_config["default"].base_model_name_or_path = settings.base
        self.model = self.adapted.get_base_model()  # LoRA's matrices are in it

    def rows(self, conversations: Sequence[Messages]) -> list[tuple]:
        """The conversations that are short enough, encoded.

        Raises FineTuningError where none is.
        """
        encoded = [encode(self.tokenizer, messages) for messages in conversations]
        rows = [row for row in encoded if len(row[0]) <= self.settings.max_length]
        if not rows:
            raise FineTuningError(
                f"No conversation has at most max_length = {self.settings.max_length} tokens."
            )
        return rows

    def batch(self, conversations: Sequence[Messages]) -> Batch:
        """The conversations as one batch, on the model's device."""
        return batch_of(self.rows(conversations), self.device)

    def fit(
        self,
        conversations: Sequence[Messages],
        snapshots: Path | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[float]:
        """Supervised fine-tuning; returns the loss of each step.

        snapshots: a folder from which a killed training is resumed. Conversations that
        are too long are left out and counted.
        """
        rows = self.rows(conversations)
        if n_long := len(conversations) - len(rows):
            say(f"{n_long:,} longer than {self.settings.max_length} tokens are left out")
        size = self.settings.batch_size

        def loss_at(step: int) -> Tensor:
            seed = self.settings.seed
            batch = batch_of([rows[n] for n in rows_at(step, len(rows), size, seed)], self.device)
            with torch.random.fork_rng():
                torch.manual_seed(
                    1_000_003 * seed + step
                )  # so a resumed training drops the same inputs
                return sft_loss(self.model, batch)

        self.model.train()  # dropout is on; DPO compares probabilities, so it trains without
        try:
            return self.optimize(loss_at, len(rows), rows, snapshots, say)
        finally:
            self.model.eval()

    def optimize(self, loss_at, n_rows: int, facts: Any, snapshots: Path | None, say) -> list:
        """Train LoRA's matrices; facts: what decides the result besides weights and settings."""
        settings = self.settings
        steps = settings.steps or -(-3 * n_rows // settings.batch_size)
        file = None
        if snapshots is not None:
            snapshots.mkdir(parents=True, exist_ok=True)
            key = [dataclasses.asdict(settings), facts, self.digest()]
            name = hashlib.sha256(json.dumps(key).encode("utf-8", "surrogatepass")).hexdigest()
            file = snapshots / f"{name[:12]}.safetensors"
        losses = optimize(self.model, loss_at, steps, settings.lr, file, say)
        if file is not None:
            file.unlink(missing_ok=True)
        return losses

    def adapter(self) -> dict[str, Tensor]:
        """A copy of LoRA's matrices."""
        parameters = self.model.named_parameters()
        return {n: p.detach().clone() for n, p in parameters if p.requires_grad}

    def restore(self, adapter: Mapping[str, Tensor]) -> None:
        """Put LoRA's matrices back as `adapter` returned them."""
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in adapter.items():
                parameters[name].copy_(value)

    def digest(self) -> str:
        """12 hex digits of the base model and of LoRA's matrices as they are now."""
        total = hashlib.sha256(models.digest(self.settings.base).encode())
        for value in self.adapter().values():
            total.update(value.float().cpu().numpy().tobytes())
        return total.hexdigest()[:12]

    def answers(self, conversations, schema=None, **options) -> list[str]:
        """The answer to each conversation, which ends with a user's message; see `complete`."""
        prompts = [rendered(self.tokenizer, messages) for messages in conversations]
        return self.complete(prompts, schema, **options)

    def complete(self, prompts: Sequence[str], schema=None, **options) -> list[str]:
        """The continuation of each text, by this model; see the function `complete`."""
        with self._merged_for_a_while():
            return complete(self.model, self.tokenizer, prompts, schema, **options)

    @contextlib.contextmanager
    def _merged_for_a_while(self) -> Iterator[None]:
        """LoRA's product added to each matrix, since a step of one token takes half as long then.

        Taken back by putting the old matrix there: subtracting would leave rounding errors.
        """
        layers = self._layers().values()
        originals = [layer.base_layer.weight.data for layer in layers]
        with self.adapted.disable_adapter():
            try:
                for layer, original in zip(layers, originals, strict=True):
                    change = layer.get_delta_weight("default").detach()
                    layer.base_layer.weight.data = (original + change).to(original.dtype)
                yield
            finally:
                for layer, original in zip(layers, originals, strict=True):
                    layer.base_layer.weight.data = original

    def save(self, folder: str | Path, data: str, notes: str = "") -> Path:
        """Write the merged model in fp32, its tokenizer, the adapter, and a model card.

        data: what it was trained on, with its fingerprint; notes: a paragraph for the card, such
        as what the training cost. Raises CardError for a folder with other files in it.
        """
        facts = {"settings": dataclasses.asdict(self.settings), "data": data}
        facts["base_digest"] = models.digest(self.settings.base)

        def write(partial: Path) -> None:
            self.adapted.save_pretrained(partial / "adapter", save_embedding_layers=False)
            merged = self.merged()
            merged.generation_config = transformers.GenerationConfig(
                eos_token_id=generation.stop_ids_of(self.tokenizer),
                pad_token_id=self.tokenizer.pad_token_id,
            )
            merged.save_pretrained(partial)
            self.tokenizer.save_pretrained(partial)
            name = Path(folder).expanduser().resolve().name
            page = card.model_card(
                f"An assistant: {name}",
                {"data": data, **facts["settings"]},
                intro="A base model, tuned to follow instructions with LoRA.",
                usage=_USAGE.format(folder=name),
                caveats=f"{card.plain(notes)}\n\n{_CAVEATS}",
                tags={"pipeline_tag": "text-generation"},
            )
            files.write_text(partial / "README.md", page)

        return card.write_result(folder, FACTS, facts, write)

    def merged(self) -> nn.Module:
        """A new model in fp32, on the CPU: W + α/r · B A in the place of each W."""
        merged = models.load_decoder(self.settings.base, "fp32", "cpu")
        with torch.no_grad():
            for name, layer in self._layers().items():
                change = layer.get_delta_weight("default")
                merged.get_submodule(name).weight += change.float().cpu()
        return merged

    def _layers(self) -> dict[str, nn.Module]:
        """peft's layers by name; each has LoRA's matrices and, as base_layer, the model's own."""
        modules = self.model.named_modules()
        return {name: layer for name, layer in modules if hasattr(layer, "get_delta_weight")}


_USAGE = """import transformers
assistant = transformers.pipeline("text-generation", {folder!r})
assistant([{{"role": "user", "content": "…"}}], max_new_tokens=100)"""
