"""Scoring a bank of generated images on real images."""

from pathlib import Path
from typing import Any

import torch

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.metrics.evaluation import ScoredCheckpoint
from trainer.metrics.perceptual import perceptual_distance
from trainer.runs import registry
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.feature_spaces import classifier_features, learned_by_features, open_space
from trainer.tasks.generation.evaluation import evaluate_bank
from trainer.tasks.generation.report import write_generation_report
from trainer.tasks.generation.scores import Judge, Judges


def as_judge(trained: Any, device: torch.device = torch.device("cpu")) -> Judge:
    """A trained classifier as the independent judge of a bank."""
    return Judge(
        run=trained.folder,
        name=trained.config.model.name,
        cell_types=trained.cell_types,
        crop=trained.config.data.crop,
        normalized_domain=None if trained.normalizer is None else trained.normalizer.source,
        dataset_hash=trained.dataset_hash,
        checkpoint=ScoredCheckpoint.of(trained.checkpoint),
        features=classifier_features(trained).to(device),
    )


def score_bank(root: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Score a bank against the test images of its types; writes the record and the report."""
    if topology.world_size > 1:
        raise UserError("a bank is scored by one process: start evaluate.py with python")
    bank, dataset, name = ImageBank.open(root), config.open_dataset(), str(config.classifier)
    judge = as_judge(registry.task("classification").load(Path(name)), topology.device)
    space = judge.features if config.features is None else open_space(config.features, config.inception_weights)[0]
    judges = Judges(
        space.to(topology.device),
        judge,
        perceptual_distance(config.lpips_weights, judge.features).to(topology.device),
    )
    path = evaluate_bank(
        bank,
        dataset,
        judges,
        topology,
        seen_images=config.seen_images,
        space_learned=learned_by_features(config.features or name),
    )
    print(f"{path.resolve()}\n{write_generation_report(root).resolve()}")
