"""Feature spaces that sets of images are compared in: a trained classifier's, FID's network, or a random network."""

from pathlib import Path
from typing import Any

from data_pipeline.learned_images import LearnedImages
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace, InceptionFeatures, RandomFeatures
from trainer.runs import registry
from trainer.runs.provenance import learned_by_run


def open_space(features: str | None, inception_weights: str | None = None) -> tuple[FeatureSpace, tuple[str, ...]]:
    """The space of `features`, and the cell types of its probabilities: none where it is no classifier of cells.

    features: null for a random network, inception, or the directory of a classifier's run.
    """
    if features is None:
        return RandomFeatures(), ()
    if features == "inception":
        return InceptionFeatures(inception_weights), ()
    trained = registry.task("classification").load(Path(features))
    return classifier_features(trained), tuple(trained.cell_types)


def classifier_features(trained: Any) -> ClassifierFeatures:
    """Features of a trained classifier, named by its model and the first digits of its checkpoint's hash."""
    name = f"{trained.config.model.name} {trained.checkpoint.digest[:8]}"
    return ClassifierFeatures(trained.layers, name, trained.config.data.image_size)


def learned_by_features(features: str | None) -> LearnedImages:
    """Training images of a feature space; FID's network has seen no blood cells, a random one no image."""
    if features in (None, "inception"):
        return LearnedImages()
    return learned_by_run(Path(str(features))).of_role("trained").through(f"{features} (features=)")
