"""How fast images reach the network: this project's stream, its own ceilings, and other loaders.

usage: build/peers/bin/python tests/benchmarks/loader.py images=PATH out=FILE.json [key=value ...]
  (the environment with the other loaders, which tests/benchmarks/README.md tells how to make; those that are not
  installed are left out, and the result says so)
  images=PATH             a folder per class (PBC_dataset_normal_DIB, say)
  out=FILE.json           where the numbers are written
  measure=all             or loading, or training, alone
  count=1600              images used, evenly from all classes
  image_size=224          pixels of the square that is loaded, from images stored at their original size ...
  stored_size=256         ... and from images stored at this size
  training_size=96        pixels of the square that the small model is trained with, at original size ...
  training_stored_size=96 ... and stored at this size
  training_model=senet_small_ge training_batch=64
  largest_batch=256       batch sizes tried are this, a half, a quarter and an eighth of it
  tune=true               false for a quick look: half the largest batch, a worker per core, nothing tried
  repeats=3 seconds=1.5   rounds through all contenders, and how long each is timed in a round
  training_repeats=5 training_seconds=20   the same for training

The rivals do the same work on the same stored bytes: decode, antialiased resize, random horizontal flip,
normalise, shuffled. Each runs at its fastest of decoder (Pillow, torchvision, simplejpeg), worker processes
or threads (0, 1, half the cores, all, one more) and batch size; ours at its fastest of threads and batch size.
"""

import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_pipeline.errors import UserError
from data_pipeline.sources.declaration import IMAGE_SUFFIXES
from launchers.console import launch
from trainer.runs.configuration import typed


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    images: str = ""
    out: str = ""
    measure: Literal["all", "loading", "training"] = "all"
    count: int = 1600
    image_size: int = 224
    stored_size: int = 256
    training_size: int = 96
    training_stored_size: int = 96
    training_batch: int = 64
    training_model: str = "senet_small_ge"
    largest_batch: int = 256
    tune: bool = True
    repeats: int = 3
    seconds: float = 1.5
    training_repeats: int = 5
    training_seconds: float = 20.0


def main(arguments: Sequence[str]) -> None:
    pairs = [argument.partition("=") for argument in arguments]
    for name, sign, _ in pairs:
        if not sign:
            raise UserError(f"{name}: arguments are written key=value")
    options = typed(Options, {name: value for name, _, value in pairs}, "arguments")
    if not options.images or not options.out:
        raise UserError("give images=PATH (a folder per class) and out=FILE.json")
    result = run(options)
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print("\n".join(table(result)))
    print(out.resolve())


