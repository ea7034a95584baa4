"""One process alone, or several that share each step's blocks: DDP and FSDP2."""

import gc
import os
from dataclasses import dataclass

import torch
from torch import nn

from llmnb import hardware


@dataclass(frozen=True)
class Processes:
    """Who takes part; sharded: each process keeps only its part of model and optimizer."""

    rank: int = 0
    count: int = 1
    sharded: bool = False
    engine: str = "one process"

    @classmethod
    def join(cls, shard: bool = False) -> "Processes":
        """As torchrun or accelerate started us. shard: FSDP2 splits model and optimizer too."""
        count = int(os.environ.get("WORLD_SIZE", 1))
        if count == 1:
            return cls(engine="one process" + (", so nothing is sharded" if shard else ""))
        backend = "nccl" if hardware.has_cuda() else "gloo"
        if backend == "nccl":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend)
        kind = "FSDP2 (fully_shard)" if shard else "DDP"
        engine = f"{count} processes, {kind} over {backend}"
        return cls(int(os.environ["RANK"]), count, shard, engine)

    def first(self, value: float) -> float:
        """What the first process says, so that all decide alike."""
        if self.count == 1:
            return value
        said = torch.tensor(float(value), device="cuda" if hardware.has_cuda() else "cpu")
        torch.distributed.broadcast(said, 0)
        return said.item()

    def wrap(self, model: nn.Module, dtype: torch.dtype) -> nn.Module:
        """The model as all processes train it together; dtype: what its products are computed in.

        Sharded, it is the same object, and computes in dtype by itself.
        """
        if self.count == 1:
            return model
        if not self.sharded:
            return nn.parallel.DistributedDataParallel(model)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        options = {"mp_policy": MixedPrecisionPolicy(dtype, torch.float32)}
        options["reshard_after_forward"] = True  # else a snapshot would find whole parameters
        for name, module in model.named_modules():
            if name.rpartition(".")[2].isdigit():  # a block
                fully_shard(module, **options)
        return fully_shard(model, **options)


def leave() -> None:
    """Close the group, at the end of a program and when nothing of its models is left.

    A model that outlived the group would take it along while it holds Python's lock, for which the
    group's threads may be waiting; and at an interpreter's exit these threads can crash it.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()
