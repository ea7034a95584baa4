"""The training loop: batches, gradients, steps; measured, logged, and safe against a kill."""

import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmnb import generation, hardware
from llmnb.concepts import start_token
from llmnb.files import write_json, write_text
from llmnb.pretraining import objectives, snapshots
from llmnb.pretraining.optimizers import learning_rate, optimizers_for
from llmnb.pretraining.processes import Processes
from llmnb.pretraining.recipe import PretrainingError, Recipe
from llmnb.pretraining.tokens import TokenCorpus, batch_at, validation_blocks

_AT_ONCE = 2048  # tokens that are evaluated together: what a processor's cache holds


class Trainer:
    """One training run, from its beginning or from where it was killed; `run` does it all."""

    def __init__(
        self,
        corpus: TokenCorpus,
        recipe: Recipe,
        out: str | Path | None = None,
        resume: bool = True,
        evaluations: int = 20,
        samples: int = 0,
        prompt: str = "",
        checkpoint_seconds: float = 60.0,
        shard: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """out: a folder for log and checkpoints, None: nothing is written.

        evaluations: how often the whole validation set is measured; samples: at how many of these
        moments a text is written, behind prompt; say: takes a line each time. Raises
        PretrainingError for what can't work, before any long work.
        """
        self.corpus, self.recipe = corpus, recipe
        self.processes = Processes.join(shard)
        self.device, self.say = hardware.device(), say or (lambda line: None)
        self.prompt, self.checkpoint_seconds = prompt, checkpoint_seconds
        if recipe.batch_size % (self.processes.count * recipe.accumulation):
            raise PretrainingError(
                f"batch_size {recipe.batch_size} can't be shared evenly by {recipe.accumulation} "
                f"parts in each of {self.processes.count} processes."
            )
        self.blocks = validation_blocks(corpus.validation, recipe.block_size)
        batch_at(corpus.train, recipe.seed, 0, 1, recipe.block_size)  # is there a block at all?
        self.dtype = hardware.dtype(recipe.dtype, self.device)
        self.model = recipe.build(len(corpus.tokenizer)).to(self.device)
        self.n_parameters = sum(p.numel() for p in self.model.parameters())
        self.sharded = self.processes.sharded
        self.wrapped = self.processes.wrap(self.model, self.dtype)
        rates = (recipe.lr, recipe.matrix_lr, recipe.weight_decay)
        self.optimizers = optimizers_for(self.model, recipe.optimizer, *rates, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)
        self.step, self.seconds, self.log = 0, 0.0, []
        self.waiting: dict[str, Any] = {"losses": [], "seconds": 0.0}  # since the log's last row
        self.out = Path(out).expanduser() if out else None
        self.steps = self._open(resume) if self.out else self._budget()
        self.every = max(1, self.steps // max(1, evaluations))
        early = (round(evaluations * 0.37**k) * self.every for k in range(1, samples - 1))
        # a sharded model can't write: no process has the weights of a whole layer
        self.moments = {0, self.steps, *early} if samples and not self.sharded else set()

    def batch(self, number: int) -> Tensor:
        """This process's part of a step's blocks: (batch / processes, seq + 1)."""
        return self._share(self._blocks(number))

    def _blocks(self, number: int) -> Tensor:
        """Of all processes."""
        size, seed = self.recipe.batch_size, self.recipe.seed
        blocks = batch_at(self.corpus.train, seed, number, size, self.recipe.block_size)
        return torch.from_numpy(blocks).to(self.device)

    def _share(self, rows: Tensor) -> Tensor:
        size = len(rows) // self.processes.count
        return rows[self.processes.rank * size :][:size]

    def examples(self, blocks: Tensor, seed: list[int]) -> tuple[Tensor, ...]:
        """What the objective takes: the blocks; for a masked model, also what `hide` makes of them.

        seed: of what is hidden. It is drawn for a whole batch, however that is shared later.
        """
        if self.recipe.objective == "causal":
            return (blocks,)
        tokenizer, blocks = self.corpus.tokenizer, blocks[:, 1:]
        first = 1 + max(tokenizer.all_special_ids)
        hidden = objectives.hide(blocks, tokenizer.mask_token_id, len(tokenizer), first, seed)
        return blocks, *hidden

    def loss(self, *examples: Tensor) -> Tensor:
        """The objective, in nats a token."""
        if self.recipe.objective == "causal":
            return objectives.causal_loss(self.forward, *examples)
        return objectives.masked_loss(self.forward, *examples)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logits, computed in self.dtype with a copy of the fp32 weights, which learn.

        Source: Micikevicius et al. 2018, section 3.1.
        """
        if self.dtype == torch.float32 or self.sharded:  # FSDP has its own way
            return self.wrapped(*inputs)
        weights = {name: p.to(self.dtype) for name, p in self.wrapped.named_parameters()}
        return torch.func.functional_call(self.wrapped, weights, inputs)

    def train_step(self) -> float:
        """One update; the batch's loss before it. Raises PretrainingError where it is NaN."""
        recipe, number, total = self.recipe, self.step, torch.zeros((), device=self.device)
        examples = self.examples(self._blocks(number), [recipe.seed, number])
        cut = [self._share(each).chunk(recipe.accumulation) for each in examples]
        for index, part in enumerate(zip(*cut, strict=True)):
            last = index == recipe.accumulation - 1
            with contextlib.nullcontext() if last else self._unsynchronized():
                loss = self.loss(*part) / recipe.accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.processes.count > 1:
            torch.distributed.all_reduce(total)
        mean = self._finite(total.item() / self.processes.count)
        self._update(learning_rate(number, self.steps, recipe.warmup, recipe.decay))
        self.step += 1
        return mean

    def _finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        recipe = self.recipe
        raise PretrainingError(
            f"The loss is {loss} at step {self.step}. Mostly the learning rate is too high: "
            f"halve lr ({recipe.lr:g}) and matrix_lr ({recipe.matrix_lr:g}), or lengthen "
            f"warmup ({recipe.warmup:g}); dtype fp32 rules out an overflow."
        )

    def _unsynchronized(self):
        """Gradients are exchanged once a step, after its last part."""
        no_sync = getattr(self.wrapped, "no_sync", None)
        return no_sync() if no_sync else contextlib.nullcontext()

    def _update(self, rate: float) -> None:
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["initial_lr"]
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()

    @torch.no_grad()
    def evaluate(self) -> float:
        """Nats a token over the whole validation set, with the same tokens hidden each time."""
        self.wrapped.eval()
        at_once, total = max(1, _AT_ONCE // self.recipe.block_size), 0.0
        for start in range(0, len(self.blocks), at_once):
            blocks = torch.from_numpy(self.blocks[start : start + at_once]).to(self.device)
            total += len(blocks) * self.loss(*self.examples(blocks, [start])).item()
        self.wrapped.train()
        return self._finite(total / len(self.blocks))

    def run(self) -> list[dict[str, Any]]:
        """The steps that are left; the log's rows. Afterwards the model is in eval mode."""
        if not self.log:
            self._note({"loss": None, "validation_loss": self.evaluate()})
        saved = time.monotonic()
        while self.step < self.steps:
            start = time.perf_counter()
            with self._memory_explained():
                self.waiting["losses"].append(self.train_step())
            self.waiting["seconds"] += time.perf_counter() - start
            if self.step % self.every == 0 or self.step == self.steps:
                self._measure()
            late = time.monotonic() - saved >= self.checkpoint_seconds
            if self.out and self.processes.first(late or self.step == self.steps):
                self.save()
                saved = time.monotonic()
        self.model.eval()
        return self.log

    def _measure(self) -> None:
        losses, seconds = self.waiting.values()
        self.waiting = {"losses": [], "seconds": 0.0}
        self.seconds += seconds
        row = {"loss": float(np.mean(losses)), "lr": self.optimizers[0].param_groups[0]["lr"]}
        row["tokens_per_second"] = len(losses) * self.recipe.step_tokens / seconds
        self._note(row | {"validation_loss": self.evaluate()})

    def _note(self, row: dict[str, Any]) -> None:
        place = {"step": self.step, "tokens": self.step * self.recipe.step_tokens}
        row = place | {"seconds": self.seconds} | row
        if self.step in self.moments and self.recipe.objective == "causal":
            row["sample"] = self.sample()
        self.log.append(row)
        if self.processes.rank:
            return
        if self.out:
            with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        learned = f"training {row['loss']:.3f}  " if row["loss"] is not None else ""
        self.say(
            f"{100 * self.step / self.steps:3.0f} %  {self.seconds:6.1f} s  "
            f"{row['tokens']:>12,} tokens  {learned}validation {row['validation_loss']:.3f}"
        )

    def sample(self, n: int = 0, seed: int = 0) -> str:
        """A text behind the prompt, n tokens at most (0: as many as a block holds)."""
        tokenizer = self.corpus.tokenizer
        ids = [start_token(tokenizer), *tokenizer(self.prompt, add_special_tokens=False).input_ids]
        new = max(1, min(n or 200, self.recipe.block_size - len(ids)))
        ids = torch.tensor([ids[-self.recipe.block_size + 1 :]], device=self.device)
        chosen = generation.Sampling(temperature=0.8, seed=seed)
        written = generation.generate(self.model, ids, max_new_tokens=new, sampling=chosen)
        return tokenizer.decode(written[0, 1:])

    def save(self) -> None:
        """All that a resumed run needs, in one file."""
        facts = {"step": self.step, "seconds": self.seconds, "waiting": self.waiting}
        facts["scaler"] = self.scaler.state_dict()
        snapshots.save(self.out / "checkpoint.safetensors", self.model, self.optimizers, facts)

    def _open(self, resume: bool) -> int:
        """Take up the run in the folder, or begin one; the number of its steps."""
        facts = {"recipe": self.recipe.as_dict(), "corpus": self.corpus.folder.name}
        facts["dtype"] = str(self.dtype).removeprefix("torch.")
        file, snapshot = self.out / "run.json", self.out / "checkpoint.safetensors"
        if not self.processes.first(file.exists()):  # who looks later may see what it wrote
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise PretrainingError(f"out can't be {self.out}: {error}") from error
            facts["steps"] = self._budget()
            if self.processes.rank == 0:
                write_json(file, facts)
            return facts["steps"]
        if not resume:
            raise PretrainingError(
                f"{self.out} holds a run already: resume it, or name another folder."
            )
        known = json.loads(file.read_text(encoding="utf-8"))
        before, now = _flat(known), _flat(facts | {"steps": known["steps"]})
        for key in now | before:
            if before.get(key) != now.get(key):
                raise PretrainingError(
                    f"{self.out} holds another run: its {key} is {before.get(key)!r}, not "
                    f"{now.get(key)!r}. "
                    f"Name another folder, or give the settings in its run.json."
                )
        if snapshot.exists():
            state = snapshots.load(snapshot, self.model, self.optimizers)
            self.step, self.seconds = state["step"], state["seconds"]
            self.waiting = state["waiting"]
            self.scaler.load_state_dict(state["scaler"])
        self.log = self._read_log()
        if self.processes.rank == 0:
            self.say(f"resumed at step {self.step:,} of {known['steps']:,}")
        return known["steps"]

    def _read_log(self) -> list[dict[str, Any]]:
        """The rows up to the checkpoint; those behind it will be made again."""
        path, rows = self.out / "log.jsonl", []
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for line in text.split("\n"):  # splitlines would also split at a sample's U+2028
            with contextlib.suppress(json.JSONDecodeError):  # the line that the kill cut in two
                rows.append(json.loads(line))
        rows = [row for row in rows if row["step"] <= self.step]
        if self.processes.rank == 0:
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(path, "".join(lines))
        return rows

    def _budget(self) -> int:
        """Steps for the recipe's tokens; for minutes, as many as this machine does in them."""
        recipe, first = self.recipe, self.processes.first
        if steps := recipe.steps():
            return steps
        endless = replace(recipe, minutes=0.0, tokens=10**6 * recipe.step_tokens)
        probe = Trainer(self.corpus, endless, shard=self.sharded)
        limit, seconds = time.perf_counter() + max(1.0, 2 * recipe.minutes), []
        while len(seconds) < 5 or (len(seconds) < 50 and first(time.perf_counter() < limit)):
            start = time.perf_counter()
            with self._memory_explained():
                probe.train_step()
            seconds.append(time.perf_counter() - start)
        per_step = first(float(np.median(seconds[2:])))
        return max(1, round(60 * recipe.minutes / per_step))

    @contextlib.contextmanager
    def _memory_explained(self):
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            text = str(error)
            wanted = ("out of memory", "not enough memory", "can't allocate memory")
            if not isinstance(error, MemoryError) and not any(w in text.lower() for w in wanted):
                raise
            recipe = self.recipe
            raise PretrainingError(
                f"The memory is not enough for a step. Compute it in more parts: accumulation "
                f"{2 * recipe.accumulation} (now {recipe.accumulation}, of batch_size "
                f"{recipe.batch_size}) gives the same result; or lower block_size "
                f"({recipe.block_size}), then d_model ({recipe.d_model})."
            ) from error


def _flat(facts: dict[str, Any], before: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in facts.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{before}{key}.") if nested else {before + key: value}
    return flat
