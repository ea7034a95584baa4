"""Muon for matrices, AdamW for the rest, and how the learning rate rises and falls."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Jordan et al. 2024: a quintic whose iteration brings singular values near 1, quickly and roughly.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest matrices with equal singular values, roughly: (n, rows, columns) to the same.

    A Newton-Schulz iteration, all matrices at once. Source: Jordan et al. 2024, Muon; the idea
    from Bernstein & Newhouse 2024, section 4.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized: every direction of a matrix learns at the same pace.

    The numbers are torch.optim.Muon's with adjust_lr_fn="original"; here, matrices of one shape
    are orthogonalized together. Source: Jordan et al. 2024.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """params: matrices; dtype: what the iteration is computed in. ValueError for a vector."""
        params = list(params)
        if wrong := [tuple(p.shape) for p in params if p.dim() != 2]:
            raise ValueError(f"Muon is for matrices; there is a parameter of shape {wrong[0]}.")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for alike in by_shape.values():
                self._update(alike, group["lr"], group["momentum"], group["weight_decay"])

    def _update(self, alike: list[Tensor], lr: float, momentum: float, decay: float) -> None:
        rows, columns = alike[0].shape
        for parameter in alike:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in alike]
        gradients = [parameter.grad for parameter in alike]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        ahead = torch._foreach_lerp(gradients, buffers, momentum)  # Nesterov's look ahead
        stacked = torch.stack([whole(each) for each in ahead]).to(self.dtype)
        updates = orthogonalized(stacked).to(alike[0].dtype).unbind()
        torch._foreach_mul_(alike, 1 - lr * decay)
        updates = [split_as(update, old) for update, old in zip(updates, alike, strict=True)]
        torch._foreach_add_(alike, updates, alpha=-lr * max(1, rows / columns) ** 0.5)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that FSDP has split over the processes, put together; others as they are."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def split_as(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of it, if FSDP has split the other."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def optimizers_for(
    model: nn.Module,
    kind: str,
    lr: float,
    matrix_lr: float,
    weight_decay: float,
    dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """kind "muon": Muon for the blocks' matrices, AdamW for the rest; "adamw": AdamW for all.

    Norms and biases do not decay. dtype: the model's products'; Muon computes in it too, but not in
    fp16, in which small gradients are 0. Raises ValueError for another kind.
    """
    if kind not in ("muon", "adamw"):
        raise ValueError(f"optimizer is {kind!r}; choose one of muon, adamw.")
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if "blocks." in name and p.dim() == 2]
    chosen = {id(p) for p in matrices} if kind == "muon" else set()
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [
        {"params": [p for p in rest if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in rest if p.dim() != 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(not hasattr(p, "full_tensor") for p in rest)  # one kernel for all parameters
    adamw = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=fused)
    settings = {"lr": matrix_lr, "weight_decay": weight_decay}
    settings["dtype"] = torch.float32 if dtype == torch.float16 else dtype
    muon = [Muon(matrices, **settings)] if chosen else []
    for optimizer in (adamw, *muon):
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return [adamw, *muon]


def learning_rate(step: int, steps: int, warmup: float, decay: float) -> float:
    """The share of the full rate at a step, 0 … steps - 1: up, level, and linearly down to 0.

    warmup, decay: shares of the steps. Source: the trapezoid of Hägele et al. 2024, section 3.
    """
    up = min(1.0, (step + 1) / max(1, round(warmup * steps)))
    down = min(1.0, (steps - step) / max(1, round(decay * steps)))
    return min(up, down)
