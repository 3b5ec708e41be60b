"""Choices that configurations name and other modules act on."""

from dataclasses import dataclass
from typing import Literal

PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
EngineChoice = Literal["auto", "ddp", "zero1", "zero2"]
# `alone` is no choice of a run: it moves a network whose numbers nobody keeps, to see what memory that takes.
EngineName = Literal["ddp", "zero1", "zero2", "alone"]
# What a change of an image is measured by: see `gradient_penalty`.
PenaltyMetric = Literal["euclidean", "root_mean_square"]
# Of a file that export.py writes.
Format = Literal["onnx", "torch_export"]


@dataclass(frozen=True)
class NetworkChoices:
    """How a network computes; its numbers differ in their last bits at most.

    checkpoint_activations: blocks keep no activations for the backward pass, which computes them again (Chen et al.
    2016, "Training deep nets with sublinear memory cost"). compile: what losses go through is compiled by
    torch.compile; never for a network of which gradients of gradients are taken. channels_last: convolutions'
    weights lie in memory with channels innermost.
    """

    checkpoint_activations: bool = False
    compile: bool = False
    channels_last: bool = False