def run(options: Options, progress: bool = True) -> dict[str, Any]:
    """All measurements, as they go into the JSON."""
    # Worker processes that write the data sets import this file: what they do not need waits until here.
    from tests.benchmarks.own_training import training_throughput
    from tests.benchmarks.peers import DECODERS, installed_peers
    from tests.benchmarks.throughput import loading_throughput
    from trainer.experiments.machine import describe_machine
    from trainer.learners.topology import join_processes

    # One more worker than cores is among the settings tried, on purpose.
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    started = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    topology = join_processes()
    tried: dict[str, Any] = {
        "workers": sorted({0, 1, max(1, cores // 2), cores, cores + 1}) if options.tune else [cores],
        "batches": [options.largest_batch // part for part in ((8, 4, 2, 1) if options.tune else (2,))],
        "decoders": list(DECODERS if options.tune else DECODERS[:1]),
    }
    facts = {"machine": describe_machine(), "peers": {"torch ImageFolder": True, **installed_peers()}, "tried": tried}
    result: dict[str, Any] = {"options": _named(options), **facts, "loading": {}, "training": {}}
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as temporary:
        scratch = Path(temporary)
        raw = choose_images(Path(options.images), options.count, scratch / "raw")
        for stored_size in (None, options.stored_size) if options.measure != "training" else ():
            name = _storage_name(stored_size)
            dataset = _build(raw, scratch / name / "dataset", stored_size, cores, progress)
            samples = dataset.samples()
            result["loading"][name] = {
                "images": len(samples),
                "stored_bytes_per_image": round(float(samples["size"].mean())),
                **loading_throughput(
                    dataset,
                    options.image_size,
                    topology,
                    **tried,
                    seconds=options.seconds,
                    repeats=options.repeats,
                    scratch=scratch / name,
                    progress=progress,
                ),
            }
        for stored_size in (None, options.training_stored_size) if options.measure != "loading" else ():
            name = _storage_name(stored_size)
            dataset = _build(raw, scratch / name / "dataset", stored_size, cores, progress)
            result["training"][name] = training_throughput(
                dataset,
                _overrides(options),
                topology,
                seconds=options.training_seconds,
                repeats=options.training_repeats,
                scratch=scratch / name / "runs",
                progress=progress,
            )
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    return result


def _named(options: Options) -> dict[str, Any]:
    """The options. Results are committed: what they were measured on counts, not where it lay."""
    return asdict(options) | {"images": Path(options.images).name, "out": Path(options.out).name}


def _overrides(options: Options) -> list[str]:
    return [
        f"model={options.training_model}",
        f"data.image_size={options.training_size}",
        f"train.global_batch={options.training_batch}",
    ]


def choose_images(root: Path, count: int, target: Path) -> Path:
    """Copy `count` images, evenly from all class folders, so that all rivals read from the same disk."""
    classes: dict[str, list[Path]] = {}
    for path in sorted(root.glob("*/*")) if root.is_dir() else []:
        if path.suffix.lower() in IMAGE_SUFFIXES:
            classes.setdefault(path.parent.name, []).append(path)
    if not classes:
        raise UserError(f"{root}: no folder with images there: give images=PATH, a folder per class")
    share = max(1, count // len(classes))
    for name, paths in classes.items():
        (target / name).mkdir(parents=True)
        for path in paths[:: max(1, len(paths) // share)][:share]:
            shutil.copyfile(path, target / name / path.name)
    return target


def _build(raw: Path, root: Path, stored_size: int | None, workers: int, progress: bool) -> Any:
    from data_pipeline.catalog import Dataset
    from data_pipeline.cell_types import CELL_TYPES
    from data_pipeline.ingest.build import build_dataset
    from data_pipeline.shards.writer import ShardSettings
    from data_pipeline.sources import SourceDeclaration

    # Loading does not care which type a class is, so any folder names will do.
    labels = {folder.name: CELL_TYPES[number % len(CELL_TYPES)] for number, folder in enumerate(sorted(raw.iterdir()))}
    if not (root / "catalog.parquet").exists():
        source = SourceDeclaration("folder", "images", raw, "benchmark", labels)
        build_dataset(
            root, [source], settings=ShardSettings(stored_size=stored_size), workers=workers, progress=progress
        )
    return Dataset.open(root)


def _storage_name(stored_size: int | None) -> str:
    return "original size" if stored_size is None else f"stored_size={stored_size}"


def table(result: dict[str, Any]) -> list[str]:
    """The numbers for a person: medians, the ratios with their spread."""
    lines: list[str] = []
    for name, part in result["loading"].items():
        lines += ["", f"loading, {name}, {part['image_size']} px: images/s (batch, workers, decoder)"]
        for contender, found in part["results"].items():
            chosen = ", ".join(str(value) for value in found["setting"].values())
            lines.append(f"{_speed_line(contender, found['images_per_second'])}   ({chosen})")
        lines += _ratio_lines(part["ratios"])
    for name, part in result["training"].items():
        lines += ["", f"training {part['model']}, {name}, {part['image_size']} px: images/s"]
        lines += [_speed_line(kind, speed) for kind, speed in part["images_per_second"].items()]
        lines += _ratio_lines(part["ratios"])
    return [*lines, ""]


def _speed_line(name: str, speed: dict[str, Any]) -> str:
    return f"  {name:30}{speed['median']:9.0f}   {speed['low']:.0f}-{speed['high']:.0f}"


def _ratio_lines(ratios: dict[str, Any]) -> list[str]:
    return [
        f"  {name:30}{ratio['median']:9.3f}   {ratio['low']:.3f}-{ratio['high']:.3f}" for name, ratio in ratios.items()
    ]


if __name__ == "__main__":
    launch(main, __doc__)
