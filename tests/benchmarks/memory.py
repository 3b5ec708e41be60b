"""Memory and speed of every training configuration as it is delivered, on phantoms.

usage: uv run python -m tests.benchmarks.memory out=FILE.json [key=value ...]
  models=NAME,NAME        of configs/model/; all, if nothing is said
  settings=KEY=VALUE,...  laid over each of them, train.precision=fp16 say
  steps=5                 that are timed, after warm_up=3
  per_type=24 size=224    phantoms of each type and stain, and their side in pixels

Trainings run in this process, one after the other, each as its launcher builds it. Memory is the most that
torch held of the GPU (allocated: in tensors; reserved: with what it keeps ready), and what the GPU had given out
to everything at the end, DALI's decoders too. On the CPU, speed alone is measured.
"""

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.sources.declaration import SourceDeclaration
from data_pipeline.stream.stream import Topology
from launchers.console import CONFIGS, launch
from tests.benchmarks.real_loops import some_steps
from trainer.experiments.machine import describe_machine
from trainer.learners.topology import join_processes
from trainer.runs.configuration import typed
from trainer.runs.registry import algorithm_names

# What these were made for; all others take their launcher's.
_IMAGE_SIZES = {"senet_small_ge": 96, "senet_tiny_ge": 64}
_LEFT_OUT = {
    "frozen": "learns without gradients",
    "naive_bayes": "learns without gradients",
    "timm": "names no model of its own",
    "stain_student": "needs a trained teacher",
    "fast_gan": "learns in its adaptation alone",
    "diff_augment": "learns in its adaptation alone",
}
_LAUNCHERS = {
    "train_detector": "detection",
    "train_stain_gan": "stain",
    "train_conditional_gan": "conditional",
    "train_few_shot_gan": "few_shot",
}
# Phantoms are as many of each type: which are rare has to be said.
_RARE = "rare_types=[myeloblast]"


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    out: str = ""
    models: str = ""
    settings: str = ""
    steps: int = 5
    warm_up: int = 3
    per_type: int = 24
    size: int = 224


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.out:
        raise UserError("give out=FILE.json")
    result = run(options)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print(Path(options.out).resolve())


def run(options: Options) -> dict[str, Any]:
    """All measurements, as they go into the JSON."""
    launchers = {path.stem: launcher_of(path) for path in sorted((CONFIGS / "model").glob("*.yaml"))}
    # A detector learns from whole fields; the phantoms here are single cells.
    launchers = {name: launcher for name, launcher in launchers.items() if launcher != "train_detector"}
    chosen = options.models.split(",") if options.models else list(launchers)
    unknown = [name for name in chosen if name not in launchers]
    if unknown:
        raise UserError(f"models={unknown[0]}: no such file in configs/model/")
    topology = join_processes()
    result: dict[str, Any] = {
        "options": asdict(options) | {"out": Path(options.out).name},
        "machine": describe_machine(),
        "models": {},
    }
    with tempfile.TemporaryDirectory(prefix="memory-benchmark-") as temporary:
        dataset = phantoms(Path(temporary), options.per_type, options.size)
        for name in chosen:
            if name in _LEFT_OUT:
                result["models"][name] = {"left_out": _LEFT_OUT[name]}
                continue
            begun = time.monotonic()
            overrides = overrides_of(name, launchers[name], dataset, dataset.parent / "runs" / name)
            overrides += options.settings.split(",") if options.settings else []
            found = measure(launchers[name], overrides, topology, warm_up=options.warm_up, steps=options.steps)
            result["models"][name] = found
            print(f"{name} ({time.monotonic() - begun:.1f} s): {json.dumps(found)}", file=sys.stderr, flush=True)
            if options.out:  # what is known stays, however the run ends
                Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    return result


def launcher_of(path: Path) -> str:
    """The launcher whose model a file of configs/model/ describes."""
    content = yaml.safe_load(path.read_text())
    if "algorithm" not in content:
        return "train_classifier"
    return next(name for name, task in _LAUNCHERS.items() if content["algorithm"] in algorithm_names(task))


def overrides_of(name: str, launcher: str, dataset: Path, run: Path) -> list[str]:
    """What the launcher is told for a training on phantoms."""
    size = [f"data.image_size={_IMAGE_SIZES[name]}"] if name in _IMAGE_SIZES else []
    rare = [_RARE] if launcher == "train_few_shot_gan" else []
    return [f"model={name}", f"shards={dataset}", f"run={run}", *size, *rare]


def measure(
    launcher: str,
    overrides: list[str],
    topology: Topology,
    *,
    warm_up: int,
    steps: int,
    on_start: Callable[[], None] = lambda: None,
    on_end: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """One training's memory and speed, or the error that it ended in; see `some_steps`."""
    on_gpu = topology.device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        timed = some_steps(
            launcher, overrides, topology, warm_up=warm_up, steps=steps, on_start=on_start, on_end=on_end
        )
    except (RuntimeError, UserError) as error:  # out of memory, say: the others are measured all the same
        return {"launcher": launcher, "error": f"{type(error).__name__}: {str(error)[:500]}"}
    return {
        "launcher": launcher,
        "global_batch": timed.global_batch,
        "precision": timed.precision,
        "steps_per_second": round(timed.steps / timed.seconds, 3),
        **most_memory(topology),
    }


def most_memory(topology: Topology) -> dict[str, float | None]:
    """GiB since the last reset of torch's statistics; None of each on the CPU. See the usage above."""
    if topology.device.type != "cuda":
        return {"max_allocated_gib": None, "max_reserved_gib": None, "given_out_gib": None}
    free, total = torch.cuda.mem_get_info()
    return {
        "max_allocated_gib": _gib(torch.cuda.max_memory_allocated()),
        "max_reserved_gib": _gib(torch.cuda.max_memory_reserved()),
        "given_out_gib": _gib(total - free),
    }


def _gib(count: int) -> float:
    return round(count / 2**30, 2)


def phantoms(work: Path, per_type: int, size: int) -> Path:
    """A data set of phantoms in both stains; per_type in each."""
    workers = useful_workers(12 * 2 * per_type)
    table = render_phantoms(
        work / "raw", per_type, slides=min(20, per_type), size=size, workers=workers, progress=False
    )
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    build_dataset(work / "data", [source], ratio=(0.6, 0.2, 0.2), workers=workers, progress=False)
    return work / "data"


def useful_workers(images: int) -> int:
    """Processes that prepare so many images: each takes some seconds to begin."""
    return len(os.sched_getaffinity(0)) if images > 2000 else 1


if __name__ == "__main__":
    launch(main, __doc__)
