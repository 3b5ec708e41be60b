"""What an adaptation tried, found and advises: adaptation.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trainer.metrics.bootstrap import Estimate
from trainer.metrics.records import read_record

FILE = "adaptation.json"
Method = Literal["as_is", "statistics", "self_training", "head", "all"]


@dataclass(frozen=True)
class MethodScores:
    """Scores of one method on the laboratory's labelled cells; it did not learn from those that it was scored on."""

    method: Method
    balanced_accuracy: Estimate
    sensitivity: dict[str, Estimate]  # type -> of its cells


@dataclass(frozen=True)
class Evidence:
    """What the answers of one method to unlabelled images say: how sure and how steady they are, not how right."""

    method: Method
    confidence: float  # mean calibrated probability of the answers
    agreement: float  # share of mirrored and turned views whose answer is that of all views together
    gain: Estimate  # of agreement, against as_is; over groups
    unchanged: float  # share of images with the same answer as by as_is
    answers: dict[str, int]  # type -> images


@dataclass(frozen=True)
class HomeScores:
    """Balanced accuracy on validation images of the run that was adapted."""

    images: int
    before: float
    after: float


@dataclass(frozen=True)
class Adaptation:
    """How a run was adapted."""

    source: str  # folder of the run that was adapted
    source_checkpoint: str  # first digits of its SHA-256
    method: Method
    chosen_by: str
    labelled: dict[str, int]  # type -> labelled cells; types of the classifier without one are there, too
    unlabelled: int
    methods: list[MethodScores]  # empty without labelled cells
    evidence: list[Evidence]  # empty with labelled cells
    home: HomeScores | None  # None: the data set of the run is not at hand
    home_shown: bool  # training images of the run were shown beside the laboratory's
    advice: list[str]
    command: str


def read_adaptation(run: Path) -> Adaptation | None:
    """The run's adaptation; None for a run that was trained. UserError for a damaged file."""
    return read_record(Adaptation, run / FILE) if (run / FILE).exists() else None
