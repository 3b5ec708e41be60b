"""Training speed: this project's loop against timm's, the share of the GPU's peak, and where a step's time goes.

usage: uv run python -m tests.benchmarks.training images=PATH out=FILE.json [key=value ...]
  images=PATH             a folder per class (PBC_dataset_normal_DIB, say)
  out=FILE.json           where the numbers are written
  model=senet154_ge image_size=224 batch=64 precision=auto
  settings=KEY=VALUE,...  more settings of ours, as train_classifier.py takes them
  variants=plain          ours, comma-separated: plain, channels_last, compile, checkpoint_activations, or some of
                          them joined by +
  count=1600 stored_size=256   images used, and the side in pixels that they are stored at
  repeats=3 seconds=10    rounds through all contenders, in turns, and how long each is timed in a round
  profile_steps=10        of a separate pass, whose phases are timed; 0 leaves it out

timm's loop is train.py's, from timm's parts: its dataset, loader with prefetcher, optimiser, loss, loss scaler. It has
the same network, stored files, resizing, mirroring, precision and batch, and as many loader processes as there are
cores; channels last or not, whichever is faster for it. Ours reads the stream with mirroring (data/augment=flip);
"synthetic" is ours on a batch that lies on the device already, "stain" ours with stain augmentation.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources.declaration import SourceDeclaration
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import launch
from tests.benchmarks import memory
from tests.benchmarks.classifier_speed import Classifier, ClassifierSpeed
from tests.benchmarks.loader import choose_images
from tests.benchmarks.own_training import LAPS, Laps, OnDevice
from tests.benchmarks.phases import PhaseClock, told_apart
from tests.benchmarks.timing import paired_ratio, summary
from trainer.experiments.machine import describe_machine
from trainer.learners.topology import join_processes
from trainer.runs.configuration import typed


@dataclass(frozen=True)
class Options:
    """The command line; see the usage above."""

    images: str = ""
    out: str = ""
    model: str = "senet154_ge"
    image_size: int = 224
    batch: int = 64
    precision: str = "auto"
    settings: str = ""
    variants: str = "plain"
    count: int = 1600
    stored_size: int = 256
    repeats: int = 3
    seconds: float = 10.0
    profile_steps: int = 10


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
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
    started = time.monotonic()
    topology = join_processes()
    result: dict[str, Any] = {
        "options": asdict(options) | {"images": Path(options.images).name, "out": Path(options.out).name},
        "machine": describe_machine(),
    }
    with tempfile.TemporaryDirectory(prefix="training-benchmark-") as temporary:
        bench = _Bench(options, topology, Path(temporary), progress)
        result |= bench.speeds()
        if options.profile_steps:
            result["phases"] = bench.phases()
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    return result


class _Bench:
    """One classifier on one data set, in our loop and in timm's."""

    def __init__(self, options: Options, topology: Topology, scratch: Path, progress: bool) -> None:
        self._options, self._topology, self._progress = options, topology, progress
        raw = choose_images(Path(options.images), options.count, scratch / "raw")
        # Speed does not care which type a class is, so any folder names will do.
        folders = sorted(raw.iterdir())
        labels = {folder.name: CELL_TYPES[number % len(CELL_TYPES)] for number, folder in enumerate(folders)}
        source = SourceDeclaration("folder", "images", raw, "benchmark", labels)
        workers = memory.useful_workers(options.count)
        settings = ShardSettings(stored_size=options.stored_size)
        build_dataset(scratch / "dataset", [source], settings=settings, workers=workers, progress=progress)
        more = tuple(options.settings.split(",")) if options.settings else ()
        classifier = Classifier(options.model, options.image_size, options.batch, options.precision, more)
        self._speed = ClassifierSpeed(classifier, Dataset.open(scratch / "dataset"), topology, scratch)
        self._variants = {name: self._speed.config(name) for name in options.variants.split(",")}

    def speeds(self) -> dict[str, Any]:
        """Images per second of every contender, in turns, and the ratios that matter."""
        options, speed = self._options, self._speed
        lap_steps = speed.lap_steps(options.seconds)
        layouts = [speed.timm(channels_last, max(1, lap_steps // 4)) for channels_last in (False, True)]
        fastest = layouts[1].images_per_second > layouts[0].images_per_second
        contenders: dict[str, Callable[[], Laps]] = {
            "timm": lambda: speed.timm(fastest, lap_steps),
            "synthetic": lambda: speed.ours(OnDevice, speed.plain, lap_steps),
            "stain": lambda: speed.ours(Stream, speed.config("plain", "stain"), lap_steps),
        }
        for name, config in self._variants.items():
            contenders[name] = lambda config=config: speed.ours(Stream, config, lap_steps)  # type: ignore[misc]
        found: dict[str, list[Laps]] = {name: [] for name in contenders}
        with tqdm(total=options.repeats * len(contenders), desc="training", disable=not self._progress) as bar:
            for repeat in range(options.repeats):
                # Every other round runs backwards, so that none always follows the same neighbour.
                for name in contenders if repeat % 2 == 0 else reversed(contenders):
                    bar.set_postfix_str(name)
                    found[name].append(contenders[name]())
                    bar.update()
        speeds = {name: [laps.images_per_second for laps in runs] for name, runs in found.items()}
        cost = {name: [laps.cpu_ms for laps in runs] for name, runs in found.items()}
        first = next(iter(self._variants))
        ratios = {f"{name} / timm": paired_ratio(speeds[name], speeds["timm"]) for name in self._variants}
        ratios |= {
            f"timm / {name}, processor time of an image": paired_ratio(cost["timm"], cost[name])
            for name in self._variants
        }
        ratios |= {f"{name} / {first}": paired_ratio(speeds[name], speeds[first]) for name in list(self._variants)[1:]}
        for name in ("synthetic", "stain"):
            ratios[f"{first} / {name}"] = paired_ratio(speeds[first], speeds[name])
        return {
            "model": options.model,
            "precision": speed.precision,
            "steps_measured": LAPS * lap_steps,
            "timm_channels_last": fastest,
            "results": {
                name: {
                    "images_per_second": summary(speeds[name], 1),
                    "cpu_ms_per_image": summary(cost[name], 2),
                    "data_wait": None
                    if runs[0].data_wait is None
                    else summary([laps.data_wait or 0.0 for laps in runs], 4),
                    **speed.utilization(summary(speeds[name], 1)["median"]),
                }
                for name, runs in found.items()
            },
            "ratios": ratios,
        }

    def phases(self) -> dict[str, float]:
        """Shares of a step of the first variant."""
        clock = PhaseClock(self._topology.device)
        with told_apart(clock):
            steps = max(1, self._options.profile_steps // LAPS)
            self._speed.ours(Stream, next(iter(self._variants.values())), steps)
            return clock.shares()


def table(result: dict[str, Any]) -> list[str]:
    """The numbers for a person: medians, the ratios with their spread."""
    lines = ["", f"{result['model']}, {result['precision']}: images/s, wait for data, share of the peak"]
    for name, found in result["results"].items():
        speed, wait = found["images_per_second"], found["data_wait"]
        share = found["model_flops_utilization"]
        told = "".join(f"{part:>8.1%}" if part is not None else " " * 8 for part in (wait and wait["median"], share))
        lines.append(f"  {name:30}{speed['median']:9.0f}   {speed['low']:.0f}-{speed['high']:.0f}{told}")
    for name, ratio in result["ratios"].items():
        lines.append(f"  {name:30}{ratio['median']:9.3f}   {ratio['low']:.3f}-{ratio['high']:.3f}")
    for name, shares in {"phases": result.get("phases", {})}.items():
        lines.append(f"{name}: " + ", ".join(f"{phase} {share:.1%}" for phase, share in shares.items()))
    return lines


if __name__ == "__main__":
    launch(main, __doc__)
