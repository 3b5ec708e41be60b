"""Stain normalisers against each other: on phantoms, where the truth is known, and on the two public data sets.

usage:
  uv run python -m tests.benchmarks.stain phantom work=DIR out=FILE.json [images=24000] [size=64]
  uv run python -m tests.benchmarks.stain real barcelona=RAW munich=RAW work=DIR out=FILE.json [images=20000] [size=64]
phantom: CycleGAN, W-CycleGAN-GP and its thesis preset learn from equal numbers of images; then held-out cells in the
violet stain are given the Giemsa look by each of them and by the classical normalisers, and compared with the same
cells in Giemsa.
real: a classifier learns from Barcelona alone; each normaliser, fitted on half of the folds of Munich, prepares the
other half for it, and the reverse, so that every Munich image is scored once. Two trainings run at a time, one thread
each. Interrupted, the same command goes on.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data_pipeline.build import build_dataset
from data_pipeline.catalog import Dataset
from data_pipeline.sources import SourceDeclaration
from data_pipeline.sources.phantom import render_phantoms
from data_pipeline.stream import Stream, StreamConfig
from tests.benchmarks.machine import describe_machine
from trainer.metrics import image_distance
from trainer.metrics.classification import score
from trainer.normalizers.base import StainNormalizer
from trainer.normalizers.classical import CLASSICAL
from trainer.normalizers.learned import LearnedNormalizer
from trainer.progress import read_records
from trainer.stain_run import load_stain_model

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8
# Networks small enough for a CPU, alike in cost; each model keeps the weights and rates of its own configuration.
MODELS = {
    "cyclegan": ("model.generator.width=24", "model.generator.blocks=3", "model.critic.width=32"),
    "w_cyclegan_gp": ("model.generator.width=24", "model.generator.depth=4", "model.critic.width=32"),
    "w_cyclegan_gp_thesis": ("model.generator.width=24", "model.generator.depth=4", "model.critic.width=32"),
}
CRITIC_STEPS = {"cyclegan": 1, "w_cyclegan_gp": 2, "w_cyclegan_gp_thesis": 5}
# Every Munich image is scored by normalisers that were fitted on the other half of the folds.
HALVES = ((0, 1), (2, 3, 4))


def main() -> None:
    mode, arguments = sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:])
    work = Path(arguments["work"])
    images, size = int(arguments.get("images", 24000)), int(arguments.get("size", 64))
    result = {"machine": describe_machine(), "settings": {"mode": mode, "images": images, "size": size}}
    if mode == "phantom":
        result |= phantoms(work, images, size)
    else:
        result |= real_images(work, arguments["barcelona"], arguments["munich"], images, size)
    Path(arguments["out"]).write_text(json.dumps(result, indent=1))
    for name, row in result["results"].items():
        print(f"{name:32s} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items() if np.isscalar(value)))


def phantoms(work: Path, images: int, size: int) -> dict[str, Any]:
    """CIEDE2000, SSIM and PSNR of held-out violet cells against themselves in Giemsa."""
    table = render_phantoms(work / "raw", 60, slides=40, size=size, workers=2)
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    build_dataset(work / "dataset", [source])
    dataset = Dataset.open(work / "dataset")
    with ThreadPoolExecutor(2) as pool:
        runs = dict(
            zip(
                MODELS,
                pool.map(lambda name: train(name, dataset, work / name, "giemsa", "violet", images, size), MODELS),
                strict=True,
            )
        )
    learning = {domain: load(dataset, domain, size, splits=["train"])[1][:500] for domain in ("giemsa", "violet")}
    keys, violet = load(dataset, "violet", size, splits=["test"])
    true_keys, giemsa = load(dataset, "giemsa", size, splits=["test"])
    place = {key: number for number, key in enumerate(true_keys)}
    truth = giemsa[[place[key] for key in keys]]
    results = {"nothing": _against(violet, truth)}
    for name, kind in CLASSICAL.items():
        results[name] = _against(normalize(kind.fit(learning["giemsa"], learning["violet"]), violet), truth)
    for name, run in runs.items():
        normalizer = LearnedNormalizer.of_run(load_stain_model(run), "giemsa")
        results[name] = _against(normalize(normalizer, violet), truth) | facts(run)
    return {"results": results, "data": {"content_hash": dataset.content_hash, "count": len(violet)}}


def _against(images: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    measures = {"ciede2000": image_distance.ciede2000, "ssim": image_distance.ssim, "psnr": image_distance.psnr}
    return {name: float(measure(images, truth).mean()) for name, measure in measures.items()}


def real_images(work: Path, barcelona: str, munich: str, images: int, size: int) -> dict[str, Any]:
    """Scores of a classifier of Barcelona's images on Munich's, prepared by each normaliser; structure and colours."""
    call("build_shards", f"shards={work / 'dataset'}", f"barcelona={barcelona}", f"munich={munich}")
    dataset = Dataset.open(work / "dataset")
    jobs = [(name, half) for half in HALVES for name in MODELS]
    with ThreadPoolExecutor(2) as pool:
        classifiers = [pool.submit(train_judge, dataset, work, augment, size) for augment in ("quarter_turns", "stain")]
        runs = {
            (name, half): pool.submit(
                train, name, dataset, work / f"{name}-{half[0]}", "barcelona", "munich", images, size, half
            )
            for name, half in jobs
        }
        judges = {augment: judge.result() for augment, judge in zip(("plain", "stain"), classifiers, strict=True)}
        done = {job: run.result() for job, run in runs.items()}
    from trainer.classifier_training import load_classifier

    learning = load(dataset, "barcelona", size, splits=["train"])[1][:500]
    held_out = load(dataset, "barcelona", size, splits=["test"])[1]
    target_colours = image_distance.colour_statistics(held_out)
    results: dict[str, Any] = {}
    for name in ("nothing", *CLASSICAL, *MODELS):
        parts = []
        for half, other in ((HALVES[0], HALVES[1]), (HALVES[1], HALVES[0])):
            _, fitted = load(dataset, "munich", size, folds=half)
            rows, raw = load_rows(dataset, "munich", size, folds=other)
            normalizer: StainNormalizer | None = None
            if name in CLASSICAL:
                normalizer = CLASSICAL[name].fit(learning, fitted)
            elif name in MODELS:
                normalizer = LearnedNormalizer.of_run(load_stain_model(done[name, half]), "barcelona")
            parts.append((rows, raw, raw if normalizer is None else normalize(normalizer, raw)))
        rows = pd.concat([part[0] for part in parts])
        raw, made = (torch.cat([part[index] for part in parts]) for index in (1, 2))
        row: dict[str, Any] = {
            "structure": float(image_distance.density_structure(raw, made).mean()),
            "colour_distance": image_distance.statistics_distance(
                image_distance.colour_statistics(made), target_colours
            ),
        }
        for judge_name, judge in judges.items():
            trained = load_classifier(judge)
            chosen = rows["cell_type"].isin(trained.cell_types).to_numpy()
            labels = rows["cell_type"][chosen].map(trained.cell_types.index).to_numpy()
            with torch.no_grad():
                answers = torch.cat([trained.network(part).softmax(1) for part in made[chosen].split(128)]).numpy()
            scores = score(answers, labels, rows["group"][chosen].tolist(), trained.cell_types)
            row[f"balanced, {judge_name}"] = scores["balanced_accuracy"]["value"]
            row[f"scores, {judge_name}"] = scores
        if name in MODELS:
            row |= facts(done[name, HALVES[0]])
        results[name] = row
    return {"results": results, "data": {"content_hash": dataset.content_hash}}


def train(
    model: str,
    dataset: Dataset,
    run: Path,
    a: str,
    b: str,
    images: int,
    size: int,
    folds: Iterable[int] | None = None,
) -> Path:
    """Train a stain run until it has seen `images` of each domain."""
    steps = images // (BATCH * CRITIC_STEPS[model])
    arguments = [
        f"shards={dataset.root}",
        f"run={run}",
        f"model={model}",
        f"a={a}",
        f"b={b}",
        f"data.image_size={size}",
        "data.threads=1",
        f"train.global_batch={BATCH}",
        "train.epochs=5",
        f"train.iterations_per_epoch={max(1, steps // 5)}",
        "model.critic.layers=2",
        f"model.critic_steps={CRITIC_STEPS[model]}",
        "model.generator_optimizer.average_decay=0.99",
        *MODELS[model],
    ]
    if folds is not None:
        arguments.append(f"folds={{{b}: [{','.join(map(str, folds))}]}}")
    call("train_stain_gan", *arguments)
    return run


def train_judge(dataset: Dataset, work: Path, augment: str, size: int) -> Path:
    """A classifier of Barcelona's images, with or without stain augmentation."""
    run = work / f"judge-{augment}"
    call(
        "train_classifier",
        f"shards={dataset.root}",
        f"run={run}",
        "model=senet_small_ge",
        "data.domains=[barcelona]",
        f"data.image_size={size}",
        "data.threads=1",
        f"data/augment={augment}",
        "train.global_batch=32",
        "train.epochs=12",
        "optimizer.learning_rate=0.002",
        "optimizer.average_decay=0.99",
    )
    return run


