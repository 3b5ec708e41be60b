"""How fast images come from a store's shards in a warm cache, beside the same shards on the disk.

usage: uv run python -m tests.benchmarks.remote out=FILE.json [key=value ...]
  out=FILE.json           where the numbers are written
  images=PATH             a folder per class (PBC_dataset_normal_DIB, say); default: phantoms of 360 px
  count=1600              images used, evenly from all classes
  image_size=224 batch=128 threads=0   pixels of the square that is loaded, images of a batch, DALI's (0: a core each)
  rounds=9 seconds=3      the two take turns so many times, each for so long

Both are read in the same order (windowed), with the augmentation of a training, by a new stream in each round, which
checks every image's checksum anew. On a machine that does other things too, processor time tells more than the clock.
The store is an S3 server on loopback; from a warm cache it is asked for nothing
but the catalogue and the sizes of its shards.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.cache import ShardCache
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import launch
from tests.benchmarks.loader import choose_images
from tests.benchmarks.timing import OUR_PREFETCH, Contender, Setting, measure, paired_ratio, summary
from tests.s3_server import ServerProcess
from trainer.experiments.machine import describe_machine
from trainer.learners.topology import join_processes
from trainer.runs.configuration import typed

_PHANTOM_SIDE = 360


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    out: str = ""
    images: str = ""
    count: int = 1600
    image_size: int = 224
    batch: int = 128
    threads: int = 0
    rounds: int = 9
    seconds: float = 3.0


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments if "=" in argument), "arguments")
    if not options.out:
        raise UserError("give out=FILE.json")
    result = run(options)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    for measure_name, digits in (("images_per_second", 0), ("cpu_ms_per_image", 2)):
        for name, found in result[measure_name].items():
            words = [f"{found[key]:.{digits}f}" for key in ("median", "low", "high")]
            print(f"{measure_name:20}{name:12}{words[0]:>8}   {words[1]}-{words[2]}")
        ratio = result["warm cache / disk"][measure_name]
        print(f"{'':20}{'ratio':12}{ratio['median']:>8.3f}   {ratio['low']:.3f}-{ratio['high']:.3f}")
    print(out.resolve())


def run(options: Options, progress: bool = True) -> dict[str, Any]:
    """All measurements, as they go into the JSON."""
    cores = len(os.sched_getaffinity(0))
    setting = Setting(options.batch, options.threads or cores)
    topology = join_processes()
    with tempfile.TemporaryDirectory(prefix="remote-benchmark-") as temporary:
        folder = Path(temporary)
        disk = _build(options, folder, cores, progress)
        server = ServerProcess(disk.root)
        os.environ.update(server.environment)
        try:
            stored = Dataset.open(server.url, ShardCache(folder / "cache"))
            for name in stored.metadata["shards"]:
                stored.shard_path(name)
            contenders = [
                Contender(name, _opener(dataset, options.image_size, topology))
                for name, dataset in (("disk", disk), ("warm cache", stored))
            ]
            speeds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
            costs: dict[str, list[float]] = {contender.name: [] for contender in contenders}
            for number in range(options.rounds):
                # Who comes second in a round is not always the same.
                for contender in contenders if number % 2 else contenders[::-1]:
                    found = measure(contender, setting, options.seconds)
                    speeds[contender.name].append(found.images_per_second)
                    costs[contender.name].append(found.cpu_ms)
        finally:
            server.kill()
    return {
        "options": asdict(options) | {"images": Path(options.images).name, "out": Path(options.out).name},
        "machine": describe_machine(),
        "images": len(disk.samples()),
        "shards": len(disk.metadata["shards"]),
        "images_per_second": {name: summary(values, 1) for name, values in speeds.items()},
        "cpu_ms_per_image": {name: summary(values, 3) for name, values in costs.items()},
        "warm cache / disk": {
            "images_per_second": paired_ratio(speeds["warm cache"], speeds["disk"]),
            "cpu_ms_per_image": paired_ratio(costs["warm cache"], costs["disk"]),
        },
    }


def _opener(dataset: Dataset, image_size: int, topology: Topology) -> Any:
    def open_it(setting: Setting) -> Iterator[int]:
        stream = Stream(
            dataset,
            StreamConfig(
                image_size=image_size, order="windowed", window=512, threads=setting.workers, prefetch=OUR_PREFETCH
            ),
            splits=SPLITS,
            cell_types=sorted(set(dataset.samples(columns=["cell_type"])["cell_type"])),
            global_batch=setting.batch,
            training=True,
            topology=topology,
        )
        return (len(batch.images) for batch in stream.read())

    return open_it


def _build(options: Options, folder: Path, workers: int, progress: bool) -> Dataset:
    if options.images:
        raw = choose_images(Path(options.images), options.count, folder / "raw")
        names = sorted(path.name for path in raw.iterdir())
        labels = {name: CELL_TYPES[number % len(CELL_TYPES)] for number, name in enumerate(names)}
        source = SourceDeclaration("folder", "images", raw, "benchmark", labels)
    else:
        table = render_phantoms(
            folder / "raw",
            options.count // 12,
            slides=20,
            size=_PHANTOM_SIDE,
            workers=workers,
            paired=False,
            progress=progress,
        )
        source = SourceDeclaration("table", "phantom", table, "phantom")
    build_dataset(
        folder / "data", [source], settings=ShardSettings(max_samples=128), workers=workers, progress=progress
    )
    return Dataset.open(folder / "data")


if __name__ == "__main__":
    launch(main, __doc__)
