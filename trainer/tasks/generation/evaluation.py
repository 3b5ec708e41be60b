"""Scoring a bank of generated images against real ones (thesis tables 18-21), and whether they are copies."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import SeenChoice
from data_pipeline.errors import UserError
from data_pipeline.learned_images import JUDGE_FOLDER, LearnedImages, SeenImages, learned_by_bank
from data_pipeline.lineage import lineage
from data_pipeline.stream.stream import Topology
from trainer.metrics.classification import Scores, score
from trainer.metrics.evaluation import ScoredCheckpoint, ScoredData, SeenRecord
from trainer.metrics.records import to_json, write_json
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.generation.images import ImageReader
from trainer.tasks.generation.records import BankData, BankEvaluation, Generator, JudgeRecord
from trainer.tasks.generation.scores import (
    Judge,
    Judges,
    ScoringSettings,
    TypeImages,
    TypeResult,
    score_all,
    score_type,
)
from trainer.tasks.generation.selection import selection_scores
from trainer.tasks.generation.sheets import draw_nearest, draw_samples
from trainer.tasks.generation.shortcuts import Shortcuts

SPLIT = "test"  # of the real images that generated ones are compared with; copies are looked for in "train"


def evaluate_bank(
    bank: ImageBank,
    dataset: Dataset,
    judges: Judges,
    topology: Topology,
    settings: ScoringSettings = ScoringSettings(),
    seen_images: SeenChoice = "refuse",
    space_learned: LearnedImages = LearnedImages(),
) -> Path:
    """Score each cell type of a bank and all together; returns the path of the JSON.

    Writes BANK/evaluation/<data set>-<hash>-<features>-<classifier>.json and a folder of sheets beside it, and
    `selection_scores` into the bank.
    seen_images: whether test images that the generator, the classifier or the feature space learned from are refused or
    left out. space_learned: the images that the feature space learned from.
    UserError for a classifier that learned from synthetic images, does not know a type of the bank or saw cells at
    another scale, for test images that were seen, and for a type without real training images.
    """
    reader, judge = ImageReader(bank, dataset, topology), judges.classifier
    check_classifier(judge, reader)
    judged = learned_by_run(judge.run)
    learned = [judged.through("the classifier"), space_learned, learned_by_bank(bank.root).through("the generator")]
    seen = _seen(LearnedImages.joined(learned), reader, seen_images)
    say(seen, "test images")
    reader = dataclasses.replace(reader, left_out=tuple(seen.through))
    shortcuts = Shortcuts(reader, sorted({reader.config.image_size, judge.features.image_size}), settings)
    target = _target(bank.root, dataset, judges)
    results: dict[str, TypeResult] = {}
    scores: defaultdict[str, npt.NDArray[np.float32]] = defaultdict(lambda: np.empty(len(bank), np.float32))
    for images in _images_of_types(reader):
        result = score_type(images, judges, settings, shortcuts.of_type(images))
        probability = result.probabilities["generated"][:, judge.cell_types.index(images.cell_type)]
        features = result.features["generated"].features
        found = selection_scores(images, probability, features, result.distance["pixels"], judges.space)
        for name, values in found.items():
            scores[name][images.rows] = values
        results[images.cell_type] = result
        draw_samples(target.with_suffix(""), images.cell_type, images.test, images.generated)
    for space in ("pixels", "features"):
        draw_nearest(target.with_suffix("") / f"nearest-{space}.png", [each.pairs[space] for each in results.values()])
    record = _record(reader, judges, settings, seen, results, shortcuts)
    judged.save(bank.root / JUDGE_FOLDER)
    for name, each in scores.items():
        bank.write_scores(name, each)
    write_json(target, to_json(record))
    return target


def check_classifier(judge: Judge, reader: ImageReader) -> None:
    """UserError unless the classifier can be an independent judge of the bank's types."""
    bank, name = reader.bank, f"classifier {judge.run}"
    unknown = [cell_type for cell_type in bank.cell_types if cell_type not in judge.cell_types]
    if unknown:
        raise UserError(f"{name}: knows no {', '.join(unknown)}, which the bank holds: give one that was trained on it")
    if synthetic := learned_by_run(judge.run).synthetic:
        counts = ", ".join(f"{count}{f' of {through}' if through else ''}" for through, count in synthetic.items())
        raise UserError(
            f"{name}: {counts} of the images that it was trained on are synthetic: generated images are judged by a "
            "classifier of real images alone"
        )
    if judge.normalized_domain == bank.domain:
        raise UserError(f"{name}: learned from normalised images of {bank.domain}: give one that learned from it as is")
    crops = [each.get(bank.domain, 1.0) for each in (judge.crop, reader.config.crop)]
    if crops[0] != crops[1]:
        raise UserError(
            f"{name}: was trained with data.crop.{bank.domain}={crops[0]}, the bank's generator with {crops[1]}: their "
            "cells differ in scale; train it with the same crop"
        )


