"""Options that trade memory against speed and do not change a network's function."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from data_pipeline.errors import UserError


def checkpoint_activations(network: nn.Module) -> None:
    """Turn on activation checkpointing (timm's `set_grad_checkpointing`). UserError if the network has none."""
    # The network may be wrapped in an adapter.
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
    """Freeze the running statistics of batch norms while a backward pass recomputes activations."""
    norms = [
        (module, module.momentum, module.num_batches_tracked)
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    # They stay in training mode, or the recomputation would save fewer tensors than the first forward pass.
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
