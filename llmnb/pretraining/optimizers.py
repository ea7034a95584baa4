"""Muon for matrices, AdamW for the rest, and how the learning rate rises and falls."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llmnb.pretraining.recipe import Recipe

# Jordan et al. 2024: the iteration of this quintic quickly brings singular values near 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Each matrix with all its singular values brought near 1; shape (n, rows, columns).

    This is Newton-Schulz iteration, for all matrices at once.
    Source: Jordan et al. 2024, Muon; the idea from Bernstein & Newhouse 2024, section 4.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, so that every direction of a matrix learns at the same pace.

    Its results are those of torch.optim.Muon with adjust_lr_fn="original", but it is faster because
    it orthogonalizes all matrices of one shape together. Source: Jordan et al. 2024.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """params: matrices; dtype: the precision of the Newton-Schulz iteration.

        Raises ValueError for a parameter that isn't a matrix.
        """
        params = list(params)
        for parameter in params:
            if parameter.dim() != 2:
                shape = tuple(parameter.shape)
                raise ValueError(f"Muon is for matrices; there is a parameter of shape {shape}.")
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update matrices of one shape."""
        rows, columns = parameters[0].shape
        momentum = group["momentum"]
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        buffers = [self.state[parameter]["momentum"] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        nesterov = torch._foreach_lerp(gradients, buffers, momentum)
        updates = orthogonalized(torch.stack(nesterov).to(self.dtype))
        updates = updates.to(parameters[0].dtype).unbind()
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        scale = max(1, rows / columns) ** 0.5
        torch._foreach_add_(parameters, updates, alpha=-group["lr"] * scale)


def optimizers_for(
    model: nn.Module, recipe: Recipe, dtype: torch.dtype = torch.bfloat16
) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or as the recipe says Muon for the blocks' matrices and AdamW else.

    Norms and biases have no weight decay. dtype: what the model computes in; Muon computes in it
    too, except in fp16, where small gradients would become 0.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if "blocks." in name and p.dim() == 2]
    for_muon = {id(p) for p in matrices} if recipe.optimizer == "muon" else set()
    rest = [p for _, p in named if id(p) not in for_muon]
    groups = [
        {"params": [p for p in rest if p.dim() == 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.dim() != 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    adamw = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
    optimizers = [adamw]
    if for_muon:
        muon_dtype = torch.float32 if dtype == torch.float16 else dtype
        muon = Muon(matrices, recipe.matrix_lr, weight_decay=recipe.weight_decay, dtype=muon_dtype)
        optimizers.append(muon)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def learning_rate(step: int, steps: int, warmup: float, decay: float) -> float:
    """The learning rate at a step (0 … steps - 1), as a share of the full rate.

    It rises linearly, stays level, and falls linearly to 0. warmup, decay: how long it rises and
    falls, as shares of the steps. Source: the trapezoid of Hägele et al. 2024, section 3.
    """
    rising = min(1.0, (step + 1) / max(1, round(warmup * steps)))
    falling = min(1.0, (steps - step) / max(1, round(decay * steps)))
    return min(rising, falling)
