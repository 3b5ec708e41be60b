"""What an image costs as images become more: building, adding a few, starting, streaming and resuming an epoch.

usage:
  uv run python -m tests.benchmarks.scale work=DIR out=FILE.json [sizes=12500,25000,50000,100000] [rows=250000,1000000]
sizes: data sets of real files, phantom cells of 48 px, rendered into work= once (3 minutes for 100,000 on two cores),
the first of them for each size. rows: data sets whose images are forged (`forged_rows.py`), for what a row costs beside
its picture. Each step runs in a new process, which has imported what it needs before the clock starts, and is alone in
its work, so that its processor time and memory are all that the step takes: on a machine that does other work too, they
tell more than seconds by the clock.
"""

import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.build import build_dataset
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.phantoms.folders import TABLE, render_phantoms
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from tests.benchmarks.forged_rows import declare, forging
from trainer.experiments.machine import describe_machine

SIDE = 48
ADDED = 504
ADDED_ROWS = 10_000
_STARTS = ("open", "stream", "first ids", "first batch")
STREAM = StreamConfig(image_size=32, augment=AugmentConfig(rotation=0, scale=1, shift=0))
GLOBAL_BATCH = 256

Found = dict[str, Any]
Step = Callable[[Path, Path], Found]


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    work, out = Path(arguments["work"]), Path(arguments["out"])
    sizes = sorted(int(size) for size in arguments.get("sizes", "12500,25000,50000,100000").split(","))
    rows = sorted(int(size) for size in arguments.get("rows", "250000,1000000").split(","))
    report = run(work, sizes, rows)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print("\n".join(table(report)))
    print(out.resolve())


def run(work: Path, sizes: list[int], rows: list[int]) -> Found:
    """All steps at every size, as they go into the JSON."""
    report: Found = {"machine": describe_machine(), "side": SIDE, "added": ADDED, "added_rows": ADDED_ROWS}
    images = render(work / "images", -(-max(sizes) // len(CELL_TYPES)), seed=0)
    render(work / "added", ADDED // len(CELL_TYPES), seed=1)
    for size in sizes:
        first_of(images, size)
    report["sizes"] = {size: steps_of(STEPS, work, size) for size in sizes}
    report["rows"] = {size: steps_of(ROW_STEPS, work, size) for size in rows}
    return report


def steps_of(steps: Mapping[str, Step], work: Path, size: int) -> Found:
    """Every step for one data set, which is removed at the end."""
    folder = work / str(size)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = {name: measured(step, work, folder) for name, step in steps.items()}
    shutil.rmtree(folder)
    return found


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
    return {
        name: [round(end - begin, 4) for begin, end in zip(*pair, strict=True)]
        for name, pair in zip(_STARTS, pairwise(marks), strict=True)
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


def build_rows(work: Path, folder: Path) -> Found:
    """From a list of forged images to a data set."""
    with forging():
        return _build(folder, declare(work / "forged", "cells", int(folder.name)))


def add_rows(work: Path, folder: Path) -> Found:
    """A small second source of forged images; which files of rows are written."""
    catalog = folder / "data" / PARTITION_FOLDER
    before = set(os.listdir(catalog))
    with forging():
        found = _build(folder, declare(work / "forged", "added", ADDED_ROWS))
    after = set(os.listdir(catalog))
    return {**found, "row_files_written": len(after - before), "row_files_kept": len(after & before)}


STEPS: dict[str, Step] = {"build": build, "add": add, "start": start, "epoch": epoch, "resume": resume}
ROW_STEPS: dict[str, Step] = {"build": build_rows, "add": add_rows, "start": start}


def bytes_an_image(rows: Found, step: str) -> float:
    """Memory that one more image takes in a step, between the smallest and the largest data set."""
    ends = sorted(rows, key=int)[:: max(1, len(rows) - 1)]
    more = [rows[size][step]["mib_at_most"] - rows[size][step]["mib_before"] for size in ends]
    return (more[-1] - more[0]) * 2**20 / max(1, int(ends[-1]) - int(ends[0]))


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
    lines.append(f"{'rows':>8} {'build':>8} {'add':>8} us a row | {'start':>8} s by the clock | MiB more")
    for size, steps in report["rows"].items():
        each = " ".join(f"{1e6 * steps[name]['processor_seconds'] / int(size):8.1f}" for name in ("build", "add"))
        begun = sum(seconds for name in _STARTS for seconds in steps["start"][name][:1])
        memory = ", ".join(f"{name} {found['mib_at_most'] - found['mib_before']:.0f}" for name, found in steps.items())
        lines.append(f"{size:>8} {each}          | {begun:8.2f}   | {memory}")
    more = ", ".join(f"{name} {bytes_an_image(report['rows'], name):.0f}" for name in ROW_STEPS)
    return [*lines, f"one more row, bytes of memory: {more}"]


if __name__ == "__main__":
    main()
