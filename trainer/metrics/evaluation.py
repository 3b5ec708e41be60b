"""How an evaluation lies in a run directory: one JSON of scores and one Parquet of predictions beside it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from data_pipeline.disk import replace_through, replacing
from data_pipeline.errors import UserError

OWN_TEST = "metrics.json"
# How many cells a report shows.
RIGHT_PER_TYPE = 2
MOST_WRONG = 24
# Column of uint8 bytes of HEAT_SIDE squared pixels, as grad_cam.py gives them; of shown cells only.
HEAT = "heat"
PROBABILITY = "p:"  # column prefix, followed by the model's cell type
SAMPLE_COLUMNS = ("id", "parent", "source", "path", "group", "domain", "cell_type")


@dataclass(frozen=True)
class Evaluation:
    """One evaluation as read from disk; predictions is None when its Parquet is gone or damaged."""

    name: str
    record: dict[str, Any]
    predictions: pd.DataFrame | None

    @property
    def is_own_test(self) -> bool:
        return f"{self.name}.json" == OWN_TEST


def predictions_frame(
    samples: pd.DataFrame, probabilities: NDArray[np.floating[Any]], cell_types: Sequence[str]
) -> pd.DataFrame:
    """Catalogue rows beside the model's answers: SAMPLE_COLUMNS, "predicted", float32 "p:<type>" columns.

    probabilities [n, C] in the order of the rows of samples and of cell_types.
    """
    frame = samples.loc[:, list(SAMPLE_COLUMNS)].reset_index(drop=True)
    frame["predicted"] = np.array(cell_types, dtype=object)[np.asarray(probabilities).argmax(axis=1)]
    columns = {f"{PROBABILITY}{cell_type}": probabilities[:, i] for i, cell_type in enumerate(cell_types)}
    return pd.concat([frame, pd.DataFrame(columns, dtype=np.float32)], axis=1)


def shown_cells(predictions: pd.DataFrame, cell_types: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that a report shows: RIGHT_PER_TYPE right answers of each type, the MOST_WRONG surest wrong ones."""
    is_right = predictions["cell_type"] == predictions["predicted"]
    confidence = predictions[[f"{PROBABILITY}{cell_type}" for cell_type in cell_types]].max(axis=1)
    # An id is a hash: the first by id are a random draw, not the best ones.
    right = predictions[is_right].sort_values(["cell_type", "id"]).groupby("cell_type").head(RIGHT_PER_TYPE)
    wrong = predictions[~is_right].assign(confidence=confidence[~is_right])
    return right, wrong.sort_values(["confidence", "id"], ascending=[False, True]).head(MOST_WRONG)


def save_evaluation(run: Path, record: dict[str, Any], predictions: pd.DataFrame, own_test: bool) -> Path:
    """Write one evaluation into run/evaluation and return the path of its JSON.

    The run's own test split is metrics.json, any other <dataset>-<split>-<domains>.json. The same data scored
    again replaces its file; where a name is taken by other data (another content hash or normaliser), the
    content hash, and then a number, is put behind it. Each file is renamed into place whole.
    """
    target = _free_path(run / "evaluation", record, own_test)
    with replacing(target.with_suffix(".parquet")) as temporary:
        predictions.to_parquet(temporary, index=False)
    _write_record(target, record)
    return target


def save_record(run: Path, record: dict[str, Any], own_test: bool) -> Path:
    """As save_evaluation, for scores that are not of single images."""
    target = _free_path(run / "evaluation", record, own_test)
    _write_record(target, record)
    return target


def load_evaluations(run: Path) -> list[Evaluation]:
    """All evaluations of a run: its own test split first, the others by name.

    Raises UserError when a JSON cannot be read.
    """
    paths = sorted((run / "evaluation").glob("*.json"), key=lambda path: (path.name != OWN_TEST, path.name))
    return [Evaluation(path.stem, _read_record(path), _read_predictions(path)) for path in paths]


def _free_path(folder: Path, record: dict[str, Any], own_test: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = record["dataset"]
    words = [Path(data["path"]).name, data["split"], "+".join(data["domains"])]
    stem = "-".join(re.sub(r"[^A-Za-z0-9.+_]+", "_", word) or "all" for word in words)
    first = [OWN_TEST.removesuffix(".json")] if own_test else []
    names = [*first, stem, f"{stem}-{data['content_hash'][:12]}"]
    names += [f"{names[-1]}-{number}" for number in range(2, 1000)]
    for name in names:
        path = folder / f"{name}.json"
        if not path.exists() or _data_of(_read_record(path)) == _data_of(record):
            return path
    raise UserError(f"{folder}: a thousand evaluations are named {stem}; move some away")


def _data_of(record: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two evaluations scores of the same thing."""
    data = record["dataset"]
    return data["content_hash"], data["split"], tuple(data["domains"]), json.dumps(record["normalizer"])


def _write_record(target: Path, record: dict[str, Any]) -> None:
    replace_through(target, (json.dumps(record, indent=1, allow_nan=False) + "\n").encode())


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _data_of(record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not an evaluation ({error}); delete it or run evaluate.py again") from error
    return dict(record)


def _read_predictions(path: Path) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(path.with_suffix(".parquet"))
    except (OSError, ValueError):  # pyarrow's errors are these
        return None
