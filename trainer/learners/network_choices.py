"""Choices of how a network computes, none of which changes what it computes: memory or speed for something else."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from data_pipeline.errors import UserError


def checkpoint_activations(network: nn.Module) -> None:
    """Have a network checkpoint its blocks, the way timm's networks do. UserError where it cannot."""
    # In a network that is fed by an adapter, the network itself.
    for module in (network, *network.children()):
        try:
            module.set_grad_checkpointing(True)  # type: ignore[operator]
        except (AttributeError, AssertionError):  # timm's own way to say no
            continue
        return
    raise UserError(
        "train.checkpoint_activations=true: this model cannot compute its blocks' activations again; leave it out and "
        "lower train.micro_batch, or take another model"
    )


@contextmanager
def resting_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms see batches without noting their statistics: those that a backward pass computes again."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    # They must still take part, or the second computation would keep fewer tensors than the first.
    for norm, _, _ in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in norms:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def require_compiler(device: torch.device) -> None:
    """UserError where torch.compile finds no compiler."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        raise UserError(
            f"train.compile=true needs a C++ compiler, and {' or '.join(compilers)} is not on the PATH: install one, "
            "name another in CXX, or leave train.compile out"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("train.compile=true needs the package triton on GPUs: install it, or leave train.compile out")
