"""Settings of an adaptation to a laboratory."""

from dataclasses import dataclass
from typing import Literal, get_args

from data_pipeline.dataset_config import DatasetConfig
from trainer.tasks.classification.reports.adaptation_record import Method

Choice = Literal["auto", "as_is", "statistics", "self_training", "head", "all"]
METHODS: tuple[Method, ...] = get_args(Method)
# What each of them learns from.
WITH_LABELS: tuple[Method, ...] = ("head", "all")
WITH_UNLABELLED: tuple[Method, ...] = ("statistics", "self_training")
# Those that leave every layer but the last as it is.
SAME_FEATURES: tuple[Method, ...] = ("as_is", "self_training", "head")
# Those that leave the last layer as it is.
OWN_HEAD: tuple[Method, ...] = ("as_is", "statistics")


@dataclass(frozen=True)
class AdaptConfig(DatasetConfig):
    """What is adapted to which images. shards: the laboratory's images as a data set, of which `train` is used."""

    run: str | None = None  # the classifier to adapt; "shipped": the one of the installation
    out: str | None = None  # the new run
    images: str | None = None  # folder of unlabelled images, or of fields with boxes
    labelled: str | None = None  # folder with one sub-folder per type, a CSV table, or fields with boxes
    labels: str | None = None  # CSV label,cell_type for other names of types
    domain: str | None = None  # of shards: the domain to adapt to, null: all; of the others: its name in the new run
    method: Choice = "auto"
    steps: int = 100  # of training all layers
    learning_rate: float = 3e-4  # of the same, the peak
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.learning_rate <= 0:
            raise ValueError(f"steps={self.steps} and learning_rate={self.learning_rate}: both must be above 0")
