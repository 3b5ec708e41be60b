"""Optimizers and learning rate schedules, from their configuration."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from trainer.learners.layers import layer_depths
from trainer.learners.optimizer_config import OptimizerConfig


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, device: torch.device, *, by_layer: bool = False, rehearsal: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of a network's trainable weights; weight decay for matrices and kernels only.

    by_layer: weights of different depths are in different parameter groups; `depth` of a group: see layer_depths.
    rehearsal: on fake tensors; the state is allocated and no weight changes. UserError for by_layer with a network
    whose layers have no order.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    depths = layer_depths(module) if by_layer else {}
    groups: list[dict[str, Any]] = []
    for depth in sorted({depths.get(parameter, 0) for parameter in parameters}):
        at_depth = [parameter for parameter in parameters if depths.get(parameter, 0) == depth]
        groups += [
            {"params": [p for p in at_depth if p.ndim > 1], "weight_decay": config.weight_decay, "depth": depth},
            {"params": [p for p in at_depth if p.ndim <= 1], "weight_decay": 0.0, "depth": depth},
        ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        if rehearsal:
            return AllocatingOptimizer(groups, ["momentum_buffer"] if config.momentum else [])
        fused, momentum = device.type == "cuda", config.momentum
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused)
    betas = config.betas or (0.9, 0.999)
    return make_adam(groups, config.learning_rate, betas, device, decoupled=config.name == "adamw", rehearsal=rehearsal)


def make_adam(
    parameters: Iterable[Any],
    learning_rate: float,
    betas: Sequence[float],
    device: torch.device,
    *,
    decoupled: bool = False,
    rehearsal: bool = False,
) -> torch.optim.Optimizer:
    """Adam; decoupled: AdamW. rehearsal: see make_optimizer."""
    if rehearsal:
        return AllocatingOptimizer(parameters, ["exp_avg", "exp_avg_sq"])
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind(parameters, lr=learning_rate, betas=(betas[0], betas[1]), fused=device.type == "cuda")


class AllocatingOptimizer(torch.optim.Optimizer):
    """Allocates the state of an optimizer and changes no weight: the steps of torch 2.15 fail on fake tensors."""

    def __init__(self, parameters: Iterable[Any], state: Sequence[str]) -> None:
        """state: names of the tensors for each weight, of its shape."""
        super().__init__(parameters, {"lr": 0.0})
        self._names = state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Allocate what is missing."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter].update({name: torch.zeros_like(parameter) for name in self._names})


def group_rates(
    config: OptimizerConfig, depths: Sequence[int], step: int, total_steps: int, frozen_steps: int = 0
) -> list[float]:
    """Learning rate of each parameter group at a step, from the groups' depths (see layer_depths).

    Each stage's rate is `layer_decay` times that of the stage after it. In the first `frozen_steps`, weights of depth
    above 0 have rate 0.
    """
    rate = config.learning_rate * schedule_factor(config, step, total_steps)
    return [0.0 if depth and step < frozen_steps else rate * config.layer_decay**depth for depth in depths]


def schedule_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at a step; a pure function of the step, so there is no state to save."""
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.schedule == "linear":
        return max(0.0, min(1.0, 2 * (1 - progress)))
    return 1.0
