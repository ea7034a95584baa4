"""The processes that torchrun started: which of them this is, and how they share a batch."""

import gc
import os
from dataclasses import dataclass

import torch

from llmnb import hardware
from llmnb.pretraining.recipe import PretrainingError, Recipe


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; each computes its part of every batch."""

    rank: int = 0
    count: int = 1
    description: str = "one process"

    @classmethod
    def join(cls) -> "Processes":
        """Join the processes that torchrun started, if it did.

        Raises PretrainingError where there are more of them on this machine than GPUs.
        """
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls()
        backend = "nccl" if hardware.has_cuda() else "gloo"
        if backend == "nccl":
            n_gpus = torch.cuda.device_count()
            n_here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
            if n_here > n_gpus:
                raise PretrainingError(
                    f"torchrun started {n_here} processes here, and this machine has {n_gpus} "
                    f"GPUs: start one for each GPU, with --nproc-per-node={n_gpus}."
                )
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend)
        rank = int(os.environ["RANK"])
        return cls(rank, count, f"{count} processes, DDP over {backend}")

    def check_batch(self, recipe: Recipe) -> None:
        """Raises PretrainingError where the parts of a batch would not be equally large."""
        if recipe.batch_size % (self.count * recipe.accumulation):
            raise PretrainingError(
                f"batch_size {recipe.batch_size} can't be shared evenly by {recipe.accumulation} "
                f"parts in each of {self.count} processes."
            )

    def from_first(self, value: float) -> float:
        """The first process's value, so that all processes decide alike."""
        if self.count == 1:
            return value
        shared = torch.tensor(float(value), device="cuda" if hardware.has_cuda() else "cpu")
        torch.distributed.broadcast(shared, 0)
        return shared.item()


def leave_processes() -> None:
    """Leave the other processes, at the end of a program and after its last use of a model.

    First what is no longer used is deleted: a model that is deleted later would end the process
    group while holding Python's lock, for which the group's threads may be waiting.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
