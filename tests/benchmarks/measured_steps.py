"""Steps that are timed on this machine, to hold the formulas of step_time.py against; part of the scaling benchmark."""

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import read_config
from models.classifiers.build import build_classifier
from tests.benchmarks.own_training import OnDevice, train_speed
from tests.benchmarks.step_time import Link, Step, fit_link, ring_all_reduce, waited_for
from tests.benchmarks.timing import paired_ratio, summary
from trainer.learners.topology import join_processes, leave_processes
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training.stream import known_cell_types


@dataclass(frozen=True)
class Case:
    """A training that is timed here: `images` are each process's share of a step."""

    model: str
    image_size: int
    images: int
    lap_steps: int


# One in which compute is most of a step, and one in which the exchange weighs.
CASES = (Case("senet_small_ge", 96, 16, 4), Case("senet_small_ge", 32, 4, 24))
GPU_CASES = tuple(
    Case(model, 224, images, lap_steps)
    for model, lap_steps in (("senet154_ge", 4), ("resnet50", 12))
    for images in (16, 64)
)


def cases() -> tuple[Case, ...]:
    """What is trained on this machine."""
    return GPU_CASES if torch.cuda.is_available() else CASES


def process_counts() -> list[int]:
    """Numbers of processes that a training is measured on: 1, 2, 4 ... GPUs, or 1 and 2 processes of the CPU."""
    gpus = torch.cuda.device_count() or 2
    return [2**power for power in range(gpus.bit_length())]


def count_parameters(network: str, image_size: int = 224) -> int:
    """Numbers that are exchanged at each step: the real network's, for twelve types."""
    config = read_config(ClassifierRunConfig, "train_classifier", [f"model={network}"])
    built = build_classifier(config.model, len(CELL_TYPES), image_size)
    return sum(parameter.numel() for parameter in built.parameters() if parameter.requires_grad)


def measure_exchange(repeats: int, largest: int) -> dict[str, Any]:
    """All-reduce by NCCL or by gloo on loopback: seconds by bytes, and what the formula makes of them.

    On each number of GPUs; on a CPU, of 2 and 4 processes. Of each size the fastest round, since what else the machine
    does can only slow it down. A link is fitted to each number of processes; that of fewer is held against the times of
    more as well.
    """
    sizes = [4096 * 4**power for power in range(8) if 4096 * 4**power <= largest]
    found: dict[int, list[float]] = {}
    for processes in process_counts()[1:] if torch.cuda.is_available() else (2, 4):
        rounds = [in_processes(processes, exchange_seconds, sizes) for _ in range(repeats)]
        found[processes] = [min(times) for times in zip(*rounds, strict=True)]
    links = {processes: fit_link(processes, sizes, seconds) for processes, seconds in found.items()}
    return {
        str(processes): {
            "link": asdict(links[processes]),
            "rows": [
                {
                    "bytes": size,
                    "seconds": measured,
                    "predicted / measured": {
                        f"by the link of {fitted}": round(ring_all_reduce(processes, size, link) / measured, 2)
                        for fitted, link in links.items()
                        if fitted <= processes
                    },
                }
                for size, measured in zip(sizes, seconds, strict=True)
            ],
        }
        for processes, seconds in found.items()
    }


