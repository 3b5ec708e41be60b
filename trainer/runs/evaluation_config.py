"""Settings of an evaluation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig, SeenChoice
from trainer.learners.choices import ViewCount
from trainer.runs.arguments import one_or_more
from trainer.runs.shipped import run_or_shipped


@dataclass(frozen=True)
class EvaluateConfig(DatasetConfig):
    """What to score."""

    run: str | None = None  # a folder, or [A,B]: several
    views: ViewCount = 1
    out: str | None = None  # where the scores of classifiers are written; default: the run
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

    @property
    def runs(self) -> list[Path]:
        """The runs that are scored together."""
        return [run_or_shipped(run) for run in one_or_more(str(self.run), "run")]

    @property
    def folder(self) -> Path:
        """Where the scores are written."""
        return Path(self.out) if self.out else self.runs[0]
