"""Speed of a training's steps in another checkout of this project beside this one, in one run.

usage: uv run python -m tests.benchmarks.before_after old=CHECKOUT out=FILE.json [key=value ...]
  old=CHECKOUT            another version's folder, git worktree add CHECKOUT COMMIT
  models=c_wgan_gp        of configs/model/, comma-separated
  settings=KEY=VALUE,...  laid over each of them
  variants=old:train.precision=fp32;new:train.precision=fp32
                          contenders, separated by ;  old or new, then KEY=VALUE,... of its own. The first is the base
  rounds=5 steps=1        rounds through all contenders, every other one backwards; timed steps of each in a round
  size=128                side of the phantoms in pixels

Each checkout has one process of one thread. Seconds are processor time on the CPU, which other work on the machine
changes less than the clock's, and the clock's on a GPU.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from launchers.console import CONFIGS, launch
from tests.benchmarks.memory import launcher_of, overrides_of, phantoms
from tests.benchmarks.real_loops import some_steps
from tests.benchmarks.timing import paired_ratio, summary
from trainer.experiments.machine import describe_machine
from trainer.learners.topology import join_processes
from trainer.runs.configuration import typed


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    old: str = ""
    out: str = ""
    models: str = "c_wgan_gp"
    settings: str = ""
    variants: str = "old:train.precision=fp32;new:train.precision=fp32"
    rounds: int = 5
    steps: int = 1
    size: int = 128


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.old or not options.out:
        raise UserError("give old=CHECKOUT and out=FILE.json")
    result = run(options)
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))


def run(options: Options) -> dict[str, Any]:
    """All measurements, as they go into the JSON."""
    variants = options.variants.split(";")
    checkouts = {"old": Path(options.old).resolve(), "new": Path(__file__).parents[2]}
    unknown = [variant for variant in variants if variant.partition(":")[0] not in checkouts]
    if unknown:
        raise UserError(f"variants={unknown[0]}: begin with old or new")
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="before-after-")))
        dataset = phantoms(scratch, 24, options.size)
        used = {variant.partition(":")[0] for variant in variants}
        ask = {version: stack.enter_context(_Worker(checkouts[version])) for version in used}
        for model in options.models.split(","):
            launcher = launcher_of(CONFIGS / "model" / f"{model}.yaml")
            steps = found[model] = {variant: [] for variant in variants}
            for number in range(options.rounds):
                for variant in variants if number % 2 == 0 else reversed(variants):
                    version, _, own = variant.partition(":")
                    run_folder = scratch / "runs" / f"{model}-{number}-{variants.index(variant)}"
                    overrides = overrides_of(model, launcher, dataset, run_folder)
                    overrides += [setting for part in (options.settings, own) if part for setting in part.split(",")]
                    steps[variant].append(ask[version]([launcher, overrides, options.steps]))
                    print(model, variant, steps[variant][-1], file=sys.stderr, flush=True)
    return {
        "options": asdict(options) | {"old": Path(options.old).name, "out": Path(options.out).name},
        "machine": describe_machine(),
        "models": {model: _compared(steps) for model, steps in found.items()},
    }


def _compared(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    seconds = {variant: [each["seconds"] for each in rounds] for variant, rounds in found.items()}
    base = next(iter(seconds))
    return {
        variant: {
            "precision": found[variant][0]["precision"],
            "images": found[variant][0]["images"],
            "seconds": summary(values, 4),
            "times as fast as the first": paired_ratio(seconds[base], values),
        }
        for variant, values in seconds.items()
    }


def table(result: dict[str, Any]) -> list[str]:
    """Medians for a person, the ratio with its spread."""
    lines = []
    for model, variants in result["models"].items():
        for variant, found in variants.items():
            ratio = found["times as fast as the first"]
            spread = f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"
            lines.append(f"{model:16}{variant:60}{found['seconds']['median']:9.3f} s{spread:>20}")
    return lines


class _Worker:
    """A process of one checkout that times steps when asked to."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout

    def __enter__(self) -> Callable[[Any], dict[str, Any]]:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "worker"],
            cwd=self._checkout,
            env=os.environ | {"PYTHONPATH": str(self._checkout), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._ask

    def __exit__(self, *error: Any) -> None:
        self._process.communicate()

    def _ask(self, question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"{self._checkout}: the process ended; see above")


def work() -> None:
    """Answer questions on stdin, one a line, with this checkout's trainings."""
    topology = join_processes()
    for line in sys.stdin:
        print(json.dumps(_timed(*json.loads(line), topology)), flush=True)


def _timed(launcher: str, overrides: list[str], steps: int, topology: Topology) -> dict[str, Any]:
    times: list[float] = []

    def note() -> None:
        if topology.device.type == "cuda":
            torch.cuda.synchronize(topology.device)
        times.append(time.perf_counter() if topology.device.type == "cuda" else time.process_time())

    timed = some_steps(launcher, overrides, topology, warm_up=1, steps=steps, on_start=note, on_end=note)
    seconds = (times[1] - times[0]) / steps
    return {"seconds": seconds, "precision": timed.precision, "images": timed.global_batch}


if __name__ == "__main__":
    work() if sys.argv[1:] == ["worker"] else launch(main, __doc__)
