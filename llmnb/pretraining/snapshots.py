"""A run's state in one file, whole or not at all: what a killed run goes on from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from llmnb.pretraining.optimizers import split_as, whole


def save(
    path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], facts: dict
) -> None:
    """Weights, optimizer states and facts (plain JSON), replacing the file in one step.

    In every process the tensors are put together; the first one writes. safetensors: no pickle.
    """
    from safetensors.torch import save_file

    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = whole(parameter.detach())
        for optimizer in optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = whole(value)
    if int(os.environ.get("RANK", 0)):
        return
    written = path.with_suffix(".part")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, written, metadata={"facts": json.dumps(facts)})
    with open(written, "rb") as file:
        os.fsync(file.fileno())  # the contents before the name
    os.replace(written, path)


def load(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict:
    """The facts, after weights and optimizer states have been put back."""
    from safetensors import safe_open

    named = dict(model.named_parameters())
    owner = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    with safe_open(path, "pt") as file, torch.no_grad():
        for full in file.keys():  # noqa: SIM118 (not a mapping)
            key, name = full.split("/", 1)
            parameter, tensor = named[name], file.get_tensor(full)
            if key == "model":
                parameter.copy_(split_as(tensor, parameter))
            else:
                optimizer = owner[id(parameter)]
                if tensor.dim() or optimizer.defaults.get("fused"):  # else a counter, on the CPU
                    tensor = tensor.to(parameter.device)
                if tensor.dim():
                    tensor = split_as(tensor, parameter)
                optimizer.state[parameter][key] = tensor
        return json.loads(file.metadata()["facts"])
