"""Settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig, SeenChoice


@dataclass(frozen=True)
class EvaluateConfig(DatasetConfig):
    """What to score."""

    run: str | None = None
    bank: str | None = None
    split: Literal["test", "validation", "train", "all"] = "test"
    domain: str | None = None
    folds: list[int] | None = None
    seen_images: SeenChoice = "refuse"
    features: str | None = None
    classifier: str | None = None
    lpips_weights: str | None = None
    inception_weights: str | None = None
    corruptions: bool = False
