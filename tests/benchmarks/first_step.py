"""Seconds from the start of launchers/train_classifier.py to its first step, by both launch commands of Accelerate.

usage: python -m tests.benchmarks.first_step shards=DIR [trees=DIR,DIR] [repeats=5] [out=FILE.json]
  shards=DIR     a data set of small images: runs/quickstart/dataset, which the tour leaves
  trees=DIR,DIR  checkouts, measured interleaved, so that other work on the machine meets all alike; default: this one
  repeats=5      measurements of each, after an uncounted one that fills the file cache and writes bytecode

A measurement ends when the training (senet_tiny_ge, 64 px) has logged its first step. cpu_seconds: of all its processes
until then; on a busy machine they vary less than seconds. Both commands are Accelerate's own and take the same
arguments; `accelerate` also imports what its other commands need.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from data_pipeline.errors import UserError
from launchers.console import launch
from tests.benchmarks.timing import summary
from tests.launching import ROOT
from trainer.experiments.machine import describe_machine
from trainer.runs.configuration import typed

_TRAINING = ("model=senet_tiny_ge", "data.image_size=64", "train.global_batch=32", "train.log_every=1")
_COMMANDS = {
    "accelerate launch": ("-m", "accelerate.commands.accelerate_cli", "launch"),
    "accelerate-launch": ("-m", "accelerate.commands.launch"),
}
_LONGEST = 120.0  # seconds


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    shards: str = ""
    trees: str = str(ROOT)
    repeats: int = 5
    out: str = ""


@dataclass(frozen=True)
class FirstStep:
    """What a training has taken until its first step is logged."""

    seconds: float
    cpu_seconds: float


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.shards:
        raise UserError("give shards=DIR, runs/quickstart/dataset say")
    result = run(options)
    text = json.dumps(result, indent=1) + "\n"
    if options.out:
        Path(options.out).write_text(text)
    print(text)


def run(options: Options) -> dict[str, Any]:
    """All measurements, as they go into the JSON."""
    trees = [Path(tree).resolve() for tree in options.trees.split(",")]
    shards = Path(options.shards).resolve()
    for tree in trees:
        time_first_step(tree, next(iter(_COMMANDS)), shards)
    found: dict[tuple[Path, str], list[FirstStep]] = {(tree, command): [] for tree in trees for command in _COMMANDS}
    for _ in range(options.repeats):
        for (tree, command), steps in found.items():
            steps.append(time_first_step(tree, command, shards))
            print(f"{tree.name}, {command}: {steps[-1]}", file=sys.stderr, flush=True)
    return {
        "repeats": options.repeats,
        "machine": describe_machine(),
        "first_step": {
            f"{tree.name}, {command}": {
                name: summary([asdict(step)[name] for step in steps], 2) for name in ("seconds", "cpu_seconds")
            }
            for (tree, command), steps in found.items()
        },
    }


def time_first_step(tree: Path, command: str, shards: Path) -> FirstStep:
    """Start a training from a checkout's launcher, wait for the log of its first step, kill it."""
    with tempfile.TemporaryDirectory(prefix="first-step-") as work:
        run, log = Path(work) / "run", Path(work) / "log"
        launcher = [str(tree / "launchers/train_classifier.py"), f"shards={shards}", f"run={run}", *_TRAINING]
        begun = time.monotonic()
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, *_COMMANDS[command], "--num_processes", "1", *launcher],
                env=os.environ | {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            while not _logged(run) and process.poll() is None and time.monotonic() - begun < _LONGEST:
                time.sleep(0.005)
            seconds = time.monotonic() - begun
            if not _logged(run):
                raise RuntimeError(f"no first step after {seconds:.0f} s:\n{log.read_text()}")
            started = psutil.Process(process.pid)
            times = [each.cpu_times() for each in (started, *started.children(recursive=True))]
            return FirstStep(seconds, sum(taken.user + taken.system for taken in times))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _logged(run: Path) -> bool:
    records = run / "metrics.jsonl"
    return records.exists() and records.stat().st_size > 0


if __name__ == "__main__":
    launch(main, __doc__)
