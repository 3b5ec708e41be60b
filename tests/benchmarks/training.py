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
  profile_steps=10        of a separate pass, which waits for the device after each phase; 0 leaves it out
  games=w_cyclegan_gp,c_wgan_gp,few_shot_meta   whose phases are told too, on phantoms; empty: none
  game_settings=KEY=VALUE,...  laid over each of them
  phantoms_per_type=24    how many phantoms of each type and stain

timm's loop is train.py's, from timm's parts: its dataset, loader with prefetcher, optimiser, loss, loss scaler. It has
the same network, stored files, resizing, mirroring, precision and batch, and as many loader processes as there are
cores; channels last or not, whichever is faster for it. Ours reads the stream with mirroring (data/augment=flip);
"synthetic" is ours on a batch that lies on the device already, "stain" ours with stain augmentation.
"""

import functools
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_pipeline.build import build_dataset
from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.shards import ShardSettings
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream import Stream, Topology
from launchers.console import CONFIGS, launch, read_config
from models.classifiers.build import build_classifier
from tests.benchmarks import memory
from tests.benchmarks.loader import choose_images
from tests.benchmarks.own_training import LAPS, OnDevice, train_laps
from tests.benchmarks.peaks import utilization
from tests.benchmarks.phases import PhaseClock, told_apart
from tests.benchmarks.real_loops import some_steps
from tests.benchmarks.timing import paired_ratio, summary
from tests.benchmarks.timm_training import TimmLoop, write_folder
from trainer.classifier_config import ClassifierRunConfig
from trainer.configuration import typed
from trainer.machine import describe_machine
from trainer.orchestration.cost import multiply_accumulates
from trainer.topology import join_processes, resolve_precision

_CHOICES = ("channels_last", "compile", "checkpoint_activations")


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
    games: str = "w_cyclegan_gp,c_wgan_gp,few_shot_meta"
    game_settings: str = ""
    phantoms_per_type: int = 24


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
            if options.games:
                result["phases_of_games"] = game_phases(options, topology, Path(temporary))
    result["minutes"] = round((time.monotonic() - started) / 60, 1)
    return result


class _Bench:
    """One classifier on one data set, in our loop and in timm's."""

    def __init__(self, options: Options, topology: Topology, scratch: Path, progress: bool) -> None:
        self._options, self._topology, self._scratch, self._progress = options, topology, scratch, progress
        raw = choose_images(Path(options.images), options.count, scratch / "raw")
        # Speed does not care which type a class is, so any folder names will do.
        folders = sorted(raw.iterdir())
        labels = {folder.name: CELL_TYPES[number % len(CELL_TYPES)] for number, folder in enumerate(folders)}
        source = SourceDeclaration("folder", "images", raw, "benchmark", labels)
        workers = memory.useful_workers(options.count)
        settings = ShardSettings(stored_size=options.stored_size)
        build_dataset(scratch / "dataset", [source], settings=settings, workers=workers, progress=progress)
        self._dataset = Dataset.open(scratch / "dataset")
        self._variants = {name: self._config(name) for name in options.variants.split(",")}
        self._plain = self._config("plain")
        self._precision = resolve_precision(self._plain.train.precision, topology.device)
        self._number = 0

    def _config(self, variant: str, augment: str = "flip") -> ClassifierRunConfig:
        options = self._options
        overrides = [
            f"model={options.model}",
            f"data/augment={augment}",
            f"data.image_size={options.image_size}",
            f"train.global_batch={options.batch}",
            f"train.precision={options.precision}",
            *(options.settings.split(",") if options.settings else []),
        ]
        for choice in variant.split("+") if variant != "plain" else []:
            if choice not in _CHOICES:
                raise UserError(f"variants={choice}: use plain, {', '.join(_CHOICES)}, or some of them joined by +")
            overrides.append(f"train.{choice}=true")
        return read_config(ClassifierRunConfig, "train_classifier", overrides)

    def speeds(self) -> dict[str, Any]:
        """Images per second of every contender, in turns, and the ratios that matter."""
        options, batch = self._options, self._options.batch
        trial = self._ours(OnDevice, self._plain, 1)[0]
        lap_steps = max(1, math.ceil(options.seconds * trial / batch / LAPS))
        folder = write_folder(self._dataset, self._scratch / "folder", (1 + LAPS) * lap_steps * batch)
        layouts = [self._timm(folder, channels_last, max(1, lap_steps // 4)) for channels_last in (False, True)]
        fastest = layouts[1] > layouts[0]
        contenders: dict[str, Callable[[], tuple[float, float | None]]] = {
            "timm": lambda: (self._timm(folder, fastest, lap_steps), None),
            "synthetic": lambda: self._ours(OnDevice, self._plain, lap_steps),
            "stain": lambda: self._ours(Stream, self._config("plain", "stain"), lap_steps),
        }
        for name, config in self._variants.items():
            contenders[name] = lambda config=config: self._ours(Stream, config, lap_steps)  # type: ignore[misc]
        found: dict[str, list[tuple[float, float | None]]] = {name: [] for name in contenders}
        with tqdm(total=options.repeats * len(contenders), desc="training", disable=not self._progress) as bar:
            for repeat in range(options.repeats):
                # Every other round runs backwards, so that none always follows the same neighbour.
                for name in contenders if repeat % 2 == 0 else reversed(contenders):
                    bar.set_postfix_str(name)
                    found[name].append(contenders[name]())
                    bar.update()
        speeds = {name: [speed for speed, _ in runs] for name, runs in found.items()}
        first = next(iter(self._variants))
        ratios = {f"{name} / timm": paired_ratio(speeds[name], speeds["timm"]) for name in self._variants}
        ratios |= {f"{name} / {first}": paired_ratio(speeds[name], speeds[first]) for name in list(self._variants)[1:]}
        for name in ("synthetic", "stain"):
            ratios[f"{first} / {name}"] = paired_ratio(speeds[first], speeds[name])
        return {
            "model": options.model,
            "precision": self._precision,
            "steps_measured": LAPS * lap_steps,
            "timm_channels_last": fastest,
            "results": {
                name: {
                    "images_per_second": summary(speeds[name], 1),
                    "data_wait": None if runs[0][1] is None else summary([wait or 0.0 for _, wait in runs], 4),
                    **self._utilization(summary(speeds[name], 1)["median"]),
                }
                for name, runs in found.items()
            },
            "ratios": ratios,
        }

    def phases(self) -> dict[str, float]:
        """Shares of a step of the first variant."""
        clock = PhaseClock(self._topology.device)
        with told_apart(clock):
            self._ours(Stream, next(iter(self._variants.values())), max(1, self._options.profile_steps // LAPS))
            return clock.shares()

    def _ours(self, kind: type[Stream], config: ClassifierRunConfig, lap_steps: int) -> tuple[float, float]:
        self._number += 1
        run = self._scratch / "runs" / str(self._number)
        laps = train_laps(kind, self._dataset, config, self._topology, lap_steps, run)
        self._forget()
        return laps.images_per_second, laps.data_wait

    def _timm(self, folder: Path, channels_last: bool, lap_steps: int) -> float:
        workers = len(os.sched_getaffinity(0))
        loop = TimmLoop(self._plain, folder, self._topology.device, self._precision, workers, channels_last)
        speed = loop.images_per_second(self._network(), lap_steps)
        self._forget()
        return speed

    def _network(self) -> torch.nn.Module:
        types = self._dataset.samples(columns=["cell_type"])["cell_type"].nunique()
        torch.manual_seed(0)
        return build_classifier(self._plain.model, types, self._options.image_size)

    def _utilization(self, speed: float) -> dict[str, float | None]:
        return utilization(self._multiply_accumulates, speed, self._topology.device, self._precision)

    @functools.cached_property
    def _multiply_accumulates(self) -> int:
        """Of the forward pass of one image."""
        return multiply_accumulates(self._network(), self._options.image_size)

    def _forget(self) -> None:
        if self._topology.device.type == "cuda":
            torch.cuda.empty_cache()


def game_phases(options: Options, topology: Topology, scratch: Path) -> dict[str, Any]:
    """Shares of a step of games with several players, on phantoms."""
    dataset = memory.phantoms(scratch / "phantoms", options.phantoms_per_type, options.image_size)
    found = {}
    for name in options.games.split(","):
        launcher = memory.launcher_of(CONFIGS / "model" / f"{name}.yaml")
        overrides = memory.overrides_of(name, launcher, dataset, scratch / "games" / name)
        overrides += options.game_settings.split(",") if options.game_settings else []
        clock = PhaseClock(topology.device)
        with told_apart(clock):
            steps = some_steps(
                launcher,
                overrides,
                topology,
                warm_up=2,
                steps=max(1, options.profile_steps // 2),
                on_start=clock.restart,
            )
            found[name] = {"precision": steps.precision, "global_batch": steps.global_batch, "shares": clock.shares()}
    return found


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
    for name, found in result.get("phases_of_games", {}).items():
        lines.append(f"{name}: " + ", ".join(f"{phase} {share:.1%}" for phase, share in found["shares"].items()))
    return lines


if __name__ == "__main__":
    launch(main, __doc__)
