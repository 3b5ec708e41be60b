"""What an image costs as images become more: building, adding a few, starting, streaming and resuming an epoch.

usage:
  uv run python -m tests.benchmarks.scale work=DIR out=FILE.json [sizes=12500,25000,50000,100000]
The images are phantom cells of 48 px, rendered into work= once (3 minutes for 100,000 on two cores), the first of them
for each size; sizes build data sets of their own. Each step runs in a new process, which has imported what it needs
before the clock starts, and is alone in its work, so that its processor time and memory are all that the step takes:
on a machine that does other work too, they tell more than seconds by the clock.
"""

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import TABLE, render_phantoms
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from trainer.experiments.machine import describe_machine

SIDE = 48
ADDED = 504
STREAM = StreamConfig(image_size=32, augment=AugmentConfig(rotation=0, scale=1, shift=0))
GLOBAL_BATCH = 256

Found = dict[str, Any]
Step = Callable[[Path, Path], Found]


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    work, out = Path(arguments["work"]), Path(arguments["out"])
    sizes = sorted(int(size) for size in arguments.get("sizes", "12500,25000,50000,100000").split(","))
    report = run(work, sizes)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(table(report)))
    print(out.resolve())


def run(work: Path, sizes: list[int]) -> Found:
    """All steps at every size, as they go into the JSON."""
    report: Found = {"machine": describe_machine(), "side": SIDE, "added": ADDED, "sizes": {}}
    images = render(work / "images", -(-max(sizes) // len(CELL_TYPES)), seed=0)
    render(work / "added", ADDED // len(CELL_TYPES), seed=1)
    for size in sizes:
        folder = work / str(size)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        first_of(images, size)
        report["sizes"][size] = {step.__name__: measured(step, work, folder) for step in STEPS}
        shutil.rmtree(folder)
    return report


def render(folder: Path, per_type: int, seed: int) -> Path:
    """Phantoms of one stain; their table."""
    workers = len(os.sched_getaffinity(0))
    return render_phantoms(folder, per_type, ("giemsa",), 500, SIDE, seed, workers, progress=False)


def first_of(images: Path, size: int) -> Path:
    """A table of so many of the images, evenly from all types."""
    rows = pd.read_csv(images, dtype=str, keep_default_na=False)
    number = rows.groupby("label").cumcount()
    path = images.with_name(f"{size}.csv")
    rows.iloc[number.argsort(kind="stable")[:size]][["image", "label", "slide"]].to_csv(path, index=False)
    return path


def measured(step: Step, work: Path, folder: Path) -> Found:
    """What a step finds; its seconds, by the clock and of the processor; its memory in MiB, before and at most."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured_here, step, work, folder).result()


def _measured_here(step: Step, work: Path, folder: Path) -> Found:
    before, computed, started = _memory("VmRSS"), time.process_time(), time.perf_counter()
    found = step(work, folder)
    return {
        **found,
        "seconds": round(time.perf_counter() - started, 3),
        "processor_seconds": round(time.process_time() - computed, 3),
        "mib_before": before,
        "mib_at_most": _memory("VmHWM"),
    }


def _memory(name: str) -> float:
    # Not getrusage, whose maximum begins with that of the process which started this one.
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def build(work: Path, folder: Path) -> Found:
    """From images to a data set."""
    return _build(folder, SourceDeclaration("table", "cells", work / "images" / f"{folder.name}.csv", "phantom"))


def add(work: Path, folder: Path) -> Found:
    """A small second source; every image is read again, none but the new are decoded."""
    return _build(folder, SourceDeclaration("table", "added", work / "added" / TABLE, "phantom"))


def _build(folder: Path, source: SourceDeclaration) -> Found:
    report = build_dataset(folder / "data", [source], workers=1, progress=False)
    return {name: report[name] for name in ("samples", "excluded", "shards_written", "shards_kept")}


def start(work: Path, folder: Path) -> Found:
    """The start of an epoch, part by part: seconds by the clock and of the processor."""
    marks = [_clocks()]
    dataset = Dataset.open(folder / "data")
    marks.append(_clocks())
    stream = _stream(dataset)
    marks.append(_clocks())
    stream.ids(0)
    marks.append(_clocks())
    next(stream.read())
    marks.append(_clocks())
    names = ("open", "stream", "first ids", "first batch")
    return {
        name: [round(end - begin, 4) for begin, end in zip(*pair, strict=True)]
        for name, pair in zip(names, pairwise(marks), strict=True)
    }


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def epoch(work: Path, folder: Path) -> Found:
    """Every batch of an epoch."""
    stream = _stream(Dataset.open(folder / "data"))
    images = 0
    for batch in stream.read():
        images += len(batch.rows)
        if batch.batch == stream.batches_per_epoch - 1:
            break
    return {"images": images}


def resume(work: Path, folder: Path) -> Found:
    """From nothing to the first batch of an epoch's second half."""
    stream = _stream(Dataset.open(folder / "data"))
    middle = stream.batches_per_epoch // 2
    assert next(stream.read(middle)).batch == middle
    return {"batch": middle}


def _stream(dataset: Dataset) -> Stream:
    return Stream(dataset, STREAM, splits=["train"], cell_types=CELL_TYPES, global_batch=GLOBAL_BATCH, training=True)


STEPS: tuple[Step, ...] = (build, add, start, epoch, resume)


def table(report: Found) -> list[str]:
    """The numbers for a person, by the processor's time."""
    lines = [
        f"{'images':>8} {'build':>8} {'add':>8} {'epoch':>8} ms an image | {'start':>8} {'resume':>8} s | MiB more"
    ]
    for size, steps in report["sizes"].items():
        counts = {"build": int(size), "add": int(size), "epoch": steps["epoch"]["images"]}
        each = " ".join(f"{1000 * steps[name]['processor_seconds'] / count:8.3f}" for name, count in counts.items())
        once = " ".join(f"{steps[name]['processor_seconds']:8.3f}" for name in ("start", "resume"))
        memory = ", ".join(f"{name} {found['mib_at_most'] - found['mib_before']:.0f}" for name, found in steps.items())
        lines.append(f"{size:>8} {each}             | {once}   | {memory}")
    return lines


if __name__ == "__main__":
    main()
