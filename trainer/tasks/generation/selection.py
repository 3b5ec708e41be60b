"""Scores of single generated images that balance.py chooses by; no held-out image has a part in them."""

from collections.abc import Mapping

import numpy as np
import torch

from trainer.metrics.copies import TURNS, thumbnails, turned
from trainer.metrics.feature_space import FeatureSpace
from trainer.metrics.generation import Floats, distances, extract_features
from trainer.tasks.generation.images import to_intensity
from trainer.tasks.generation.scores import TypeImages

# Of the training images' own distances to the nearest other one: a generated image below it counts as a copy.
_QUANTILE = 0.05
_BATCH = 64


def selection_scores(
    images: TypeImages, probability: Floats, features: Floats, training_distance: Floats, space: FeatureSpace
) -> Mapping[str, Floats]:
    """Scores [n] of the generated images of one type, by name; the highest are the ones to take.

    type_probability: the independent classifier's, of the wanted type. training_distance: to the nearest training image
    (metrics.copies.thumbnails). novelty: the same as a multiple of the distance to which 5 % of the training images
    come to their nearest other one; below 1 is a near copy. type_likeness: minus the distance to the mean of the
    training images in the feature space. features: of the generated images, there.
    """
    training = extract_features(space, map(to_intensity, images.train.split(_BATCH))).features
    apart = _distance_below_which_is_a_copy(images)
    return {
        "type_probability": probability,
        "training_distance": training_distance,
        "novelty": training_distance / apart if apart else np.ones(len(features)),
        "type_likeness": -distances(features, training.mean(axis=0, keepdims=True))[:, 0],
    }


def _distance_below_which_is_a_copy(images: TypeImages) -> float:
    """0 for a single training image, which has no other one."""
    if len(images.train) < 2:
        return 0.0
    small = torch.cat([thumbnails(to_intensity(some)) for some in images.train.split(_BATCH)])
    found = np.full(len(small), np.inf)
    for turn in range(TURNS):
        between = distances(small.flatten(1).numpy(), turned(small, turn).flatten(1).numpy())
        np.fill_diagonal(between, np.inf)
        found = np.minimum(found, between.min(axis=1))
    return float(np.quantile(found, _QUANTILE))
