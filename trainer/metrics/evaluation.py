"""Evaluations in a run directory: a JSON record of scores, and for a classifier a Parquet file of predictions."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_pipeline.disk import replacing
from data_pipeline.errors import UserError
from data_pipeline.learned_images import SeenImages
from trainer.metrics.classification import Scores, Trust
from trainer.metrics.corruption import CorruptionRecord
from trainer.metrics.records import read_record, to_json, write_json
from trainer.metrics.uncertainty import UNFAMILIARITY, UncertaintyRecord

OWN_TEST = "metrics.json"
# Cells that a report shows.
RIGHT_PER_TYPE = 2
MOST_WRONG = 24
# Column of heat maps, uint8 bytes of HEAT_SIDE squared pixels (see grad_cam.py); of shown cells only.
HEAT = "heat"
PROBABILITY = "p:"  # column prefix, followed by the model's cell type
UNFAMILIAR = "out_of_distribution"  # column: whether the image is beyond that limit
SET = "set"  # column: the types that an image may be, joined by SET_SEPARATOR
SET_SEPARATOR = "; "
SAMPLE_COLUMNS = ("id", "parent", "source", "path", "group", "domain", "cell_type")


@dataclass(frozen=True)
class ScoredData:
    """The real images that were scored."""

    path: str  # folder or URL of the data set
    content_hash: str
    split: str  # with the folds if only some were scored, as in test-folds0+1
    domains: list[str]
    count: int

    @property
    def name(self) -> str:
        """Name of the data set."""
        return Path(self.path).name


@dataclass(frozen=True)
class ScoredCheckpoint:
    """The checkpoint that was scored; a field is None if a bank does not record it for its generator."""

    file: str | None
    step: int | None
    sha256: str

    @classmethod
    def of(cls, checkpoint: Any) -> "ScoredCheckpoint":
        """From a trainer.loop.checkpoint.Checkpoint."""
        return cls(checkpoint.path.name, checkpoint.step, checkpoint.digest)


@dataclass(frozen=True)
class ScoredMember:
    """A member of an ensemble that was scored."""

    run: str  # its folder
    checkpoint: ScoredCheckpoint


@dataclass(frozen=True)
class SeenRecord:
    """Comparison of the scored images with the images that the model has seen."""

    compared_with: int  # images that the model, or its initial weights, was trained on or selected by
    left_out: int  # seen images: the same, near duplicates, or of the same patient or slide
    why: str
    unchecked: list[str]  # what could not be compared, with the reason

    @classmethod
    def of(cls, seen: SeenImages) -> "SeenRecord":
        """From the comparison."""
        return cls(seen.learned, len(seen.through), seen.words, list(seen.unchecked))


@dataclass(frozen=True)
class Evaluation:
    """What every evaluation record states; each task adds its scores in a subclass."""

    dataset: ScoredData
    checkpoint: ScoredCheckpoint
    normalizer: dict[str, Any] | None  # description of the normaliser of the images; None: not normalised
    seen_images: SeenRecord


@dataclass(frozen=True)
class CalibrationRecord:
    """The temperature that calibrates a classifier's probabilities."""

    temperature: float
    validation_images: int
    remark: str  # why it was not fitted, or a warning about the fit
    uncalibrated: Trust  # scores of the probabilities at temperature 1


@dataclass(frozen=True)
class ClassifierEvaluation(Evaluation):
    """A classifier's scores on one split of one data set."""

    cell_types: list[str]  # types that the classifier can predict
    not_scored: dict[str, int]  # other type -> number of its images
    scores: Scores
    calibration: CalibrationRecord
    views: int = 1  # mirrored and turned views of each image, whose mean answer was scored
    members: list[ScoredMember] = field(default_factory=list)  # of an ensemble, all; `checkpoint` is the first's
    corruptions: CorruptionRecord | None = None  # None: not scored
    uncertainty: UncertaintyRecord | None = None  # None: the run keeps no uncertainty.safetensors


@dataclass(frozen=True)
class SavedEvaluation:
    """A classifier's evaluation as read from disk."""

    name: str  # of the file, without suffix
    record: ClassifierEvaluation
    predictions: pd.DataFrame | None  # None when the Parquet file is missing or damaged

    @property
    def is_own_test(self) -> bool:
        """Whether it evaluates the test split of the run's own data set."""
        return f"{self.name}.json" == OWN_TEST


