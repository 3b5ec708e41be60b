"""Choices that configurations name and other modules act on."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from data_pipeline.dataset_config import AFFECTS_NOTHING

PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]
EngineChoice = Literal["auto", "ddp", "zero1", "zero2"]
# `alone` is for rehearsals only: steps on fake tensors that measure memory.
EngineName = Literal["ddp", "zero1", "zero2", "alone"]
# What a change of an image is measured by: see `gradient_penalty`.
PenaltyMetric = Literal["euclidean", "root_mean_square"]
# Of a file that export.py writes.
Format = Literal["onnx", "torch_export", "safetensors"]
# Of an image that a classifier answers for: 2, mirrored; 4, upside down too; 8, turned by a quarter too.
ViewCount = Literal[1, 2, 4, 8]
VIEWS: tuple[int, ...] = get_args(ViewCount)


@dataclass(frozen=True)
class NetworkChoices:
    """How a network computes; results differ in their last bits at most."""

    # Recompute activations in the backward pass (Chen et al. 2016): less memory, about a third more time.
    checkpoint_activations: bool = field(default=False, metadata=AFFECTS_NOTHING)
    # torch.compile; not for networks that are differentiated twice (gradient penalties).
    compile: bool = field(default=False, metadata=AFFECTS_NOTHING)
    # The channels-last memory format for convolutions. null: on a CPU, where they are faster by it, except under ZeRO,
    # which does not broadcast such weights over gloo; on a GPU it makes grouped ones slower, such as SENet-154's.
    channels_last: bool | None = field(default=None, metadata=AFFECTS_NOTHING)