def exchange_seconds(topology: Topology, sizes: Sequence[int]) -> list[float]:
    """Median seconds of an all-reduce of each size in bytes."""
    medians = []
    for size in sizes:
        gradient = torch.ones(size // 4, device=topology.device)
        times = []
        for _ in range(12):
            distributed.barrier()
            _wait(topology)
            begun = time.perf_counter()
            distributed.all_reduce(gradient)
            _wait(topology)
            times.append(time.perf_counter() - begun)
        medians.append(statistics.median(times[2:]))
    return medians


def measure_training(repeats: int, laps: float, work: Path, links: Mapping[int, Link]) -> list[dict[str, Any]]:
    """Weak scaling: seconds per step by number of processes, measured and predicted from the parts.

    A process has a GPU of its own, or one thread. The parts: a step of one process on a batch that costs nothing, alone
    and with other such processes beside it; the exchange by the fitted link; the images' loading. Of all the fastest
    round; the efficiency is the median over rounds.
    """
    dataset = phantoms(work)
    rows = []
    for case in cases():
        case = replace(case, lap_steps=max(1, round(case.lap_steps * laps)))
        counts = process_counts()
        times: dict[tuple[int, str], list[float]] = {(n, kind): [] for n in counts for kind in ("synthetic", "stream")}
        loading: list[float] = []
        beside: dict[int, list[float]] = {processes: [] for processes in counts[1:]}
        for number in range(repeats):
            place = work / f"{case.model}-{case.image_size}-{case.images}-{number}"
            loading.append(in_processes(1, loading_seconds, dataset, case))
            for processes in beside:
                there = place / f"beside-{processes}"
                seconds = in_processes(processes, step_seconds, dataset, case, "synthetic", there, joined=False)
                beside[processes].append(seconds)
            for processes, kind in times:
                there = place / f"{kind}-{processes}"
                times[processes, kind].append(in_processes(processes, step_seconds, dataset, case, kind, there))
        compute = {1: min(times[1, "synthetic"])} | {processes: min(found) for processes, found in beside.items()}
        size = 4 * count_parameters(case.model, case.image_size)
        steps = []
        for (processes, kind), measured in times.items():
            part = min(loading) if kind == "stream" else 0.0
            told = {}
            for name, overlap in (("without overlap", False), ("with overlap", True)):
                exchange = 0.0
                if processes > 1:
                    exchange = waited_for(processes, size, links[processes], compute[processes], overlap=overlap)
                told[name] = predicted(processes, compute[processes], part, exchange)
            steps.append(
                {
                    "processes": processes,
                    "batches": kind,
                    "measured": summary(measured, 4),
                    "efficiency": paired_ratio(times[1, kind], measured),
                    "predicted": {name: round(seconds, 4) for name, seconds in told.items()},
                    "predicted / measured": {name: round(told[name] / min(measured), 2) for name in told},
                }
            )
        parts = {
            "loading": summary(loading, 4),
            "beside others": {str(processes): summary(found, 4) for processes, found in beside.items()},
        }
        rows.append(asdict(case) | {"gradient_bytes": size} | parts | {"steps": steps})
    return rows


def predicted(processes: int, compute: float, loading: float, exchange: float) -> float:
    """Seconds of a step on this machine: where every core has a process that computes, loading adds to it."""
    if torch.cuda.is_available() or processes < len(os.sched_getaffinity(0)):
        return Step(compute, exchange, loading).seconds
    return compute + exchange + loading


def overrides(case: Case, processes: int) -> list[str]:
    settings = [
        f"model={case.model}",
        f"data.image_size={case.image_size}",
        f"train.global_batch={case.images * processes}",
    ]
    return settings if torch.cuda.is_available() else [*settings, "data.threads=1"]


def step_seconds(topology: Topology, root: Path, case: Case, kind: str, place: Path) -> float:
    """Of the trainer's own loop, on the stream or on one batch that costs nothing."""
    config = read_config(ClassifierRunConfig, "train_classifier", overrides(case, topology.world_size))
    stream = Stream if kind == "stream" else OnDevice
    run = place if topology.world_size > 1 else place / str(os.getpid())
    speed = train_speed(stream, Dataset.open(root), config, topology, case.lap_steps, run)
    return config.train.global_batch / speed


def loading_seconds(topology: Topology, root: Path, case: Case) -> float:
    """Of one process's share of a step, loaded and thrown away; on a CPU by one thread."""
    dataset = Dataset.open(root)
    config = read_config(ClassifierRunConfig, "train_classifier", overrides(case, 1))
    cell_types = known_cell_types(dataset, config.data)
    stream = Stream(
        dataset,
        config.data,
        splits=SPLITS,
        cell_types=cell_types,
        global_batch=case.images,
        training=True,
        topology=topology,
    ).read()
    steps = 10 * case.lap_steps
    for _ in range(4):
        next(stream)
    _wait(topology)
    begun = time.perf_counter()
    for _ in range(steps):
        next(stream)
    _wait(topology)
    return (time.perf_counter() - begun) / steps


def phantoms(work: Path) -> Path:
    """A data set of 480 phantoms of 128 px."""
    table_file = render_phantoms(work / "raw", 40, slides=8, size=128, workers=1, paired=False, progress=False)
    source = SourceDeclaration(kind="table", name="phantom", root=table_file, domain="phantom")
    build_dataset(work / "data", [source], progress=False)
    return work / "data"


def in_processes(processes: int, work: Callable[..., Any], *arguments: Any, joined: bool = True) -> Any:
    """What the first of some new processes makes of `work`; joined, each on its GPU or over loopback, or each alone."""
    context = multiprocessing.get_context("forkserver")  # which imports what is needed once for all of them
    context.set_forkserver_preload([__name__])
    answers = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        context.Process(target=_join_and_work, args=(rank, processes, joined, port, answers, work, arguments))
        for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise RuntimeError(f"{work.__name__} on {processes} processes failed; see above")
    return answers.get()


def _join_and_work(
    rank: int, processes: int, joined: bool, port: int, answers: Any, work: Callable[..., Any], given: Any
) -> None:
    if processes > 1 and joined:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
        os.environ |= dict(zip(names, map(str, (rank, rank, processes, processes, port)), strict=True))
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    elif torch.cuda.is_available():
        torch.cuda.set_device(rank)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    answer = work(join_processes(), *given)
    leave_processes()
    if rank == 0:
        answers.put(answer)


def _wait(topology: Topology) -> None:
    if topology.device.type == "cuda":
        torch.cuda.synchronize(topology.device)
