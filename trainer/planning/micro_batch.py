"""train.find_micro_batch=true: the largest micro-batch that fits each process's device, by plan_memory."""

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
from trainer.planning.device_memory import CUDA_CONTEXT, GIB
from trainer.runs import registry
from trainer.runs.config import RunConfig
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config

Config = TypeVar("Config", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """Input of the planning process."""

    task: str  # folder of trainer/tasks
    settings: dict[str, Any]  # plain values of the task's configuration
    room: int  # bytes of a device
    processes: int


def with_found_micro_batch(config: Config, topology: Topology) -> Config:
    """The configuration with train.micro_batch found if train.find_micro_batch asks for it, otherwise unchanged.

    config: of a launcher that trains, or a subclass of it. Call it on every rank, before the training starts. All ranks
    get what fits the one with the least memory. A resumed run keeps its micro-batch: batch norm averages over a
    micro-batch, so another size would change the training. UserError if not even one image fits, or nothing can be
    planned.
    """
    if not config.train.find_micro_batch:
        return config
    found = _of_begun_run(Path(str(config.run)))
    if found is None:
        room = torch.tensor(_free_memory(topology.device), dtype=torch.int64, device=topology.device)
        if distributed.is_initialized():
            distributed.all_reduce(room, op=distributed.ReduceOp.MIN)
        largest = torch.zeros((), dtype=torch.int64, device=topology.device)
        if topology.rank == 0:
            precision = resolve_precision(config.train.precision, topology.device)
            planned = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
            largest += _plan(plan_request(planned, int(room), topology.world_size))
        if distributed.is_initialized():
            distributed.broadcast(largest, src=0)
        found = int(largest)
        if found == 0:
            raise UserError(
                f"train.find_micro_batch=true: not one image fits into {int(room) / GIB:.1f} GiB: lower "
                "data.image_size, or take a smaller model="
            )
    train = dataclasses.replace(config.train, micro_batch=found, find_micro_batch=False)
    return dataclasses.replace(config, train=train)


def plan_request(config: RunConfig, room: int, processes: int) -> PlanRequest:
    """The request for a run's configuration. What a subclass adds for its launcher does not matter to the plan."""
    values = dataclasses.asdict(config)
    settings = {field.name: values[field.name] for field in dataclasses.fields(registry.task(config.kind).config)}
    return PlanRequest(config.kind, settings, room, processes)


def _of_begun_run(run: Path) -> int | None:
    """The micro-batch of a run that has begun."""
    if not (run / CONFIG_FILE).exists():
        return None
    return read_run_config(run).get("train", {}).get("micro_batch")


def _free_memory(device: torch.device) -> int:
    """Bytes of the device that are free for this process."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    free, total = torch.cuda.mem_get_info(device)
    return min(free + CUDA_CONTEXT, total)  # the plan counts the CUDA context, which this process has already


def _plan(request: PlanRequest) -> int:
    """Images of the largest micro-batch, 0 if none fits; planned by a process of its own, which sees no GPU."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, "-m", "trainer.planning.micro_batch"],
        input=json.dumps(dataclasses.asdict(request)),
        env=alone | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"planning the micro-batch failed:\n{done.stderr}")
    answer: int | str = json.loads(done.stdout.splitlines()[-1])
    if isinstance(answer, str):
        raise UserError(f"train.find_micro_batch=true: {answer}")
    return answer


def _answer(request: PlanRequest) -> int | str:
    """What `_plan` returns, or a user's mistake."""
    from accelerate import PartialState

    from trainer.planning.plan import plan_memory

    PartialState(cpu=True)
    try:
        config = typed(registry.task(request.task).config, request.settings, "")
        largest = plan_memory(config, request.room, request.processes).largest
    except UserError as error:
        return str(error)
    return largest.images if largest else 0


if __name__ == "__main__":
    print(json.dumps(_answer(PlanRequest(**json.load(sys.stdin)))))
