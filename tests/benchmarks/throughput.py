"""Loading throughput of one data set: our ceilings, our stream and the rivals, in turns."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.catalog import Dataset
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from tests.benchmarks.ours import own_contenders
from tests.benchmarks.peers import peer_contenders, write_copies
from tests.benchmarks.timing import Contender, Measurement, Setting, find_setting, measure, paired_ratio, summary
from trainer.tasks.classification.config import ClassifierRunConfig

# What the rivals do: no turns, no zooms.
_FLIP = AugmentConfig(rotation=0.0, scale=1.0, shift=0.0)
# Settings are chosen in shorter runs than they are measured in.
_TRIAL = 0.4


def augmentations() -> dict[str, AugmentConfig]:
    """What is measured: the rivals' work, and this project's augmentations as its configurations set them."""
    configured = {
        name: read_config(ClassifierRunConfig, "train_classifier", [f"data/augment={name}"]).data.augment
        for name in ("geometry", "stain")
    }
    return {"flip": _FLIP, **configured}


def loading_throughput(
    dataset: Dataset,
    image_size: int,
    topology: Topology,
    *,
    batches: list[int],
    workers: list[int],
    decoders: list[str],
    seconds: float,
    repeats: int,
    scratch: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Images per second of every contender, each with its best setting, and the ratios that matter.

    Ours share the setting that the stream was fastest with. All contenders run once in each repeat.
    """
    modes = augmentations()
    ours = own_contenders(dataset, image_size, modes, topology)
    rivals = peer_contenders(write_copies(dataset, scratch), image_size, topology.device)
    probe = next(contender for contender in ours if contender.name == "stream, flip")
    with tqdm(total=1 + len(rivals), desc="choosing settings", disable=not progress) as bar:
        setting, trials = find_setting(probe, batches, [n for n in workers if n > 0], ["dali"], _TRIAL * seconds)
        settings, tried = {contender.name: setting for contender in ours}, {"ours": trials}
        bar.update()
        for rival in rivals:
            settings[rival.name], tried[rival.name] = find_setting(rival, batches, workers, decoders, _TRIAL * seconds)
            bar.update()
    found = _in_turns([*ours, *rivals], settings, seconds, repeats, progress)
    speeds = {name: [run.images_per_second for run in runs] for name, runs in found.items()}
    best_peer = max((rival.name for rival in rivals), key=lambda name: summary(speeds[name], 1)["median"])
    ratios = {
        f"stream / memory, {mode}": paired_ratio(speeds[f"stream, {mode}"], speeds[f"memory, {mode}"]) for mode in modes
    }
    ratios["stream / best peer, flip"] = paired_ratio(speeds["stream, flip"], speeds[best_peer])
    cost = {name: [run.cpu_ms for run in found[name]] for name in (best_peer, "stream, flip")}
    ratios["best peer / stream, flip, processor time"] = paired_ratio(cost[best_peer], cost["stream, flip"])
    return {
        "image_size": image_size,
        "results": {
            name: {
                "setting": asdict(settings[name]),
                "images_per_second": summary(speeds[name], 1),
                "cpu_ms_per_image": summary([run.cpu_ms for run in runs], 3),
            }
            for name, runs in found.items()
        },
        "best_peer": best_peer,
        "ratios": ratios,
        "settings_tried": tried,
    }


def _in_turns(
    contenders: list[Contender], settings: dict[str, Setting], seconds: float, repeats: int, progress: bool
) -> dict[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    with tqdm(total=repeats * len(contenders), desc="loading", disable=not progress) as bar:
        for repeat in range(repeats):
            # Every other repeat runs backwards, so that none always follows the same neighbour.
            for contender in contenders if repeat % 2 == 0 else reversed(contenders):
                bar.set_postfix_str(contender.name)
                found[contender.name].append(measure(contender, settings[contender.name], seconds))
                bar.update()
    return found
