"""The result of the thesis's protocol, balance first and split afterwards: RUN/control.json.

No score of a classifier: no score, audit or table of scores reads it.
"""

from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UserError
from trainer.metrics.classification import Scores
from trainer.metrics.evaluation import ScoredData
from trainer.metrics.records import read_record

FILE = "control.json"
# What the protocol does, for people.
WARNING = (
    "No score: under this protocol images of one patient, copies of one original and images of one generator are "
    "trained on and tested on."
)


@dataclass(frozen=True)
class ControlRecord:
    """What a classifier reaches under the thesis's protocol."""

    protocol: str  # balance_first
    dataset: ScoredData  # split: "control", no split of the data set
    origins: dict[str, int]  # real, normalized, synthetic -> test images
    known_groups: int  # test images of a patient, slide or generator that training images are of, too
    scores: Scores
    # origin -> share of its test images that are named rightly; empty in a control that was written without it
    accuracy_by_origin: dict[str, float] = field(default_factory=dict)

    @property
    def origin_words(self) -> str:
        """'1548 real (88.1 % right), ...'."""
        right = {name: f" ({100 * share:.1f} % right)" for name, share in self.accuracy_by_origin.items()}
        return ", ".join(f"{count} {name}{right.get(name, '')}" for name, count in self.origins.items())


def read_control(run: Path) -> ControlRecord:
    """The control of a run. UserError where there is none."""
    if not (run / FILE).is_file():
        raise UserError(f"{run}: no {FILE}: train it with protocol=balance_first")
    return read_record(ControlRecord, run / FILE)


def words_of(record: ControlRecord) -> str:
    """What the numbers are, for people."""
    return (
        f"CONTROL, not a score: balanced first and split afterwards, as the thesis. {record.dataset.count} test images "
        f"({record.origin_words}), {record.known_groups} of them of patients, slides or generators that were trained on"
    )
