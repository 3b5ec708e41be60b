"""Generators of cells against each other, on the two public data sets; whether their images help: see synthetic.py.

usage:
  uv run python -m tests.benchmarks.generation barcelona=RAW munich=RAW work=DIR out=FILE.json
      [parts=conditional,few_shot] [images=64000] [rare_images=6000] [episodes=100] [passes=15] [size=32]
conditional: C-WGAN-GP and its five rivals learn from `images` of Barcelona's eight types; an independent classifier,
trained on real images, says what their images show.
few_shot: the meta-learned generator, the same network without meta-training, C-WGAN-GP and the other rivals learn
to make three rare types, from `rare_images` shown of each. What is shown once to each of the learners that move
counts once for each. Those that learn from the rich types before are shown equally many of their images, as many as
`episodes` of the meta-learned generator show.
Beside FILE.json goes a sheet of generated images of every model, for each part. Two trainings run
at a time, one thread each. Interrupted, the same command goes on.
"""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset
from tests.benchmarks.generation_runs import BATCH, FEW_SHOT, SHOTS, TYPES, WASSERSTEIN_STEPS, Benchmark
from trainer.experiments.machine import describe_machine
from trainer.reports.sheets import draw_sheet
from trainer.tasks.generation.images import to_intensity

RARE = ("monoblast", "promyelocyte", "smudge cell")
CONDITIONAL = ("c_wgan_gp", "cwgan_gp", "ac_gan", "cgan", "info_gan", "dcgan")
# DCGAN has a pair of networks for each of the eight types, whose batch norms need more than four images.
BATCHES = {"dcgan": 128}
SHEET = 3  # images of each type and model on a sheet


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    parts = arguments.get("parts", "conditional,few_shot").split(",")
    benchmark = Benchmark(
        work=Path(arguments["work"]),
        barcelona=arguments["barcelona"],
        munich=arguments["munich"],
        **{
            name: int(arguments.get(name, default))
            for name, default in (
                ("images", 64_000),
                ("rare_images", 6_000),
                ("episodes", 100),
                ("seeds", 3),
                ("passes", 15),
                ("size", 32),
            )
        },
    )
    dataset = benchmark.build("dataset")
    out = Path(arguments["out"])
    report = json.loads(out.read_text()) if out.exists() else {}
    with ThreadPoolExecutor(2) as pool:
        for name, part in (("conditional", conditional), ("few_shot", few_shot)):
            if name in parts:
                settings = {key: value for key, value in vars(benchmark).items() if isinstance(value, int)}
                report[name] = {"machine": describe_machine(), "settings": settings} | part(benchmark, dataset, pool)
                out.write_text(json.dumps(report, indent=1))
    if "conditional" in parts:
        draw(out.with_name(f"{out.stem}_conditional.png"), benchmark.work, CONDITIONAL, TYPES)
    if "few_shot" in parts:
        draw(
            out.with_name(f"{out.stem}_few_shot.png"),
            benchmark.work,
            [*map(_rare_run, FEW_SHOT), "rare-c_wgan_gp"],
            RARE,
        )


def conditional(benchmark: Benchmark, dataset: Dataset, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Six conditional generators of Barcelona's eight types."""
    data = benchmark.data(TYPES, "barcelona")
    judging = pool.submit(benchmark.train_classifier, dataset, "judge", data)
    training = {
        model: pool.submit(
            benchmark.train_conditional, model, dataset, model, data, benchmark.images, BATCHES.get(model, BATCH)
        )
        for model in CONDITIONAL
    }
    judge = judging.result()
    results = {}
    for model, run in training.items():
        record = benchmark.score(run.result(), dataset, judge, 100)
        results[model] = {**_agreement(record), **_kept(record["all"]), "minutes": record["minutes"]}
        print(f"{model:12s} of the type asked for {results[model]['agreement']['value']:.1%}", flush=True)
    return {"data": _facts(dataset, judge), "results": results}


def few_shot(benchmark: Benchmark, dataset: Dataset, pool: ThreadPoolExecutor) -> dict[str, Any]:
    """Seven generators of three types of which there are few images."""
    domains = ("barcelona", "munich")
    judging = pool.submit(
        benchmark.train_classifier,
        dataset,
        "judge-of-rare",
        benchmark.data(None, *domains),
        "data.sampling=class_balanced",
    )
    data = benchmark.data(None, *domains)
    training = {
        name: pool.submit(benchmark.train_few_shot, name, dataset, _rare_run(name), data, RARE) for name in FEW_SHOT
    }
    # Four moves of three learners, on images of each type in turn.
    images = len(RARE) * benchmark.rare_images * WASSERSTEIN_STEPS // (WASSERSTEIN_STEPS + 2)
    training["c_wgan_gp"] = pool.submit(
        benchmark.train_conditional,
        "c_wgan_gp",
        dataset,
        "rare-c_wgan_gp",
        benchmark.data(RARE, *domains),
        images,
        len(RARE) * SHOTS,
    )
    judge = judging.result()
    results = {}
    for name, run in training.items():
        record = benchmark.score(run.result(), dataset, judge, 100, RARE)
        results[name] = {
            **_agreement(record),
            "per_type": {cell_type: _kept(each) for cell_type, each in record["per_type"].items()},
            "minutes": record["minutes"],
        }
        print(f"{name:22s} of the type asked for {results[name]['agreement']['value']:.1%}", flush=True)
    return {"data": _facts(dataset, judge), "results": results}


def draw(path: Path, work: Path, runs: Sequence[str], types: Sequence[str]) -> None:
    """A sheet of the first images of each type (rows) that each run has made (columns). No image of it is real."""
    columns, titles = [], []
    for run in runs:
        bank = ImageBank.open(work / f"bank-{run}")
        first = np.stack([np.flatnonzero(bank.labels == bank.cell_types.index(name))[:SHEET] for name in types])
        columns += [to_intensity(torch.from_numpy(bank.images(rows)).permute(0, 3, 1, 2)) for rows in first.T]
        titles += [run.removeprefix("rare-"), *[""] * (SHEET - 1)]
    draw_sheet(path, titles, columns, types)


def _rare_run(name: str) -> str:
    return f"rare-{name.replace(' ', '-')}"


def _agreement(record: dict[str, Any]) -> dict[str, Any]:
    """How many images the independent classifier gives the type that was asked for, in all and of each type."""
    generated = record["type_agreement"]["generated"]
    return {
        "agreement": generated["overall"]["accuracy"],
        "f1": generated["overall"]["f1"],
        "agreement_of_types": {
            name: each["measures"]["sensitivity"]["value"] for name, each in generated["per_type"].items()
        },
    }


def _kept(scores: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scores.items() if name != "nearest_real"}


def _facts(dataset: Dataset, judge: Path) -> dict[str, Any]:
    scores = json.loads((judge / "evaluation/metrics.json").read_text())["scores"]
    return {
        "content_hash": dataset.content_hash,
        "judge": {name: scores["overall"][name] for name in ("accuracy", "balanced_accuracy")},
    }


if __name__ == "__main__":
    main()
