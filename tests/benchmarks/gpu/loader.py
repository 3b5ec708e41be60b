"""How fast images reach the GPU: the stream, its ceilings, and other loaders on the same stored bytes."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Topology
from tests.benchmarks.gpu.data import LOADED
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.ours import own_contenders
from tests.benchmarks.peers import DECODERS, PEERS, installed_peers, peer_contenders, write_copies
from tests.benchmarks.throughput import augmentations
from tests.benchmarks.timing import Contender, Setting, summary
from tests.benchmarks.timing import measure as time_loader
from trainer.learners.topology import join_processes

# Those that are told first, where there is no time for all.
_FIRST = (
    "stream, flip",
    "torch ImageFolder",
    "webdataset",
    "memory, flip",
    "litData",
    "SPDL pipeline",
    "stream, stain",
)
# Beside the timed seconds: worker processes that start, rounds that are let go.
_START_SECONDS = 4.0


def measure(options: Options, record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """Rows of images/s, CPU and GPU shares for each stored size and loader."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    topology = join_processes()
    record.content["peers"] = installed_peers()
    absent = [PEERS[module] for module, installed in installed_peers().items() if not installed]
    if absent:
        say(f"left out, not installed: {', '.join(absent)}")
    with tempfile.TemporaryDirectory(dir=options.work_folder) as scratch:
        rows = [row for name in LOADED for row in _rows(name, options, topology, Path(scratch) / name)]
        rows.sort(key=lambda row: _order(row.name.partition(": ")[2]))
        measure_rows(rows, record, deadline, say)


def _rows(stored: str, options: Options, topology: Topology, scratch: Path) -> list[Row]:
    dataset = Dataset.open(Path(options.data) / stored)
    ours = own_contenders(dataset, options.image_size, augmentations(), topology)
    rivals = peer_contenders(write_copies(dataset, scratch), options.image_size, topology.device)
    own = Setting(options.loader_batch, options.loader_workers)
    theirs = Setting(options.loader_batch, options.loader_workers, DECODERS[0])
    seconds = options.repeats * (options.seconds + _START_SECONDS)
    return [
        Row(f"{stored}: {contender.name}", partial(_measure, contender, setting, options), seconds)
        for contenders, setting in ((ours, own), (rivals, theirs))
        for contender in contenders
    ]


def _order(name: str) -> int:
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _measure(contender: Contender, setting: Setting, options: Options) -> dict[str, Any]:
    found = [time_loader(contender, setting, options.seconds) for _ in range(options.repeats)]
    cores = options.loader_workers
    shares = [run.gpu_share for run in found if run.gpu_share is not None]
    return {
        "images_per_second": summary([run.images_per_second for run in found], 1),
        "cpu_ms_per_image": summary([run.cpu_ms for run in found], 3),
        "cpu_share": summary([run.cpu_ms * run.images_per_second / 1000 / cores for run in found], 3),
        "gpu_share": summary(shares, 3) if shares else None,
        "setting": asdict(setting),
    }
