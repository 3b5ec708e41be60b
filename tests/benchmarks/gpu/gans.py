"""Steps per second, memory and phases of the GANs' trainings, each as its launcher builds it."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Topology
from launchers.console import CONFIGS
from tests.benchmarks.gpu.data import CELLS
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.memory import launcher_of
from tests.benchmarks.memory import measure as measure_training
from tests.benchmarks.phases import PhaseClock, told_apart
from trainer.learners.topology import join_processes

_WARM_UP_STEPS = 3
# Building networks and streams, and some steps.
_ROW_SECONDS = 6.0


def measure(options: Options, record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """A row for each GAN."""
    topology = join_processes()
    rows = [
        Row(name, partial(_measure, name, options, topology), _ROW_SECONDS) for name in options.gans.split(",") if name
    ]
    measure_rows(rows, record, deadline, say)


def _measure(name: str, options: Options, topology: Topology) -> dict[str, Any]:
    launcher = launcher_of(CONFIGS / "model" / f"{name}.yaml")
    dataset, run = Path(options.data) / CELLS, options.work_folder / "gans" / name
    shutil.rmtree(run, ignore_errors=True)  # of an earlier start, which may have been another number of steps
    overrides = [f"model={name}", f"shards={dataset.resolve()}", f"run={run.resolve()}"]
    if launcher == "train_few_shot_gan":
        overrides.append(f"rare_types=['{_rarest_type(dataset)}']")
    overrides += [f"train.precision={options.precision}", *options.gan_overrides]
    clock = PhaseClock(topology.device)
    with told_apart(clock):
        found = measure_training(
            launcher,
            overrides,
            topology,
            warm_up=_WARM_UP_STEPS,
            steps=options.gan_steps,
            on_start=clock.restart,
            on_end=clock.stop,
        )
    if "error" in found:
        raise RuntimeError(found["error"])
    return found | {"phases": clock.shares()}


def _rarest_type(dataset: Path) -> str:
    types = Dataset.open(dataset).samples(splits=["train"], columns=["cell_type"])["cell_type"]
    return str(types.value_counts().idxmin())