def predictions_frame(
    samples: pd.DataFrame, probabilities: NDArray[np.floating[Any]], cell_types: Sequence[str]
) -> pd.DataFrame:
    """Catalogue rows beside the model's answers: SAMPLE_COLUMNS, "predicted", float32 "p:<type>" columns.

    UNFAMILIARITY too, if samples has it.
    probabilities [n, C] in the order of the rows of samples and of cell_types.
    """
    columns = [*SAMPLE_COLUMNS, *samples.columns.intersection([UNFAMILIARITY])]
    frame = samples.loc[:, columns].reset_index(drop=True)
    frame["predicted"] = np.array(cell_types, dtype=object)[np.asarray(probabilities).argmax(axis=1)]
    answers = {f"{PROBABILITY}{cell_type}": probabilities[:, i] for i, cell_type in enumerate(cell_types)}
    return pd.concat([frame, pd.DataFrame(answers, dtype=np.float32)], axis=1)


def shown_cells(predictions: pd.DataFrame, cell_types: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows that a report shows: RIGHT_PER_TYPE right answers of each type, the MOST_WRONG most confident wrong ones."""
    is_right = predictions["cell_type"] == predictions["predicted"]
    confidence = predictions[[f"{PROBABILITY}{cell_type}" for cell_type in cell_types]].max(axis=1)
    # An id is a hash: the first by id are a random draw, not the best ones.
    right = predictions[is_right].sort_values(["cell_type", "id"]).groupby("cell_type").head(RIGHT_PER_TYPE)
    wrong = predictions[~is_right].assign(confidence=confidence[~is_right])
    return right, wrong.sort_values(["confidence", "id"], ascending=[False, True]).head(MOST_WRONG)


def save_evaluation(run: Path, record: ClassifierEvaluation, predictions: pd.DataFrame, *, own_test: bool) -> Path:
    """Write a classifier's evaluation into run/evaluation and return the path of its JSON; see `save_record`."""
    content = to_json(record)
    target = _free_path(run / "evaluation", content, own_test)
    with replacing(target.with_suffix(".parquet")) as temporary:
        predictions.to_parquet(temporary, index=False)
    write_json(target, content)
    return target


def save_record(run: Path, content: Mapping[str, Any], *, own_test: bool) -> Path:
    """Write a record's JSON, with at least "dataset" and "normalizer" of `Evaluation`, into run/evaluation.

    The run's own test split is metrics.json, any other <dataset>-<split>-<domains>.json. The same data scored
    again replaces its file; where a name is taken by other data (another content hash or normaliser), the
    content hash, and then a number, is appended. The number of views is part of the name. Each file is renamed
    into place whole.
    """
    target = _free_path(run / "evaluation", content, own_test)
    write_json(target, content)
    return target


def load_evaluations(run: Path) -> list[SavedEvaluation]:
    """All evaluations of a classifier's run: its own test split first, the others by name.

    Raises UserError when a JSON cannot be read.
    """
    paths = sorted((run / "evaluation").glob("*.json"), key=lambda path: (path.name != OWN_TEST, path.name))
    return [
        SavedEvaluation(path.stem, read_record(ClassifierEvaluation, path), _read_predictions(path)) for path in paths
    ]


def own_test_evaluation(run: Path) -> SavedEvaluation | None:
    """The evaluation of the run's own test split; None before it is scored."""
    return next((each for each in load_evaluations(run) if each.is_own_test), None)


def _free_path(folder: Path, content: Mapping[str, Any], own_test: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = content["dataset"]
    words = [Path(data["path"]).name, data["split"], "+".join(data["domains"])]
    words += [f"views{content['views']}"] if content.get("views", 1) > 1 else []
    stem = "-".join(re.sub(r"[^A-Za-z0-9.+_]+", "_", word) or "all" for word in words)
    names = [*([OWN_TEST.removesuffix(".json")] if own_test else []), stem, f"{stem}-{data['content_hash'][:12]}"]
    names += [f"{names[-1]}-{number}" for number in range(2, 1000)]
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists() or _scored(path) in (None, _scored_by(content)):
            return path
    raise UserError(f"{folder}: a thousand evaluations are named {stem}; move some away")


def _scored_by(content: Mapping[str, Any]) -> tuple[Any, ...]:
    """Equal for two evaluations of the same images prepared alike, by the same ensemble if it is one."""
    data = content["dataset"]
    members = sorted(each["run"] for each in content.get("members", ()))
    images = data["content_hash"], data["split"], tuple(data["domains"])
    return *images, json.dumps(content["normalizer"]), content.get("views", 1), members


def _scored(path: Path) -> tuple[Any, ...] | None:
    """`_scored_by` of a file; None where it is damaged."""
    try:
        return _scored_by(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read_predictions(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path.with_suffix(".parquet"))
    except (OSError, ValueError):  # pyarrow's errors are these
        return None
