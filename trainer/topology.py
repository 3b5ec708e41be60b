"""Which process this is, on which device, in which precision: what the launch says, checked against the config."""

import os
from typing import Literal

import torch
from accelerate import PartialState
from torch import distributed

from data_pipeline.errors import UserError
from data_pipeline.stream import Topology

PrecisionChoice = Literal["auto", "fp32", "fp16", "bf16"]
Precision = Literal["fp32", "fp16", "bf16"]

# bf16 arithmetic came with Ampere (compute capability 8); Turing has fp16 only.
_BF16_CAPABILITY = 8


def join_processes() -> Topology:
    """Join the processes that `accelerate launch` or `torchrun` started; alone, a topology of one."""
    # Accelerate joins processes on the CPU only when told that there is no GPU.
    device = PartialState(cpu=not torch.cuda.is_available()).device
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    return Topology(rank, world_size, device)


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """The precision to compute in (contract C13: the config owns it).

    `auto` takes what the launch configuration states, else bf16 where the GPU has it, fp16 on
    older GPUs, fp32 on the CPU. A launch configuration that states another precision, or
    accumulation or compilation of its own, raises UserError. Accelerate's "no" counts as silence,
    because `accelerate launch` without a configuration says it too.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if launched not in ("no", "fp16", "bf16") or (launched != "no" and choice not in ("auto", launched)):
        raise UserError(
            f"the launch configuration asks for mixed_precision={launched}, the run for "
            f"train.precision={choice}: leave it out of the launch configuration or set train.precision"
        )
    if accumulation not in ("1", "auto"):
        raise UserError(
            f"the launch configuration asks for gradient_accumulation_steps={accumulation}: leave it out, "
            "accumulation follows from train.global_batch and train.micro_batch"
        )
    if compiler.lower() != "no":
        raise UserError(f"the launch configuration asks for dynamo backend {compiler}: leave it out")
    if choice != "auto":
        return choice
    if launched != "no":
        return "fp16" if launched == "fp16" else "bf16"
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device)[0] >= _BF16_CAPABILITY else "fp16"
