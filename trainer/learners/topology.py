"""Which process this is, on which device, in which precision: what the launch says, checked against the config."""

import contextlib
import os
import sys

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from data_pipeline.threads import divide, limit_threads, thread_share
from trainer.learners.choices import EngineChoice, EngineName, Precision, PrecisionChoice

# bf16 arithmetic came with Ampere (compute capability 8); Turing has fp16 only.
_BF16_CAPABILITY = 8
# What `accelerate launch` says of DeepSpeed.
_USE_DEEPSPEED, _LAUNCHED_STAGE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"
_ENGINE_OF_STAGE: dict[str, EngineName] = {"1": "zero1", "2": "zero2"}


def join_processes() -> Topology:
    """Join the processes that `accelerate launch` or `torchrun` started; alone, a topology of one.

    Raises UserError for more processes than GPUs, and for engines that the learners do not know.
    """
    if parse_flag_from_env(_USE_DEEPSPEED):
        # Kept for `resolve_engine`, and from Accelerate: each learner has a DeepSpeed engine of its own.
        os.environ[_LAUNCHED_STAGE] = os.environ.get(_LAUNCHED_STAGE, "2")
        os.environ[_USE_DEEPSPEED] = "false"
    for engine in ("FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"):
        if parse_flag_from_env(f"ACCELERATE_USE_{engine}"):
            raise UserError(
                f"the launch configuration asks for {engine.lower()}, which this project does not run under: "
                "use one of configs/accelerate/"
            )
    # Accelerate joins processes on the CPU only when told that there is no GPU to use.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not on_cpu and processes_here > torch.cuda.device_count():
        raise UserError(
            f"{processes_here} processes on {torch.cuda.device_count()} GPUs: start fewer processes, or give "
            "CUDA_VISIBLE_DEVICES= in front of the command to compute on the CPU"
        )
    told = _take_threads(on_gpu=not on_cpu)
    device = PartialState(cpu=on_cpu).device
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    rank = distributed.get_rank() if distributed.is_initialized() else 0
    world_size = distributed.get_world_size() if distributed.is_initialized() else 1
    if rank == 0:
        print(told, file=sys.stderr, flush=True)
    return Topology(rank, world_size, device)


def _take_threads(on_gpu: bool) -> str:
    """Keep to this process's share of the cores; a line that says what it is."""
    share = thread_share()
    division = divide(share.threads, on_gpu)
    limit_threads(share.threads)
    torch.set_num_threads(division.compute)
    # Nothing here computes several operations at once, and a pool of a thread per core would be there for it.
    with contextlib.suppress(RuntimeError):  # torch's word that such work has begun already
        torch.set_num_interop_threads(1)
    if division.overlap:
        return f"threads: {share.threads} ({share.reason}): {division.decode} decode, 1 feeds the GPU"
    return f"threads: {share.threads} ({share.reason}), which decode and compute in turn"


def leave_processes() -> None:
    """Destroy the process group at the end of the work; no-op for one process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def gather_images(images: torch.Tensor, positions: npt.NDArray[np.int64]) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Gather the images [n, 3, H, W] of all ranks and their positions in the global order, sorted by position.

    Processes hold slices of a global batch that differ by a few images at most.
    """
    if not distributed.is_initialized():
        order = positions.argsort()
        return images[to_device(order, images.device)], positions[order]
    world_size = distributed.get_world_size()
    held = torch.tensor([len(images)], device=images.device)
    counts = [torch.empty_like(held) for _ in range(world_size)]
    distributed.all_gather(counts, held)
    most = int(torch.stack(counts).max())
    padded = images.new_zeros((most, *images.shape[1:]))
    padded[: len(images)] = images
    numbers = torch.full((most,), -1, device=images.device)
    numbers[: len(positions)] = torch.from_numpy(positions).to(images.device)
    all_images = [torch.empty_like(padded) for _ in range(world_size)]
    all_numbers = [torch.empty_like(numbers) for _ in range(world_size)]
    distributed.all_gather(all_images, padded)
    distributed.all_gather(all_numbers, numbers)
    joined, places = torch.cat(all_numbers).sort()
    filled = places[joined >= 0]
    return torch.cat(all_images)[filled], joined[joined >= 0].cpu().numpy()


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """The precision to compute in: the run's configuration owns it, not the launcher.

    `auto` takes what the launch configuration states, else bf16 where the GPU has it, fp16 on older GPUs, fp32 on CPUs:
    those without AMX are slower in bf16. A launch configuration that states another precision, or accumulation or
    compilation of its own, raises UserError, as does fp16 without a GPU. Accelerate's "no" counts as silence, because
    `accelerate launch` without a configuration says it too.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if launched not in ("no", "fp16", "bf16") or (launched != "no" and choice not in ("auto", launched)):
        raise UserError(
            f"the launch configuration asks for mixed_precision={launched}, the run for "
            f"train.precision={choice}: leave it out of the launch configuration or set train.precision"
        )
    if accumulation != "1":
        raise UserError(
            f"the launch configuration asks for gradient_accumulation_steps={accumulation}: leave it out, "
            "accumulation follows from train.global_batch and train.micro_batch"
        )
    if compiler.lower() != "no":
        raise UserError(f"the launch configuration asks for dynamo backend {compiler}: leave it out")
    precision: Precision
    if choice != "auto":
        precision = choice
    elif launched != "no":
        precision = "fp16" if launched == "fp16" else "bf16"
    elif device.type != "cuda":
        precision = "fp32"
    else:
        precision = "bf16" if torch.cuda.get_device_capability(device)[0] >= _BF16_CAPABILITY else "fp16"
    if precision == "fp16" and device.type != "cuda":
        raise UserError("fp16 needs a GPU and none is seen: look at nvidia-smi, or set train.precision=fp32")
    return precision


def resolve_engine(choice: EngineChoice) -> EngineName:
    """What makes learners data-parallel: the run's configuration owns it, not the launcher.

    `auto` takes what the launch configuration states, else `ddp`. UserError where it states another engine, a stage
    that gradient penalties do not go through, or settings that the config owns.
    """
    stage = os.environ.get(_LAUNCHED_STAGE)
    if stage is None:
        return "ddp" if choice == "auto" else choice
    if stage not in _ENGINE_OF_STAGE:
        raise UserError(
            f"the launch configuration asks for ZeRO stage {stage}: use 1 or 2 (stage 3 has no gradient of a gradient, "
            "stage 0 is plain data parallelism): configs/accelerate/deepspeed_zero1.yaml or deepspeed_zero2.yaml"
        )
    for name, left_out in (
        ("GRADIENT_CLIPPING", "clipping is optimizer.clip_norm"),
        ("DEEPSPEED_CONFIG_FILE", "DeepSpeed's settings follow from train and optimizer"),
        ("DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "learners stay on their device"),
        ("DEEPSPEED_OFFLOAD_PARAM_DEVICE", "learners stay on their device"),
    ):
        stated = os.environ.get(f"ACCELERATE_{name}", "none")
        if stated not in ("none", "auto"):
            raise UserError(f"the launch configuration asks for {name.lower()}={stated}: leave it out, {left_out}")
    launched = _ENGINE_OF_STAGE[stage]
    if choice not in ("auto", launched):
        raise UserError(
            f"the launch configuration asks for ZeRO stage {stage}, the run for train.engine={choice}: launch without "
            "DeepSpeed or leave train.engine out"
        )
    return launched


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which forward passes run in a precision."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)
