"""Sizes of networks: weights in a run's checkpoint, multiply-accumulates of one image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from trainer.loop.checkpoint import CheckpointStore

CONVENTION = (
    "Multiply-accumulates of one image at the run's size: half of the floating-point operations that torch counts in "
    "convolutions, matrix products and attention; norms, activations and pooling do not count."
)


@dataclass(frozen=True)
class NetworkSize:
    """Of all networks that a run trains."""

    parameters: int
    multiply_accumulates: int | None = None  # see CONVENTION; None: not counted


def multiply_accumulates(network: nn.Module, image_size: int) -> int:
    """Of one image float32 [1, 3, S, S] through a network on the CPU, in evaluation mode; see CONVENTION."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(torch.zeros(1, 3, image_size, image_size))
    return counter.get_total_flops() // 2


def parameters_of(folders: Sequence[Path]) -> dict[str, int]:
    """Network -> number of its weights, from the first folder with a checkpoint; empty without one."""
    for folder in folders:
        checkpoint = CheckpointStore(folder / "checkpoints").latest()
        if checkpoint is not None:
            return {name: _count(weights) for name, weights in _networks(checkpoint.load()).items()}
    return {}


def _networks(state: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """A checkpoint's weights by learner; an adaptation's two learners hold several networks each, by name."""
    learners = {name: learner["module"] for name, learner in state["learners"].items()}
    if set(learners) != {"generators", "discriminators"}:
        return learners
    found: dict[str, dict[str, torch.Tensor]] = {}
    for module in learners.values():
        for key, value in module.items():
            found.setdefault(key.partition(".")[0], {})[key] = value
    return found


def _count(state: Mapping[str, torch.Tensor]) -> int:
    """Numbers in a state dict, without running statistics."""
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return sum(value.numel() for name, value in state.items() if not name.endswith(statistics))
