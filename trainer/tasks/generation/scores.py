"""All scores of the generated images of one cell type, beside the same scores of held-out real images."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.randomness import derive_key
from trainer.metrics.copies import (
    TURNS,
    Memorization,
    Nearest,
    compare_distances,
    distances_to_nearest,
    nearest,
    nearest_images,
    thumbnails,
    turned,
)
from trainer.metrics.evaluation import ScoredCheckpoint
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace
from trainer.metrics.generation import (
    Floats,
    GenerationScores,
    ImageFeatures,
    ManifoldScores,
    compare,
    compare_manifolds,
    extract_features,
)
from trainer.metrics.perceptual import PerceptualDistance, keyed_pairs, pair_distances
from trainer.tasks.generation.images import Integers, to_intensity
from trainer.tasks.generation.records import BankScores, ImageCounts, Shortcut, Summary
from trainer.tasks.generation.sheets import Pairs

_BATCH = 64
SIDES = ("generated", "test")


@dataclass(frozen=True)
class ScoringSettings:
    """How a bank is scored."""

    neighbours: int = 5  # k of precision, recall, density, coverage
    quantile: float = 0.05  # of held-out images' distances; a generated image below it is suspiciously near
    pairs: int = 300  # most pairs that a mean perceptual distance is taken over
    shortcut_images: int = 500  # most real images, and most generated ones, per type for the shortcut detector
    seed: int = 0


@dataclass(frozen=True)
class Judge:
    """An independent classifier, trained on real images alone."""

    run: Path
    name: str  # of the model
    cell_types: tuple[str, ...]
    crop: Mapping[str, float]  # of its training images, by domain
    normalized_domain: str | None  # domain whose raw images were normalised before it learned from them; None: none
    dataset_hash: str  # of its training data
    checkpoint: ScoredCheckpoint
    features: ClassifierFeatures


@dataclass(frozen=True)
class Judges:
    """The networks that score images, on one device."""

    space: FeatureSpace  # for distances between image sets (FID, ...) and nearest training images
    classifier: Judge
    perceptual: PerceptualDistance


@dataclass(frozen=True)
class TypeImages:
    """The images of one type, uint8 [n, 3, S, S] on the CPU."""

    cell_type: str
    rows: Integers  # rows of the generated images in the bank
    generated: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor


@dataclass(frozen=True)
class TypeResult:
    """Scores of one type, and what the scores over all types are computed from."""

    scores: BankScores
    features: dict[str, ImageFeatures]  # side -> its features, for those of SIDES that have images
    probabilities: dict[str, Floats]  # side -> [n, types], from the independent classifier
    nearest_real: dict[str, dict[str, Floats]]  # side -> measure -> [n]
    distance: dict[str, Floats]  # pixels, features -> [n] of generated images to the nearest training image
    pairs: dict[str, Pairs]  # pixels, features -> the nearest pairs of generated and training image


def score_type(
    images: TypeImages, judges: Judges, settings: ScoringSettings, shortcut: Sequence[Shortcut]
) -> TypeResult:
    """All scores of one type. A score is missing or None if a side has no images: no FID without test images."""
    sets = {name: some for name, some in (("generated", images.generated), ("test", images.test)) if len(some)}
    features = {name: _features(judges.space, some) for name, some in sets.items()}
    answers = {name: _features(judges.classifier.features, some).probabilities for name, some in sets.items()}
    found = _nearest_training_images(images.train, sets, features, judges.space)
    nearest_real = {
        name: _distances_to_nearest(sets[name], nearest_images(images.train, each))
        for name, each in found["pixels"].items()
    }
    generation, manifold = compare_sets(judges.space, features, settings)
    scores = BankScores(
        ImageCounts(len(images.generated), len(images.train), len(images.test)),
        generation,
        manifold,
        _perceptual(judges.perceptual, images, settings),
        {name: {key: Summary.of(each) for key, each in values.items()} for name, values in nearest_real.items()},
        {space: _memorization(each, settings) for space, each in found.items()},
        list(shortcut),
    )
    pairs = {
        space: Pairs.nearest(images.cell_type, images.generated, images.train, each["generated"])
        for space, each in found.items()
    }
    distance = {space: each["generated"].distance for space, each in found.items()}
    return TypeResult(scores, features, answers, nearest_real, distance, pairs)


def score_all(
    results: Sequence[TypeResult], judges: Judges, settings: ScoringSettings, shortcut: Sequence[Shortcut]
) -> BankScores:
    """The scores over all types.

    Distances between sets use the same number of images of each type on both sides, so that the mixture of types is
    equal. Perceptual distances are means over the types.
    """
    parts = [each.scores for each in results]
    generation, manifold = compare_sets(judges.space, _matched(results), settings)
    nearest_real = {}
    for side in SIDES:
        tables = [each.nearest_real[side] for each in results if side in each.nearest_real]
        if tables:
            nearest_real[side] = {
                name: Summary.of(np.concatenate([table[name] for table in tables])) for name in tables[0]
            }
    counts = [(each.count.generated, each.count.train, each.count.test) for each in parts]
    return BankScores(
        ImageCounts(*(sum(column) for column in zip(*counts, strict=True))),
        generation,
        manifold,
        {name: _mean_of([each.perceptual[name] for each in parts]) for name in parts[0].perceptual},
        nearest_real,
        {
            space: Memorization.joined([found for each in parts if (found := each.memorization[space]) is not None])
            for space in parts[0].memorization
        },
        list(shortcut),
    )


def compare_sets(
    space: FeatureSpace, features: Mapping[str, ImageFeatures], settings: ScoringSettings
) -> tuple[GenerationScores | None, ManifoldScores | None]:
    """Compare generated with test images.

    None without two images on each side; no manifold scores without more than `neighbours` images on each side.
    """
    fewest = min(len(features[name].features) if name in features else 0 for name in SIDES)
    if fewest < 2:
        return None, None
    real, generated = features["test"], features["generated"]
    # Subsets of half the smaller set: whole sets would show no deviation, though they are the least certain ones.
    subset = max(2, min(1000, fewest // 2))
    manifold = None
    if settings.neighbours < fewest:
        manifold = compare_manifolds(real.features, generated.features, settings.neighbours)
    return compare(space, real, generated, settings.seed, kernel_subset=subset), manifold


def _features(space: FeatureSpace, images: torch.Tensor) -> ImageFeatures:
    return extract_features(space, map(to_intensity, images.split(_BATCH)))


def _nearest_training_images(
    train: torch.Tensor, sets: Mapping[str, torch.Tensor], features: Mapping[str, ImageFeatures], space: FeatureSpace
) -> dict[str, dict[str, Nearest]]:
    """Of each set the nearest training images, in "pixels" and in "features"."""
    small = {name: _points(_thumbnails(some)) for name, some in sets.items()}
    small_train = _thumbnails(train)
    return {
        "pixels": _nearest_of(small, (_points(turned(small_train, turn)) for turn in range(TURNS))),
        "features": _nearest_of(
            {name: each.features for name, each in features.items()},
            (_features(space, turned(train, turn)).features for turn in range(TURNS)),
        ),
    }


def _thumbnails(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([thumbnails(to_intensity(some)) for some in images.split(_BATCH)])


def _points(small: torch.Tensor) -> Floats:
    return np.asarray(small.flatten(1).numpy(), dtype=np.float64)


def _nearest_of(points: Mapping[str, Floats], references: Iterable[Floats]) -> dict[str, Nearest]:
    """`nearest` of several sets with one pass over the references, which cost most."""
    together = nearest(np.concatenate(list(points.values())), references)
    ends = np.cumsum([len(each) for each in points.values()])
    parts = {name: slice(end - len(points[name]), end) for name, end in zip(points, ends, strict=True)}
    return {
        name: Nearest(together.distance[part], together.row[part], together.turn[part]) for name, part in parts.items()
    }


def _distances_to_nearest(images: torch.Tensor, closest: torch.Tensor) -> dict[str, Floats]:
    parts = [
        distances_to_nearest(to_intensity(some), to_intensity(others))
        for some, others in zip(images.split(_BATCH), closest.split(_BATCH), strict=True)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _memorization(found: Mapping[str, Nearest], settings: ScoringSettings) -> Memorization | None:
    if "test" not in found:
        return None
    return compare_distances(found["generated"].distance, found["test"].distance, settings.quantile)


def _perceptual(distance: PerceptualDistance, images: TypeImages, settings: ScoringSettings) -> dict[str, Summary]:
    """Mean perceptual distance of pairs: generated to test image, and within each of the two (diversity)."""
    pools = {
        "generated_to_real": (images.generated, images.test),
        "within_generated": (images.generated, None),
        "within_real": (images.test, None),
    }
    found = {}
    for name, (some, others) in pools.items():
        key = derive_key(settings.seed, "perceptual pairs", images.cell_type, name)
        chosen = torch.from_numpy(keyed_pairs(key, settings.pairs, len(some), None if others is None else len(others)))
        pool = some if others is None else others
        distances = pair_distances(distance, to_intensity(some[chosen[:, 0]]), to_intensity(pool[chosen[:, 1]]))
        found[name] = Summary.of(distances)
    return found


def _mean_of(parts: Sequence[Summary]) -> Summary:
    """The mean over the types that have one, and the number of all pairs."""
    means = [each.mean for each in parts if each.mean is not None]
    count = sum(each.count for each in parts if each.mean is not None)
    return Summary(float(np.mean(means)) if means else None, None, count)


def _matched(results: Sequence[TypeResult]) -> dict[str, ImageFeatures]:
    """Features of all types that have both sides, as many of a type on either."""
    both = [each.features for each in results if all(side in each.features for side in SIDES)]
    fewest = [min(len(each[side].features) for side in SIDES) for each in both]
    return {
        side: ImageFeatures(
            np.concatenate([each[side].features[:count] for each, count in zip(both, fewest, strict=True)]),
            np.concatenate([each[side].probabilities[:count] for each, count in zip(both, fewest, strict=True)]),
        )
        for side in (SIDES if both else ())
    }
