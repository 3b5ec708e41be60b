"""Feature spaces that sets of images are compared in: a trained classifier's, FID's network, or a random network."""

from pathlib import Path
from typing import Any

from data_pipeline.learned_images import LearnedImages
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace, InceptionFeatures, RandomFeatures
from trainer.runs import registry
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.provenance import learned_by_run


def open_space(features: str | None) -> tuple[FeatureSpace, tuple[str, ...]]:
    """The space of `features`, and the types of its probabilities: None where it is no classifier of cells.

    features: null for a random network, inception, or a classifier's run.
    """
    if features is None:
        return RandomFeatures(), ()
    if features == "inception":
        return InceptionFeatures(), ()
    trained = registry.task("classification").load(Path(features))
    return classifier_features(trained), tuple(trained.cell_types)


def feature_space(features: str, config: EvaluateConfig) -> FeatureSpace:
    """The space of `features`: inception, or the directory of a classifier's run."""
    if features == "inception":
        return InceptionFeatures(config.inception_weights)
    return classifier_features(registry.task("classification").load(Path(features)))


def classifier_features(trained: Any) -> ClassifierFeatures:
    """Features of a trained classifier, named by its model and the first digits of its checkpoint's hash."""
    name = f"{trained.config.model.name} {trained.checkpoint.digest[:8]}"
    return ClassifierFeatures(trained.layers, name, trained.config.data.image_size)


def learned_by_features(features: str) -> LearnedImages:
    """Training images of a feature space; FID's network has seen no blood cells."""
    if features == "inception":
        return LearnedImages()
    return learned_by_run(Path(features)).of_role("trained").through(f"{features} (features=)")
