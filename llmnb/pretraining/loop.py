"""The training loop: one process or several train a model by a recipe, safe against a kill.

What a run writes to its folder, and how it is read again, is in `checkpoint.py`.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llmnb import files, generation, hardware
from llmnb.concepts import start_token
from llmnb.pretraining import checkpoint, objectives
from llmnb.pretraining.optimizers import learning_rate, optimizers_for
from llmnb.pretraining.processes import Processes
from llmnb.pretraining.recipe import PretrainingError, Recipe
from llmnb.pretraining.tokens import TokenCorpus, batch_at, validation_blocks

EVALUATION_TOKENS = 2048  # per batch: about what fits into a processor's cache
MAX_SAMPLE_TOKENS = 200


class Trainer:
    """One training run, new or resumed. `run` trains; `log` holds a row for every evaluation."""

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
        say: Callable[[str], None] | None = None,
    ) -> None:
        """out: the folder for log and checkpoints; None: nothing is written.

        evaluations: how often to measure the loss on the whole validation set; samples: after how
        many of these evaluations to write a text that continues the prompt; say: is called with
        each line of progress. Raises PretrainingError if the run can't work, before any long work.
        """
        self.corpus = corpus
        self.recipe = recipe
        self.prompt = prompt
        self.checkpoint_seconds = checkpoint_seconds
        self.say = say or (lambda line: None)
        self.device = hardware.device()
        self.processes = Processes.join()
        self.processes.check_batch(recipe)
        self.blocks = validation_blocks(corpus.validation, recipe.block_size)
        batch_at(corpus.train, recipe.seed, 0, 1, recipe.block_size)  # fails if the text is short
        self.dtype = hardware.dtype(recipe.dtype, self.device)
        if recipe.objective == "masked":
            self.random_ids = objectives.ordinary_ids(corpus.tokenizer)
        self.model = recipe.build(1 + max(corpus.tokenizer.get_vocab().values())).to(self.device)
        self.n_parameters = sum(p.numel() for p in self.model.parameters())
        parallel = nn.parallel.DistributedDataParallel
        self.parallel_model = self.model if self.processes.count == 1 else parallel(self.model)
        self.optimizers = optimizers_for(self.model, recipe, self.dtype)
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.dtype == torch.float16)
        self.step = 0
        self.seconds = 0.0
        self.log: list[dict[str, Any]] = []
        self.unlogged: dict[str, Any] = {"losses": [], "seconds": 0.0}  # since the last row
        self.out = Path(out).expanduser() if out else None
        self.steps = self._start_or_resume(resume) if self.out else self._steps_of_budget()
        self.evaluation_interval = max(1, self.steps // max(1, evaluations))
        self.sample_steps = {0, self.steps} if samples else set()
        for power in range(1, samples - 1):  # most are early, when the model learns fastest
            self.sample_steps.add(round(evaluations * 0.37**power) * self.evaluation_interval)

    def examples(self, blocks: Tensor, seed: list[int]) -> tuple[Tensor, ...]:
        """The arguments of `loss`: the blocks, and for a masked model what `hide` returns for them.

        seed: decides what is hidden. It is drawn for a whole batch, before processes share it.
        """
        if self.recipe.objective == "causal":
            return (blocks,)
        mask_id = self.corpus.tokenizer.mask_token_id
        blocks = blocks[:, 1:]
        return blocks, *objectives.hide(blocks, mask_id, self.random_ids, seed)

    def loss(self, *examples: Tensor) -> Tensor:
        """The objective, in nats per token."""
        if self.recipe.objective == "causal":
            return objectives.causal_loss(self.forward, *examples)
        return objectives.masked_loss(self.forward, *examples)

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logits, computed in self.dtype with a copy of the fp32 weights, which are updated.

        Source: Micikevicius et al. 2018, section 3.1.
        """
        if self.dtype == torch.float32:
            return self.parallel_model(*inputs)
        weights = {name: p.to(self.dtype) for name, p in self.parallel_model.named_parameters()}
        return torch.func.functional_call(self.parallel_model, weights, inputs)

    def train_step(self) -> float:
        """One update; returns the batch's loss before it.

        Raises PretrainingError for a loss that is NaN, or too little memory.
        """
        recipe = self.recipe
        with recipe.explaining_memory_errors():
            loss = self._need_finite(self._backward())
            self._update(learning_rate(self.step, self.steps, recipe.warmup, recipe.decay))
        self.step += 1
        return loss

    def _backward(self) -> float:
        """Compute the gradients of a step's batch, part by part; returns its mean loss."""
        recipe, processes = self.recipe, self.processes
        sizes = recipe.batch_size, recipe.block_size
        blocks = batch_at(self.corpus.train, recipe.seed, self.step, *sizes)
        blocks = torch.from_numpy(blocks).to(self.device)
        parts = []
        for tensor in self.examples(blocks, [recipe.seed, self.step]):
            share = tensor.chunk(processes.count)[processes.rank]  # this process's
            parts.append(share.chunk(recipe.accumulation))
        total = torch.zeros((), device=self.device)
        for index, part in enumerate(zip(*parts, strict=True), start=1):
            exchange_gradients = contextlib.nullcontext()
            if processes.count > 1 and index < recipe.accumulation:
                exchange_gradients = self.parallel_model.no_sync()  # once, after the last part
            with exchange_gradients:
                loss = self.loss(*part) / recipe.accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if processes.count > 1:
            torch.distributed.all_reduce(total)
        return total.item() / processes.count

    def _need_finite(self, loss: float) -> float:
        if math.isfinite(loss):
            return loss
        recipe = self.recipe
        raise PretrainingError(
            f"The loss is {loss} at step {self.step}. Usually the learning rate is too high: "
            f"halve lr ({recipe.lr:g}) and matrix_lr ({recipe.matrix_lr:g}), or lengthen "
            f"warmup ({recipe.warmup:g}); dtype fp32 rules out an overflow."
        )

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
        """The validation loss in nats per token; a masked model has the same tokens hidden."""
        self.parallel_model.eval()
        rows_per_batch = max(1, EVALUATION_TOKENS // self.recipe.block_size)
        total = 0.0
        for start in range(0, len(self.blocks), rows_per_batch):
            blocks = torch.from_numpy(self.blocks[start : start + rows_per_batch]).to(self.device)
            total += len(blocks) * self.loss(*self.examples(blocks, [start])).item()
        self.parallel_model.train()
        return self._need_finite(total / len(self.blocks))

    def run(self) -> list[dict[str, Any]]:
        """Train to the end and return the log's rows. The model is then in eval mode."""
        if not self.log:
            self._add_row({"loss": None, "validation_loss": self.evaluate()})
        saved = time.monotonic()
        while self.step < self.steps:
            start = time.perf_counter()
            self.unlogged["losses"].append(self.train_step())
            self.unlogged["seconds"] += time.perf_counter() - start
            is_last = self.step == self.steps
            if is_last or self.step % self.evaluation_interval == 0:
                self._add_row(self._measurements())
            is_due = is_last or time.monotonic() - saved >= self.checkpoint_seconds
            if self.out and self.processes.from_first(is_due):
                self.save()
                saved = time.monotonic()
        self.model.eval()
        return self.log

    def _measurements(self) -> dict[str, Any]:
        """A row's values, from the steps since the last row."""
        losses = self.unlogged["losses"]
        seconds = self.unlogged["seconds"]
        self.unlogged = {"losses": [], "seconds": 0.0}
        self.seconds += seconds
        row = {"loss": float(np.mean(losses)), "lr": self.optimizers[0].param_groups[0]["lr"]}
        row["tokens_per_second"] = len(losses) * self.recipe.step_tokens / seconds
        return row | {"validation_loss": self.evaluate()}

    def _add_row(self, values: dict[str, Any]) -> None:
        n_tokens = self.step * self.recipe.step_tokens
        row = {"step": self.step, "tokens": n_tokens, "seconds": self.seconds} | values
        if self.step in self.sample_steps and self.recipe.objective == "causal":
            row["sample"] = self.sample()
        self.log.append(row)
        if self.processes.rank:
            return
        if self.out:
            checkpoint.append_log(self.out / "log.jsonl", row)
        training = f"training {row['loss']:.3f}  " if row["loss"] is not None else ""
        self.say(
            f"{100 * self.step / self.steps:3.0f} %  {self.seconds:6.1f} s  "
            f"{n_tokens:>12,} tokens  {training}validation {row['validation_loss']:.3f}"
        )
        warning = checkpoint.turned_up(self.log)
        if warning and not checkpoint.turned_up(self.log[:-1]):
            self.say(warning)

    def sample(self, seed: int = 0) -> str:
        """A text that continues the prompt, as long as a block holds, at most 200 tokens."""
        tokenizer = self.corpus.tokenizer
        block_size = self.recipe.block_size
        ids = [start_token(tokenizer), *tokenizer(self.prompt, add_special_tokens=False).input_ids]
        n_new = max(1, min(MAX_SAMPLE_TOKENS, block_size - len(ids)))
        ids = torch.tensor([ids[-block_size + 1 :]], device=self.device)
        sampling = generation.Sampling(temperature=0.8, seed=seed)
        written = generation.generate(self.model, ids, max_new_tokens=n_new, sampling=sampling)
        return tokenizer.decode(written[0, 1:])

    def save(self) -> None:
        """Write everything that a resumed run needs into one file."""
        if self.processes.rank:
            return
        facts = {"step": self.step, "seconds": self.seconds, "unlogged": self.unlogged}
        facts["scaler"] = self.scaler.state_dict()
        path = self.out / "checkpoint.safetensors"
        checkpoint.save_state(path, self.model, self.optimizers, facts)

    def _start_or_resume(self, resume: bool) -> int:
        """Start a run in the folder, or resume the one it holds; returns its number of steps."""
        facts = {"recipe": self.recipe.as_dict(), "corpus": self.corpus.folder.name}
        facts["dtype"] = str(self.dtype).removeprefix("torch.")
        file = self.out / "run.json"
        # The first process decides: the others may look when it has already written the file.
        if self.processes.from_first(file.exists()):
            if not resume:
                raise PretrainingError(
                    f"{self.out} holds a run already: resume it, or name another folder."
                )
            return self._resume(checkpoint.read_facts(file), facts)
        if self.processes.rank == 0:
            checkpoint.make_folder(self.out)
        facts["steps"] = self._steps_of_budget()
        if self.processes.rank == 0:
            files.write_json(file, facts)
        return facts["steps"]

    def _resume(self, before: dict[str, Any], facts: dict[str, Any]) -> int:
        steps = before.get("steps")
        checkpoint.need_same_run(self.out, before, facts | {"steps": steps})
        path = self.out / "checkpoint.safetensors"
        if path.exists():
            state = checkpoint.load_state(path, self.model, self.optimizers)
            self.step = state["step"]
            self.seconds = state["seconds"]
            self.unlogged = state["unlogged"]
            self.scaler.load_state_dict(state["scaler"])
        log = self.out / "log.jsonl"
        self.log = checkpoint.read_log(log, self.step)
        if self.processes.rank == 0:
            checkpoint.write_log(log, self.log)
            self.say(f"resumed at step {self.step:,} of {steps:,}")
        return steps

    def _steps_of_budget(self) -> int:
        """Steps for the recipe's tokens, or as many as this machine does in its minutes."""
        recipe = self.recipe
        if steps := recipe.steps():
            return steps
        endless = replace(recipe, minutes=0.0, tokens=10**6 * recipe.step_tokens)
        probe = Trainer(self.corpus, endless)
        deadline = time.perf_counter() + max(1.0, 2 * recipe.minutes)
        return max(1, round(60 * recipe.minutes / probe.seconds_per_step(deadline)))

    def seconds_per_step(self, deadline: float = 0.0) -> float:
        """The median of at least 5 training steps, and of up to 50 until the deadline."""
        seconds = []
        while len(seconds) < 5 or (
            len(seconds) < 50 and self.processes.from_first(time.perf_counter() < deadline)
        ):
            start = time.perf_counter()
            self.train_step()
            seconds.append(time.perf_counter() - start)
        return self.processes.from_first(float(np.median(seconds[2:])))  # two warm up