def load_rows(dataset: Dataset, domain: str, size: int, **selection: Any) -> tuple[pd.DataFrame, torch.Tensor]:
    """Rows and images float32 [n, 3, size, size] of a domain."""
    types = sorted(set(dataset.samples(domains=[domain], columns=["cell_type"])["cell_type"]) - {""})
    stream = Stream(
        dataset,
        dataclasses.replace(StreamConfig(image_size=size), domains=[domain]),
        **{"splits": None, **selection},
        cell_types=types,
        global_batch=64,
        training=False,
    )
    parts = [(part.rows, part.images.clone()) for part in stream.read()]
    rows = np.concatenate([part[0] for part in parts])
    return stream.samples.iloc[rows].reset_index(drop=True), torch.cat([part[1] for part in parts])


def load(dataset: Dataset, domain: str, size: int, **selection: Any) -> tuple[list[str], torch.Tensor]:
    """As load_rows, with each image's path below the folder of its domain."""
    rows, images = load_rows(dataset, domain, size, **selection)
    return [str(path).partition("/")[2] for path in rows["path"]], images


def normalize(normalizer: StainNormalizer, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([normalizer(part) for part in images.split(64)])


def facts(run: Path) -> dict[str, float]:
    """What a training took."""
    epochs = [record for record in read_records(run) if record["kind"] == "epoch"]
    return {"minutes": sum(record["seconds"] for record in epochs) / 60, "steps": epochs[-1]["step"]}


def call(launcher: str, *arguments: str) -> None:
    """Run a launcher on one thread; its output goes to a log beside its run."""
    named = dict(argument.split("=", 1) for argument in arguments)
    log = Path(named.get("run", named["shards"])).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *arguments]
    with log.open("w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{launcher}.py failed; see {log}")


if __name__ == "__main__":
    main()
