"""Stain normalisers against each other: on phantoms, where the truth is known, and on the two public data sets.

usage:
  uv run python -m tests.benchmarks.stain phantom work=DIR out=FILE.json [images=8000] [size=64]
  uv run python -m tests.benchmarks.stain real barcelona=RAW munich=RAW work=DIR out=FILE.json [images=8000] [size=64]
phantom: CycleGAN, W-CycleGAN-GP and its thesis preset learn from equal numbers of images; then held-out cells in the
violet stain are given the Giemsa look by each of them and by the classical normalisers, and compared with the same
cells in Giemsa.
real: a classifier learns from Barcelona alone; each normaliser, fitted on half of the folds of Munich, prepares the
other half for it, and the reverse, so that every Munich image is scored once. Two trainings run at a time, one thread
each. Interrupted, the same command goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from tests.benchmarks.launch import call
from tests.benchmarks.stain_runs import EPOCHS, MODELS, train, train_judge, train_on_restained
from trainer.experiments.machine import describe_machine
from trainer.loop.log import read_records
from trainer.metrics import image_distance
from trainer.metrics.classification import score
from trainer.metrics.generation import extract_features
from trainer.runs.feature_spaces import classifier_features
from trainer.runs.normalizers.bundle import StainNormalizer
from trainer.runs.normalizers.classical import CLASSICAL
from trainer.tasks.classification.inference.load import TrainedClassifier, load_classifier
from trainer.tasks.stain.load import load_stain_model
from trainer.tasks.stain.normalization import learned_normalizer

# Red cells are 0.204 of an image's side in Barcelona and 0.258 in Munich (medians of round ones, free of others).
SCALES: dict[str, dict[str, float]] = {"one scale": {"barcelona": 0.8}, "as they are": {}}
# Every Munich image is scored by normalisers that were fitted on the other half of the folds.
HALVES = ((0, 1), (2, 3, 4))


def main() -> None:
    mode, arguments = sys.argv[1], dict(argument.split("=", 1) for argument in sys.argv[2:])
    work = Path(arguments["work"])
    images, size = int(arguments.get("images", 8000)), int(arguments.get("size", 64))
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
        jobs = {
            name: pool.submit(train, name, dataset, work / name, "giemsa", "violet", images, size) for name in MODELS
        }
        runs = {name: job.result() for name, job in jobs.items()}
    learning = {domain: load(dataset, domain, size, splits=["train"])[1][:500] for domain in ("giemsa", "violet")}
    keys, violet = load(dataset, "violet", size, splits=["test"])
    true_keys, giemsa = load(dataset, "giemsa", size, splits=["test"])
    place = {key: number for number, key in enumerate(true_keys)}
    truth = giemsa[[place[key] for key in keys]]
    results = {"nothing": _against(violet, truth)}
    for name, kind in CLASSICAL.items():
        results[name] = _against(normalize(kind.fit(learning["giemsa"], learning["violet"]), violet), truth)
    for name, run in runs.items():
        normalizer = learned_normalizer(load_stain_model(run), "giemsa")
        results[name] = _against(normalize(normalizer, violet), truth) | facts(run)
    return {"results": results, "data": {"content_hash": dataset.content_hash, "count": len(violet)}}


def _against(images: torch.Tensor, truth: torch.Tensor) -> dict[str, float]:
    measures = {"ciede2000": image_distance.ciede2000, "ssim": image_distance.ssim, "psnr": image_distance.psnr}
    return {name: float(measure(images, truth).mean()) for name, measure in measures.items()}


def real_images(work: Path, barcelona: str, munich: str, images: int, size: int) -> dict[str, Any]:
    """Scores of classifiers of Barcelona's images on Munich's, prepared by each normaliser; structure and distances.

    At one scale, Barcelona's images are cut so that red cells, the same in everybody, are as large as Munich's.
    """
    call("build_shards", f"shards={work / 'dataset'}", f"barcelona={barcelona}", f"munich={munich}")
    dataset = Dataset.open(work / "dataset")
    results: dict[str, Any] = {}
    done, trained, turned = _trained(dataset, work, images, size)
    for scale, crop in SCALES.items():
        target = Target(dataset, size, crop, trained[scale, "quarter_turns"])
        for name in ("nothing", *CLASSICAL, *(model for model in MODELS if (scale, model, HALVES[0]) in done)):
            parts = []
            for half, other in (HALVES, HALVES[::-1]):
                fitted = load_rows(dataset, "munich", size, crop, folds=half)[1]
                rows, raw = load_rows(dataset, "munich", size, crop, folds=other)
                normalizer: StainNormalizer | None = None
                if name in CLASSICAL:
                    normalizer = CLASSICAL[name].fit(target.learning, fitted)
                elif name in MODELS:
                    normalizer = learned_normalizer(load_stain_model(done[scale, name, half]), "barcelona")
                parts.append((rows, raw, raw if normalizer is None else normalize(normalizer, raw)))
            rows = pd.concat([part[0] for part in parts])
            raw, made = (torch.cat([part[index] for part in parts]) for index in (1, 2))
            row = target.distances(rows, raw, made)
            for augment in EPOCHS:
                row |= judged(augment, [(trained[scale, augment], rows, made)])
            if name in MODELS:
                row |= facts(done[scale, name, HALVES[0]])
            results[f"{name}, {scale}"] = row
    answers = []
    for half, other in (HALVES, HALVES[::-1]):
        rows, raw = load_rows(dataset, "munich", size, SCALES["one scale"], folds=other)
        answers.append((turned[half], rows, raw))
    results["w_cyclegan_gp to_b, one scale"] = judged("stain", answers)
    return {"results": results, "data": {"content_hash": dataset.content_hash}}


def _trained(
    dataset: Dataset, work: Path, images: int, size: int
) -> tuple[dict[Any, Path], dict[Any, TrainedClassifier], dict[Any, TrainedClassifier]]:
    """Stain runs by scale, name and half; classifiers by scale and augmentation; those of restained images by half."""
    with ThreadPoolExecutor(2) as pool:
        judges = {
            (scale, augment): pool.submit(train_judge, dataset, work / f"judge-{augment}-{scale}", augment, size, crop)
            for scale, crop in SCALES.items()
            for augment in EPOCHS
        }
        runs = {
            (scale, name, half): pool.submit(
                train,
                name,
                dataset,
                work / f"{name}-{scale}-{half[0]}",
                "barcelona",
                "munich",
                images,
                size,
                half,
                crop,
            )
            for scale, crop in SCALES.items()
            for name in (MODELS if scale == "one scale" else ("cyclegan", "w_cyclegan_gp"))
            for half in HALVES
        }
        restained = {
            half: pool.submit(train_on_restained, dataset, work, runs["one scale", "w_cyclegan_gp", half], half, size)
            for half in HALVES
        }
        done = {job: run.result() for job, run in runs.items()}
        trained = {job: load_classifier(judge.result()) for job, judge in judges.items()}
        turned = {half: load_classifier(judge.result()) for half, judge in restained.items()}
    return done, trained, turned


class Target:
    """Barcelona's images, and how far others are from them."""

    def __init__(self, dataset: Dataset, size: int, crop: dict[str, float], judge: TrainedClassifier) -> None:
        """judge: without stain augmentation; distances are taken in its features."""
        self.learning = load_rows(dataset, "barcelona", size, crop, splits=["train"])[1][:500]
        rows, self.images = load_rows(dataset, "barcelona", size, crop, splits=["test"])
        self._space = classifier_features(judge)
        self._centres = self._centres_of(rows, self.images)
        self._colours = image_distance.colour_statistics(self.images)

    def distances(self, rows: pd.DataFrame, raw: torch.Tensor, made: torch.Tensor) -> dict[str, float]:
        """Structure kept, and the distances of the images from Barcelona's, in colours and in features.

        feature_distance: between the types' mean features, averaged over the types that both have: the domains'
        mixes of types differ too much for one distance over all.
        """
        centres = self._centres_of(rows, made)
        shared = sorted(centres.keys() & self._centres.keys())
        apart = [float(np.linalg.norm(centres[name] - self._centres[name])) for name in shared]
        colours = image_distance.colour_statistics(made)
        return {
            "structure": float(image_distance.density_structure(raw, made).mean()),
            "colour_distance": image_distance.statistics_distance(colours, self._colours),
            "feature_distance": float(np.mean(apart)),
        }

    def _centres_of(self, rows: pd.DataFrame, images: torch.Tensor) -> dict[str, Any]:
        features = extract_features(self._space, images.split(128)).features
        names = rows["cell_type"].to_numpy()
        return {name: features[names == name].mean(axis=0) for name in np.unique(names)}


