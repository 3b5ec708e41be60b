"""Scoring a bank of generated images against real ones (thesis tables 18-21), and whether they are copies."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import SeenChoice
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.learned_images import JUDGE_FOLDER, LearnedImages, SeenImages, learned_by_bank
from data_pipeline.lineage import lineage
from data_pipeline.stream.stream import Topology
from trainer.metrics.classification import score
from trainer.metrics.feature_space import ClassifierFeatures
from trainer.metrics.generation import ImageFeatures
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.classification.load import TrainedClassifier
from trainer.tasks.generation.images import ImageReader
from trainer.tasks.generation.scores import (
    GenerationEvaluation,
    Judges,
    Shortcuts,
    TypeImages,
    TypeScores,
    compare_sets,
    score_type,
    summaries,
)
from trainer.tasks.generation.sheets import draw_nearest, draw_samples

SPLIT = "test"  # of the real images that generated ones are compared with; copies are looked for in "train"


def evaluate_bank(
    bank: ImageBank,
    dataset: Dataset,
    judges: Judges,
    topology: Topology,
    how: GenerationEvaluation = GenerationEvaluation(),
    seen_images: SeenChoice = "refuse",
    space_learned: LearnedImages = LearnedImages(),
) -> Path:
    """Score each cell type of a bank and all together; returns the path of the JSON.

    BANK/evaluation/<data set>-<hash>-<features>-<classifier>.json and a folder of sheets
    beside it are written. Into the bank go "type_probability", the independent classifier's of the type asked for,
    and "training_distance", to the nearest training image of the type (metrics.nearest_image.thumbnails).
    seen_images: whether test images that the generator, the classifier or the feature space learned from are refused or
    left out. space_learned: the images that the feature space learned from.
    UserError for a classifier that has seen synthetic images, does not know a type of the bank or saw cells at another
    scale, for test images that were seen, and for a type without real training images.
    """
    reader, trained = ImageReader(bank, dataset, topology), judges.classifier
    check_classifier(trained, reader)
    judged = learned_by_run(trained.folder)
    learned = [judged.through("the classifier"), space_learned, learned_by_bank(bank.root).through("the generator")]
    seen = _seen(LearnedImages.joined(learned), reader, seen_images)
    say(seen, "test images")
    reader = dataclasses.replace(reader, left_out=tuple(seen.through))
    classifier = ClassifierFeatures.of(trained).to(topology.device)
    shortcuts = Shortcuts(reader, sorted({reader.config.image_size, classifier.image_size}), how)
    target = _target(bank.root, dataset, judges)
    scored: dict[str, TypeScores] = {}
    probability, distance = np.empty(len(bank), np.float32), np.empty(len(bank), np.float32)
    for images in _images_of_types(reader):
        found = score_type(images, judges, classifier, how)
        found.record["shortcut"] = shortcuts.of_type(images)
        probability[images.rows] = found.probabilities["generated"][:, trained.cell_types.index(images.cell_type)]
        distance[images.rows] = found.distance["pixels"]
        scored[images.cell_type] = found
        draw_samples(target.with_suffix(""), images.cell_type, images.test, images.generated)
    for space in ("pixels", "features"):
        draw_nearest(target.with_suffix("") / f"nearest-{space}.png", [each.pairs[space] for each in scored.values()])
    record = {
        **_provenance(reader, judges, how),
        "seen_images": seen.as_record(),
        "type_agreement": _type_agreement(scored, reader, trained, how.seed),
        "all": _over_all(scored, judges, how) | {"shortcut": shortcuts.over_all()},
        "per_type": {cell_type: each.record for cell_type, each in scored.items()},
    }
    judged.save(bank.root / JUDGE_FOLDER)
    bank.write_scores("type_probability", probability)
    bank.write_scores("training_distance", distance)
    return _write(target, record)


def check_classifier(trained: TrainedClassifier, reader: ImageReader) -> None:
    """UserError unless the classifier can be an independent judge of the bank's types."""
    bank, config = reader.bank, trained.config
    name = f"classifier {config.run}"
    unknown = [cell_type for cell_type in bank.cell_types if cell_type not in trained.cell_types]
    if unknown:
        raise UserError(f"{name}: knows no {', '.join(unknown)}, which the bank holds: give one that was trained on it")
    if synthetic := learned_by_run(trained.folder).synthetic:
        told = ", ".join(f"{count}{f' of {through}' if through else ''}" for through, count in synthetic.items())
        raise UserError(
            f"{name}: {told} of the images that it was trained on are synthetic: generated images are judged by a "
            "classifier of real images alone"
        )
    if trained.normalizer is not None and trained.normalizer.source == bank.domain:
        raise UserError(f"{name}: learned from normalised images of {bank.domain}: give one that learned from it as is")
    crops = [each.get(bank.domain, 1.0) for each in (config.data.crop, reader.config.crop)]
    if crops[0] != crops[1]:
        raise UserError(
            f"{name}: was trained with data.crop.{bank.domain}={crops[0]}, the bank's generator with {crops[1]}: their "
            "cells differ in scale; train it with the same crop"
        )


def _seen(learned: LearnedImages, reader: ImageReader, choice: SeenChoice) -> SeenImages:
    """Of the test images that generated ones are compared with, those that were seen. UserError where refused."""
    types = reader.bank.cell_types
    ids = [identity for cell_type in types for identity in reader.real_samples(SPLIT, cell_type)["id"]]
    return unseen(learned, reader.dataset, ids, choice, f"split {SPLIT}", "give another classifier= or shards=")


