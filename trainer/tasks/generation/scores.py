"""All scores of the generated images of one cell type, beside the same scores of held-out real images."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data_pipeline.randomness import derive_key, permute
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace
from trainer.metrics.generation import Floats, ImageFeatures, compare, extract_features, kernel_distance
from trainer.metrics.manifold import compare_manifolds
from trainer.metrics.memorization import compare_distances
from trainer.metrics.nearest_image import (
    TURNS,
    Nearest,
    distances_to_nearest,
    nearest,
    nearest_images,
    thumbnails,
    turned,
)
from trainer.metrics.perceptual import PerceptualDistance, keyed_pairs, pair_distances
from trainer.metrics.shortcut import detect_generated, traces
from trainer.tasks.classification.load import TrainedClassifier
from trainer.tasks.generation.images import ImageReader, Integers, to_intensity
from trainer.tasks.generation.sheets import Pairs

_BATCH = 64


@dataclass(frozen=True)
class GenerationEvaluation:
    """How a bank is scored.

    neighbours: k of precision, recall, density, coverage. quantile: of held-out images' distances to the training
    images, below which a generated image is suspiciously near. pairs: most pairs that a mean perceptual distance
    is of. shortcut_images: most of each type and kind that the detector of generated images learns from.
    """

    neighbours: int = 5
    quantile: float = 0.05
    pairs: int = 300
    shortcut_images: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Judges:
    """The networks that images are judged by, on one device.

    space: what distances of sets are taken in. classifier: the independent one, trained on real images alone.
    """

    space: FeatureSpace
    classifier: TrainedClassifier
    perceptual: PerceptualDistance


@dataclass(frozen=True)
class TypeImages:
    """The images of one type, uint8 [n, 3, S, S] on the CPU, and the generated ones' rows in the bank."""

    cell_type: str
    rows: Integers
    generated: torch.Tensor
    train: torch.Tensor
    test: torch.Tensor


@dataclass(frozen=True)
class TypeScores:
    """The record of one type, and what the scores over all are computed from.

    features, probabilities (the independent classifier's, float64 [n, types]) and nearest_real (values by measure,
    float64 [n] each): of "generated" and "test". distance, row: of the generated images to the nearest training image
    in either space. pairs: the nearest of them.
    """

    record: dict[str, Any]
    features: dict[str, ImageFeatures]
    probabilities: dict[str, Floats]
    nearest_real: dict[str, dict[str, Floats]]
    distance: dict[str, Floats]
    pairs: dict[str, Pairs]


def score_type(
    images: TypeImages, judges: Judges, classifier: ClassifierFeatures, how: GenerationEvaluation
) -> TypeScores:
    """All scores of one type but the shortcut's. Of a side without an image there is none: no test image, no FID."""
    sets = {name: some for name, some in (("generated", images.generated), ("test", images.test)) if len(some)}
    features = {name: _features(judges.space, some) for name, some in sets.items()}
    answers = {name: _features(classifier, some) for name, some in sets.items()}
    found = _nearest_training_images(images.train, sets, features, judges.space)
    nearest_real = {
        name: _distances_to_nearest(sets[name], nearest_images(images.train, each))
        for name, each in found["pixels"].items()
    }
    record = {
        "count": {name: len(getattr(images, name)) for name in ("generated", "train", "test")},
        **compare_sets(judges.space, features, how),
        "perceptual": _perceptual(judges.perceptual, images, how),
        "nearest_real": {name: summaries(values) for name, values in nearest_real.items()},
        "memorization": {space: _memorization(each, how) for space, each in found.items()},
    }
    return TypeScores(
        record,
        features,
        {name: each.probabilities for name, each in answers.items()},
        nearest_real,
        {space: each["generated"].distance for space, each in found.items()},
        {
            space: Pairs.nearest(images.cell_type, images.generated, images.train, each["generated"])
            for space, each in found.items()
        },
    )


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
    """`nearest` of several sets with one walk over the references, which cost most."""
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


def _memorization(found: Mapping[str, Nearest], how: GenerationEvaluation) -> dict[str, Any] | None:
    if "test" not in found:
        return None
    return compare_distances(found["generated"].distance, found["test"].distance, how.quantile).as_record()


