"""The record of a scored image bank, as its JSON holds it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.metrics.classification import Scores
from trainer.metrics.copies import Memorization
from trainer.metrics.evaluation import Evaluation, ScoredCheckpoint
from trainer.metrics.generation import Floats, GenerationScores, ManifoldScores
from trainer.metrics.shortcut import Detection


@dataclass(frozen=True)
class Summary:
    """Mean and deviation of a measure over images or pairs, infinite values (the PSNR of equal images) left out."""

    mean: float | None  # None without a finite value
    deviation: float | None
    count: int  # all values, infinite ones included

    @classmethod
    def of(cls, values: Floats) -> "Summary":
        """From values [n]."""
        finite = values[np.isfinite(values)]
        mean = float(finite.mean()) if len(finite) else None
        return cls(mean, float(finite.std(ddof=1)) if len(finite) > 1 else None, len(values))


@dataclass(frozen=True)
class ImageCounts:
    """Images that were compared."""

    generated: int
    train: int
    test: int


@dataclass(frozen=True)
class Shortcut:
    """Whether real training images and generated ones can be told apart at one size; None: too few images."""

    image_size: int
    as_stored: Detection | None  # both as stored in the data set: what a classifier trained on both receives
    same_way: Detection | None  # after the real images, too, are resized to the bank's size and encoded again


@dataclass(frozen=True)
class BankScores:
    """Scores of the generated images of one type, or of all types together, beside real ones."""

    count: ImageCounts
    generation: GenerationScores | None  # against test images; None with fewer than two on one side
    manifold: ManifoldScores | None
    perceptual: dict[str, Summary]  # generated_to_real, within_generated, within_real
    nearest_real: dict[str, dict[str, Summary]]  # generated, test -> psnr, ssim, l1, l2 to the nearest training image
    memorization: dict[str, Memorization | None]  # in pixels, in features; None without test images
    shortcut: list[Shortcut]  # one for each image size


@dataclass(frozen=True)
class BankData:
    """The bank of generated images that was scored."""

    path: str
    content_hash: str
    domain: str
    count: int
    image_size: int  # pixels


@dataclass(frozen=True)
class Generator:
    """The generator of the images; its checkpoint is BankEvaluation.checkpoint."""

    name: str | None
    dataset_hash: str | None  # of its training data
    seed: int | None
    learned_from_this_data_set: bool  # or from a data set that this one is derived from


@dataclass(frozen=True)
class JudgeRecord:
    """The independent classifier."""

    run: str
    name: str
    image_size: int
    dataset_hash: str
    checkpoint: ScoredCheckpoint


@dataclass(frozen=True)
class BankEvaluation(Evaluation):
    """All scores of a bank; `dataset` describes the real images, whose test split is compared with."""

    bank: BankData
    generator: Generator
    classifier: JudgeRecord
    crop: dict[str, float]  # domain -> share of the sides of real images that is kept
    made_by: Any  # what made the data set
    feature_space: str
    perceptual_distance: str
    neighbours: int
    quantile: float
    seed: int
    type_agreement: dict[str, Scores | None]  # generated, test -> the classifier's scores (table 18)
    all: BankScores
    per_type: dict[str, BankScores]

    @property
    def rows(self) -> dict[str, BankScores]:
        """Each type, then "all"."""
        return {**self.per_type, "all": self.all}