def _images_of_types(reader: ImageReader) -> Iterator[TypeImages]:
    for number, cell_type in enumerate(reader.bank.cell_types):
        rows = np.flatnonzero(reader.bank.labels == number)
        if len(rows) == 0:
            continue
        train = reader.read_real(reader.real_samples("train", cell_type))
        if len(train) == 0:
            raise UserError(
                f"{reader.dataset.root}: no real training image of {cell_type}, which the bank holds: give shards= the "
                "data set that its generator learned from"
            )
        test = reader.read_real(reader.real_samples(SPLIT, cell_type))
        yield TypeImages(cell_type, rows, reader.read_generated(rows), train, test)


def _type_agreement(
    scored: Mapping[str, TypeScores], reader: ImageReader, trained: TrainedClassifier, seed: int
) -> dict[str, Any]:
    """Table 18: how the independent classifier names generated images, and beside them the real test images.

    A generated image is a group of its own.
    """
    record: dict[str, Any] = {}
    for name in ("generated", "test"):
        parts = {
            cell_type: each.probabilities[name] for cell_type, each in scored.items() if name in each.probabilities
        }
        if not parts:
            record[name] = None
            continue
        labels = [np.full(len(part), trained.cell_types.index(cell_type)) for cell_type, part in parts.items()]
        groups = [""] * sum(map(len, parts.values()))
        if name == "test":
            groups = [group for cell_type in parts for group in reader.real_samples(SPLIT, cell_type)["group"]]
        answers = np.concatenate(list(parts.values()))
        record[name] = score(answers, np.concatenate(labels), groups, trained.cell_types, seed=seed)
    return record


def _over_all(scored: Mapping[str, TypeScores], judges: Judges, how: GenerationEvaluation) -> dict[str, Any]:
    """The scores over all types. Distances of sets: of as many images of a type on either side, so that the mix of
    types is the same; perceptual distances: the mean over the types.
    """
    sides = ("generated", "test")
    matched: dict[str, ImageFeatures] = {}
    both = [each.features for each in scored.values() if all(side in each.features for side in sides)]
    for side in sides if both else ():
        fewest = [min(len(each[name].features) for name in sides) for each in both]
        pieces = [
            (each[side].features[:count], each[side].probabilities[:count])
            for each, count in zip(both, fewest, strict=True)
        ]
        matched[side] = ImageFeatures(*(np.concatenate(part) for part in zip(*pieces, strict=True)))
    records = [each.record for each in scored.values()]
    nearest_real = {}
    for side in sides:
        tables = [each.nearest_real[side] for each in scored.values() if side in each.nearest_real]
        if tables:
            nearest_real[side] = summaries(
                {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
            )
    return {
        "count": {side: sum(record["count"][side] for record in records) for side in ("generated", "train", "test")},
        **compare_sets(judges.space, matched, how),
        "perceptual": {name: _mean_of(records, name) for name in records[0]["perceptual"]},
        "nearest_real": nearest_real,
        "memorization": {space: _suspicious(records, space) for space in ("pixels", "features")},
    }


def _mean_of(records: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """A perceptual distance, its mean over the types where there is one, and the number of all pairs."""
    known = [record["perceptual"][name] for record in records if record["perceptual"][name]["mean"] is not None]
    mean = float(np.mean([each["mean"] for each in known])) if known else None
    return {"mean": mean, "deviation": None, "count": sum(each["count"] for each in known)}


def _suspicious(records: list[dict[str, Any]], space: str) -> dict[str, Any] | None:
    """How many generated images, of those of types with test images, lie suspiciously near to training images."""
    judged = [record["memorization"][space] for record in records if record["memorization"][space] is not None]
    generated = sum(each["generated"] for each in judged)
    if not generated:
        return None
    near = sum(round(each["suspicious"] * each["generated"]) for each in judged)
    held_out = sum(each["held_out"] for each in judged)
    quantile = judged[0]["quantile"]
    return {"suspicious": near / generated, "quantile": quantile, "generated": generated, "held_out": held_out}


def _provenance(reader: ImageReader, judges: Judges, how: GenerationEvaluation) -> dict[str, Any]:
    """What the scores are of (contract C14)."""
    bank, dataset, trained = reader.bank, reader.dataset, judges.classifier
    family = lineage(dataset)
    domains = reader.config.domains or sorted(set(dataset.samples(columns=["domain"])["domain"]))
    return {
        "bank": {
            "path": str(bank.root.resolve()),
            "content_hash": bank.content_hash,
            "domain": bank.domain,
            "count": len(bank),
            "image_size": reader.config.image_size,
        },
        "generator": {
            **{name: bank.made_by.get(name) for name in ("name", "checkpoint", "dataset_hash", "seed")},
            "learned_from_this_data_set": bank.made_by.get("dataset_hash") in family,
        },
        "dataset": {
            "path": dataset.address,
            "content_hash": dataset.content_hash,
            "split": SPLIT,
            "domains": domains,
            "crop": reader.config.crop,
            "made_by": dataset.metadata["made_by"],
        },
        "classifier": {
            "run": str(trained.folder),
            "name": trained.config.model.name,
            "image_size": trained.config.data.image_size,
            "dataset_hash": trained.dataset_hash,
            "file": trained.checkpoint.path.name,
            "step": trained.checkpoint.step,
            "sha256": trained.checkpoint.digest,
        },
        "feature_space": judges.space.name,
        "perceptual_distance": judges.perceptual.name,
        "neighbours": how.neighbours,
        "quantile": how.quantile,
        "seed": how.seed,
    }


def _target(root: Path, dataset: Dataset, judges: Judges) -> Path:
    words = [
        f"{dataset.address.rpartition('/')[2]}-{dataset.content_hash[:12]}",
        judges.space.name,
        judges.classifier.checkpoint.digest[:8],
    ]
    return root / "evaluation" / ("-".join(re.sub(r"[^A-Za-z0-9.+_-]+", "_", word) for word in words) + ".json")


def _write(path: Path, record: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_through(path, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())
    return path