def compare_sets(
    space: FeatureSpace, features: Mapping[str, ImageFeatures], how: GenerationEvaluation
) -> dict[str, Any]:
    """ "generation" (Fréchet and kernel distance) and "manifold" of "generated" against "test" images.

    None where there are too few: two on either side for the one, more than `neighbours` for the other.
    """
    record: dict[str, Any] = {"generation": None, "manifold": None}
    fewest = min((len(features[name].features) if name in features else 0) for name in ("test", "generated"))
    if fewest < 2:
        return record
    real, generated = features["test"], features["generated"]
    # Subsets of half the smaller set: whole sets would show no deviation, though they are the least certain ones.
    subset = max(2, min(1000, fewest // 2))
    kernel, deviation = kernel_distance(real.features, generated.features, subset, seed=how.seed)
    scores = dataclasses.replace(compare(space, real, generated, how.seed), kernel=kernel, kernel_deviation=deviation)
    record["generation"] = scores.as_record() | {"kernel_subset": subset}
    if how.neighbours < fewest:
        manifold = compare_manifolds(real.features, generated.features, how.neighbours)
        record["manifold"] = dataclasses.asdict(manifold)
    return record


def _perceptual(distance: PerceptualDistance, images: TypeImages, how: GenerationEvaluation) -> dict[str, Any]:
    """Mean perceptual distance of pairs: generated to test image, and within each of the two (diversity)."""
    pools = {
        "generated_to_real": (images.generated, images.test),
        "within_generated": (images.generated, None),
        "within_real": (images.test, None),
    }
    record = {}
    for name, (some, others) in pools.items():
        key = derive_key(how.seed, "perceptual pairs", images.cell_type, name)
        chosen = torch.from_numpy(keyed_pairs(key, how.pairs, len(some), None if others is None else len(others)))
        pool = some if others is None else others
        record[name] = summary(
            pair_distances(distance, to_intensity(some[chosen[:, 0]]), to_intensity(pool[chosen[:, 1]]))
        )
    return record


def summaries(values: Mapping[str, Floats]) -> dict[str, Any]:
    """`summary` of each of several measures."""
    return {name: summary(each) for name, each in values.items()}


def summary(values: Floats) -> dict[str, float | int | None]:
    """Mean and standard deviation of the finite values (equal images have no finite PSNR), and how many there are."""
    finite = values[np.isfinite(values)]
    return {
        "mean": float(finite.mean()) if len(finite) else None,
        "deviation": float(finite.std(ddof=1)) if len(finite) > 1 else None,
        "count": len(values),
    }


class Shortcuts:
    """How well real training images and generated ones are told apart, in each type and over all, at several sizes.

    As many real images as generated ones of each type, so that types mix alike over all. "as_stored": generated ones
    as the data set would store them, which is what a classifier sees that learns from both. "same_way": the real ones
    too were brought to the bank's size and stored again, so that only what the generator does is left.
    """

    def __init__(self, reader: ImageReader, sizes: Sequence[int], how: GenerationEvaluation) -> None:
        self._reader = reader
        self._how = how
        self._found: dict[int, list[_Traces]] = {size: [] for size in sizes}

    def of_type(self, images: TypeImages) -> list[dict[str, Any]]:
        """One record for each size: "image_size", "as_stored" and "same_way" (see `detect_generated`)."""
        samples = self._reader.real_samples("train", images.cell_type)
        count = min(len(samples), len(images.generated), self._how.shortcut_images)
        chosen = [
            np.sort(permute(derive_key(self._how.seed, "shortcut", images.cell_type, kind), np.arange(count), among))
            for kind, among in (("real", len(samples)), ("generated", len(images.generated)))
        ]
        samples, generated = samples.iloc[chosen[0]], images.generated[torch.from_numpy(chosen[1])]
        small = images.train[torch.from_numpy(chosen[0])]
        for size, parts in self._found.items():
            seen = {
                "as_stored": self._reader.read_real(samples, size),
                "same_way": self._reader.store_and_read(small, size),
                "generated": self._reader.store_and_read(generated, size),
            }
            points = {name: traces(to_intensity(each)) for name, each in seen.items()}
            parts.append(_Traces(points, samples["group"].tolist()))
        return [self._detect(size, parts[-1:]) for size, parts in self._found.items()]

    def over_all(self) -> list[dict[str, Any]]:
        """The same over all types so far."""
        return [self._detect(size, parts) for size, parts in self._found.items()]

    def _detect(self, size: int, parts: Sequence["_Traces"]) -> dict[str, Any]:
        groups = [group for part in parts for group in part.groups]
        points = {name: np.concatenate([part.points[name] for part in parts]) for name in parts[0].points}
        generated = points.pop("generated")
        scores = {name: detect_generated(real, groups, generated, self._how.seed) for name, real in points.items()}
        return {"image_size": size, **scores}


@dataclass(frozen=True)
class _Traces:
    """Of one type: traces of "as_stored", "same_way" and "generated" images, and the groups of the real ones."""

    points: dict[str, Floats]
    groups: list[str]