def judged(name: str, parts: Sequence[tuple[TrainedClassifier, pd.DataFrame, torch.Tensor]]) -> dict[str, Any]:
    """Balanced accuracy and all scores of classifiers, each on its images, of the types that they know."""
    answers, labels, groups = [], [], []
    for judge, rows, images in parts:
        chosen = rows["cell_type"].isin(judge.cell_types).to_numpy(copy=True)
        with torch.no_grad():
            answers.append(torch.cat([judge.network(part).softmax(1) for part in images[chosen].split(128)]).numpy())
        labels.append(rows["cell_type"][chosen].map(judge.cell_types.index).to_numpy())
        groups += rows["group"][chosen].tolist()
    scores = score(np.concatenate(answers), np.concatenate(labels), groups, parts[0][0].cell_types)
    return {f"balanced, {name}": scores["balanced_accuracy"].value, f"scores, {name}": dataclasses.asdict(scores)}


def load_rows(
    dataset: Dataset, domain: str, size: int, crop: dict[str, float], **selection: Any
) -> tuple[pd.DataFrame, torch.Tensor]:
    """Rows and images float32 [n, 3, size, size] of a domain."""
    types = sorted(set(dataset.samples(domains=[domain], columns=["cell_type"])["cell_type"]) - {""})
    stream = Stream(
        dataset,
        StreamConfig(image_size=size, domains=[domain], crop=crop),
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
    rows, images = load_rows(dataset, domain, size, {}, **selection)
    return [str(path).partition("/")[2] for path in rows["path"]], images


def normalize(normalizer: StainNormalizer, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([normalizer(part) for part in images.split(64)])


def facts(run: Path) -> dict[str, float]:
    """What a training took."""
    epochs = [record for record in read_records(run) if record["kind"] == "epoch"]
    return {"minutes": sum(record["seconds"] for record in epochs) / 60, "steps": epochs[-1]["step"]}


if __name__ == "__main__":
    main()
