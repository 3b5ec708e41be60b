"""The micro-batch of a run that asks for it to be found: the largest that its device has room for, by the plan."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import distributed

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.learners.topology import resolve_precision
from trainer.planning.device_memory import CUDA_CONTEXT
from trainer.runs.run_directory import CONFIG_FILE, read_run_config

Config = TypeVar("Config")
# What makes a process one of several.
_OF_PROCESSES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def with_found_micro_batch(config: Config, topology: Topology) -> Config:
    """The configuration with train.micro_batch found where train.find_micro_batch asks for it, else as it is.

    config: of a launcher that trains. A run that is taken up keeps the one that it began with: batch norm takes its
    means over a micro-batch, so another one is another training. Every process gets what the one with the least
    memory has room for. UserError where not one image fits.
    """
    asked: Any = config
    if not asked.train.find_micro_batch:
        return config
    found = _begun_with(Path(str(asked.run)))
    if found is None:
        room = torch.tensor(_room(topology.device), dtype=torch.int64, device=topology.device)
        if distributed.is_initialized():
            distributed.all_reduce(room, op=distributed.ReduceOp.MIN)
        # One process plans: the answer is the same on all, and the first one's is sent to the others.
        precision = resolve_precision(asked.train.precision, topology.device)
        planned = dataclasses.replace(asked, train=dataclasses.replace(asked.train, precision=precision))
        largest = _plan(planned, int(room), topology.world_size) if topology.rank == 0 else 0
        answer = torch.tensor(largest, device=topology.device)
        if distributed.is_initialized():
            distributed.broadcast(answer, src=0)
        found = int(answer)
        if found == 0:
            raise UserError(
                f"train.find_micro_batch=true: not one image fits into {int(room) / 2**30:.1f} GiB: lower "
                "data.image_size, or take a smaller model="
            )
    trained = dataclasses.replace(asked.train, micro_batch=found, find_micro_batch=False)
    replaced: Config = dataclasses.replace(asked, train=trained)
    return replaced


def _begun_with(run: Path) -> int | None:
    """The micro-batch of the run where it has begun."""
    if not (run / CONFIG_FILE).exists():
        return None
    micro_batch: int | None = read_run_config(run).get("train", {}).get("micro_batch")
    return micro_batch


def _room(device: torch.device) -> int:
    """Bytes of the device that nobody else has taken."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    return min(free + CUDA_CONTEXT, total)  # this process has its context by now


def _plan(config: Any, room: int, processes: int) -> int:
    """The largest micro-batch, 0 where none fits: by a process of its own, which sees no GPU."""
    told = {"config": type(config).__name__, "values": dataclasses.asdict(config), "room": room, "processes": processes}
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    done = subprocess.run(
        [sys.executable, "-m", "trainer.planning"],
        input=json.dumps(told),
        env=environment | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"planning the micro-batch failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])
