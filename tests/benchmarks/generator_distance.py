"""How near the images of conditional generators come to real test images, in one feature space.

usage:
  uv run python -m tests.benchmarks.generator_distance judge=RUN shards=DIR out=FILE.json NAME=RUN [NAME=RUN ...]
      [count=100] [truncation=1]
judge: a classifier of real images, cropped as the generators' are; distances are in its features (KID's formula, of
features of mean variance 1 among the real images), and it says how many images show the type asked for.
Each NAME=RUN draws `count` images of each of its types with its best checkpoint. The detector of generation traces has
as many real test images as generated ones, as both are read, before anything is stored.
Beside FILE.json goes a sheet of three images of each type and run. No image of it is real.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Stream
from trainer.loop.log import logged_seconds
from trainer.metrics.generation import extract_features, kernel_distance
from trainer.metrics.shortcut import detect_generated, traces
from trainer.reports.sheets import draw_sheet
from trainer.runs.feature_spaces import open_space
from trainer.runs.record import RunRecord
from trainer.tasks.generation.synthesis import load_sampler

_SHEET = 3  # images of each type and run
_BATCH = 64


def main() -> None:
    runs = dict(argument.split("=", 1) for argument in sys.argv[1:])
    judge, shards, out = (runs.pop(name) for name in ("judge", "shards", "out"))
    count, truncation = int(runs.pop("count", "100")), float(runs.pop("truncation", "1"))
    space, names = open_space(judge)
    dataset, config = Dataset.open(Path(shards)), RunRecord.read(Path(next(iter(runs.values()))), "conditional").config
    real: dict[str, torch.Tensor] = {}
    groups: list[str] = []
    cell_types = load_sampler(Path(next(iter(runs.values())))).cell_types
    for cell_type in cell_types:
        stream = Stream(
            dataset,
            dataclasses.replace(config.data, cell_types=None, sampling="uniform"),
            splits=["test"],
            cell_types=[cell_type],
            global_batch=_BATCH,
            training=False,
        )
        real[cell_type] = torch.cat([batch.images.clone() for batch in stream.read()])[:count]
        groups += stream.samples["group"].tolist()[:count]
    features = extract_features(space, real.values()).features
    mean, deviation = features.mean(axis=0), np.sqrt(features.var(axis=0).mean())
    columns: list[torch.Tensor] = []
    titles: list[str] = []
    results: dict[str, Any] = {}
    seen_traces = np.concatenate([traces(images) for images in real.values()])
    for name, run in runs.items():
        made, result = _draw(Path(run), {each: len(images) for each, images in real.items()}, truncation)
        found = extract_features(space, made.values())
        distance = kernel_distance(
            (features - mean) / deviation, (found.features - mean) / deviation, len(features) // 2
        )
        asked = np.repeat(np.array(cell_types), [len(images) for images in made.values()])
        detection = detect_generated(
            seen_traces, groups, np.concatenate([traces(images) for images in made.values()]), seed=0
        )
        results[name] = result | {
            "kernel distance": {"value": distance[0], "deviation": distance[1]},
            "of the type asked for": float((np.array(names)[found.probabilities.argmax(axis=1)] == asked).mean()),
            "detector": None if detection is None else dataclasses.asdict(detection),
        }
        print(f"{name:12s} {json.dumps(results[name])}", flush=True)
        columns += [torch.stack([made[each][number] for each in cell_types]) for number in range(_SHEET)]
        titles += [name, *[""] * (_SHEET - 1)]
    record = {"features": space.name, "truncation": truncation, "real": len(features), "results": results}
    Path(out).write_text(json.dumps(record, indent=1))
    draw_sheet(Path(out).with_suffix(".png"), titles, columns, cell_types)


@torch.no_grad()
def _draw(run: Path, counts: dict[str, int], truncation: float) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Images float32 [n, 3, S, S] of each type, rounded to 8 bits as a bank does, and what made them."""
    sampler = load_sampler(run)
    sampler.truncation = truncation
    made = {name: sampler.draw(name, 0, np.arange(count))[0] for name, count in counts.items()}
    rounded = {name: ((images + 1) * 127.5).round() / 127.5 - 1 for name, images in made.items()}
    return rounded, {"step": sampler.describe()["step"], "minutes": logged_seconds(run) / 60}


if __name__ == "__main__":
    main()