def _seen(learned: LearnedImages, reader: ImageReader, choice: SeenChoice) -> SeenImages:
    """The test images to compare with that were seen. UserError where refused."""
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
    name: str, results: Mapping[str, TypeResult], reader: ImageReader, judge: Judge, seed: int
) -> Scores | None:
    """Table 18: answers of the independent classifier to "generated" or to real "test" images.

    A generated image is a group of its own.
    """
    parts = {cell_type: each.probabilities[name] for cell_type, each in results.items() if name in each.probabilities}
    if not parts:
        return None
    labels = [np.full(len(part), judge.cell_types.index(cell_type)) for cell_type, part in parts.items()]
    groups = [""] * sum(map(len, parts.values()))
    if name == "test":
        groups = [group for cell_type in parts for group in reader.real_samples(SPLIT, cell_type)["group"]]
    return score(np.concatenate(list(parts.values())), np.concatenate(labels), groups, judge.cell_types, seed=seed)


def _record(
    reader: ImageReader,
    judges: Judges,
    settings: ScoringSettings,
    seen: SeenImages,
    results: Mapping[str, TypeResult],
    shortcuts: Shortcuts,
) -> BankEvaluation:
    bank, dataset, judge = reader.bank, reader.dataset, judges.classifier
    made_by, scores = bank.made_by, score_all(list(results.values()), judges, settings, shortcuts.over_all())
    domains = reader.config.domains or sorted(set(dataset.samples(columns=["domain"])["domain"]))
    return BankEvaluation(
        dataset=ScoredData(dataset.address, dataset.content_hash, SPLIT, domains, scores.count.test),
        checkpoint=ScoredCheckpoint(None, None, str(made_by.get("checkpoint"))),
        normalizer=None,
        seen_images=SeenRecord.of(seen),
        bank=BankData(str(bank.root.resolve()), bank.content_hash, bank.domain, len(bank), reader.config.image_size),
        generator=Generator(
            made_by.get("name"),
            made_by.get("dataset_hash"),
            made_by.get("seed"),
            made_by.get("dataset_hash") in lineage(dataset),
        ),
        classifier=JudgeRecord(
            str(judge.run), judge.name, judge.features.image_size, judge.dataset_hash, judge.checkpoint
        ),
        crop=dict(reader.config.crop),
        made_by=dataset.metadata["made_by"],
        feature_space=judges.space.name,
        perceptual_distance=judges.perceptual.name,
        neighbours=settings.neighbours,
        quantile=settings.quantile,
        seed=settings.seed,
        type_agreement={
            name: _type_agreement(name, results, reader, judge, settings.seed) for name in ("generated", "test")
        },
        all=scores,
        per_type={cell_type: each.scores for cell_type, each in results.items()},
    )


def _target(root: Path, dataset: Dataset, judges: Judges) -> Path:
    words = [
        f"{dataset.address.rpartition('/')[2]}-{dataset.content_hash[:12]}",
        judges.space.name,
        judges.classifier.checkpoint.sha256[:8],
    ]
    return root / "evaluation" / ("-".join(re.sub(r"[^A-Za-z0-9.+_-]+", "_", word) for word in words) + ".json")
