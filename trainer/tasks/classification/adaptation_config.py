"""Settings of an adaptation to a laboratory."""

from dataclasses import dataclass
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig

Method = Literal["as_is", "statistics", "self_training", "head", "all"]
# What needs labelled cells; the others take unlabelled images.
WITH_LABELS: tuple[Method, ...] = ("head", "all")


@dataclass(frozen=True)
class AdaptConfig(DatasetConfig):
    """What is adapted to which images. shards: the laboratory's images as a data set, of which `train` is used."""

    run: str | None = None  # the classifier to adapt
    out: str | None = None  # the new run
    images: str | None = None  # folder of unlabelled images
    labelled: str | None = None  # folder with one sub-folder per type, or a CSV table
    labels: str | None = None  # CSV label,cell_type for other names of types
    domain: str = "laboratory"  # name of the laboratory's stain
    method: Literal["auto", "as_is", "statistics", "self_training", "head", "all"] = "auto"
    steps: int = 100  # of training all layers, and of self-training
    learning_rate: float = 3e-4  # of the same, the peak
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps={self.steps} and learning_rate={self.learning_rate}: both must be above 0")
