"""Differential counts: cells are named as by predict.py, then counted for each patient or slide."""

import csv
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk, printable
from data_pipeline.names import shown
from data_pipeline.sources.annotations import AnnotatedField
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.sources.declaration import is_hidden, list_images
from data_pipeline.sources.fields import WHITE_CELL, square_round
from data_pipeline.sources.identifiers import canonical
from data_pipeline.sources.labels import cell_type_of
from data_pipeline.sources.table import ListedFiles
from data_pipeline.stream.stream import Topology
from trainer.metrics.bootstrap import Floats
from trainer.metrics.differential import Differential, Ranges, count_types
from trainer.metrics.evaluation import UNFAMILIAR, own_test_evaluation
from trainer.reports.differential_report import CountedField, write_differential_report
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.classification.inference.prediction import PredictOptions, predict_images


@dataclass(frozen=True)
class CountOptions:
    """How cells are named and counted."""

    prediction: PredictOptions  # cells below its min_confidence are for a person to look at
    groups: Mapping[str, str]  # path of an image, relative -> its patient or slide; '' is not counted
    ranges: Ranges  # empty: no reference ranges are shown
    side_microns: float | None = None  # of the squares that cells are cut in; None: by their boxes


def count_fields(
    runs: Sequence[Path],
    root: Path,
    fields: Sequence[AnnotatedField],
    out: Path,
    options: CountOptions,
    topology: Topology,
) -> None:
    """Name and count the white cells of fields; writes differential.csv, report.html and a prediction into `out`.

    fields: with the boxes that were found. UserError as of `count_images`, and where no white cell was found.
    """
    cut = {
        field.path: [
            (box, printable(root / f"{field.path}{square_round(box, field, options.side_microns)}"))
            for box in field.boxes
            if box.name == WHITE_CELL
        ]
        for field in fields
    }
    group_of = options.groups
    wanted = [(path, cell) for path, cells in cut.items() if group_of[path] for _, cell in cells]
    if not wanted:
        raise UserError(f"{root}: no white cell found in {len(fields)} fields; are they stained and in focus?")
    named = _predict(runs, [on_disk(Path(), cell) for _, cell in wanted], out, options, topology)
    named["group"] = named["path"].map({cell: group_of[path] for path, cell in wanted})
    answers = {path: (str(kind), bool(look)) for path, kind, look in named[["path", "type", "look"]].to_numpy()}
    counted = [
        CountedField(
            on_disk(root, field.path),
            group_of[field.path],
            field.boxes,
            tuple((box, *answers[cell]) for box, cell in cut[field.path] if cell in answers),
        )
        for field in fields
        if group_of[field.path]
    ]
    _write(runs, named, counted, out, options)


def count_images(runs: Sequence[Path], root: Path, out: Path, options: CountOptions, topology: Topology) -> None:
    """Name and count images of single cells; writes differential.csv, report.html and a prediction into `out`.

    UserError for tables that cannot be read, and as of `predict_images`.
    """
    group_of = options.groups
    named = _predict(runs, [on_disk(root, path) for path, group in group_of.items() if group], out, options, topology)
    place = {printable(root / path): group for path, group in group_of.items()}
    named["group"] = [place[path] for path in named["path"]]
    _write(runs, named, [], out, options)


def read_groups(root: Path, patients: Path | None) -> dict[str, str]:
    """The patient or slide of each image of a folder: by the table, else its first folder, else all are one.

    An image that the table does not name has none (''). UserError for a table that names an image that is not there,
    or one twice, for two patients.
    """
    paths = [path for path in list_images(root)[0] if not is_hidden(path)]
    if patients is None:
        return {path: path.split("/")[0] if "/" in path else root.resolve().name for path in paths}
    groups = dict.fromkeys(paths, "")
    files = ListedFiles(str(root))
    for line, row in read_csv(patients, required=("image", "patient")).rows:
        found = [path for path in files.find(row["image"]) if path in groups]
        if len(found) != 1:
            raise UserError(
                f"{patients}, line {line}: no image '{shown(row['image'])}' in {root}{files.hint(row['image'])}"
            )
        patient = canonical(row["patient"])
        if groups[found[0]] not in ("", patient):
            raise UserError(f"{patients}, line {line}: '{shown(found[0])}' has another patient further up: keep one")
        groups[found[0]] = patient
    lost = [path for path, group in groups.items() if not group]
    if len(lost) == len(paths):
        raise UserError(f"{patients}: names no patient of an image in {root}; fill the column patient")
    if lost:
        print(f"{len(lost)} image(s) without a patient are not counted ({shown(lost[0])}, ...)", file=sys.stderr)
    return groups


def _predict(
    runs: Sequence[Path], cells: Sequence[Path], out: Path, options: CountOptions, topology: Topology
) -> pd.DataFrame:
    """The rows of predictions.csv, and `look`: whether a person should look at the cell."""
    predict_images(runs, cells, out, options.prediction, topology)
    named = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    look = named["uncertain"].astype(bool)
    if UNFAMILIAR in named:
        look |= named[UNFAMILIAR].astype(bool)
    return named.assign(look=look)


def _write(
    runs: Sequence[Path],
    named: pd.DataFrame,
    fields: Sequence[CountedField],
    out: Path,
    options: CountOptions,
) -> None:
    """Count, for each patient, those without a white cell too; write the table and the report."""
    cell_types = [name.removeprefix("p:") for name in named.columns if name.startswith("p:")]
    confusions = _confusions(runs, cell_types)
    rows = {group: named[named["group"] == group] for group in sorted(set(options.groups.values())) if group}
    counts = [count_types(group, each["type"].tolist(), cell_types, confusions) for group, each in rows.items()]
    looks = {group: int(each["look"].sum()) for group, each in rows.items()}
    replace_through(out / "differential.csv", _as_csv(counts, looks).encode())
    write_differential_report(out, counts, looks, fields, options.ranges, corrected=confusions is not None)
    for each in counts:
        if each.warning:
            print(f"{each.group}: {each.warning}", file=sys.stderr)
    print(f"{(out / 'differential.csv').resolve()}\n{(out / 'report.html').resolve()}")


def _confusions(runs: Sequence[Path], cell_types: list[str]) -> Floats | None:
    """Confusion counts [types, types] of the run's own test images; None, and a line that says so, without any."""
    evaluation = own_test_evaluation(runs[0]) if len(runs) == 1 and (runs[0] / CONFIG_FILE).exists() else None
    if evaluation is None or evaluation.record.cell_types != cell_types:
        print("no correction by a confusion matrix: it needs one run with its scored test images", file=sys.stderr)
        return None
    scores = evaluation.record.scores
    if scores.absent:
        print(f"no correction by a confusion matrix: no test image of {', '.join(scores.absent)}", file=sys.stderr)
        return None
    return np.array(scores.confusion, np.float64)


def read_ranges(path: Path) -> Ranges:
    """Reference ranges from a CSV cell_type,low,high, per cent of white cells. UserError names the wrong line."""
    ranges: dict[str, tuple[float, float]] = {}
    for line, row in read_csv(path, required=("cell_type", "low", "high")).rows:
        cell_type = cell_type_of(row["cell_type"], {})
        try:
            low, high = float(row["low"]), float(row["high"])
        except ValueError:
            low, high = 1.0, 0.0
        if not cell_type or not 0 <= low <= high <= 100:
            raise UserError(f"{path}, line {line}: write one of {', '.join(CELL_TYPES)}, and limits from 0 to 100")
        ranges[cell_type] = (low, high)
    return ranges


def _as_csv(counts: Sequence[Differential], looks: Mapping[str, int]) -> str:
    """A line for each patient and type; shares in per cent."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    corrected = ("corrected_percent", "corrected_low", "corrected_high")
    writer.writerow(
        ["patient", "cell_type", "count", "percent", "low", "high", *corrected, "white_cells", "to_look_at", "warning"]
    )
    for each in counts:
        for name, of_type in each.types.items():
            numbers = [
                "" if value is None else f"{100 * value:.2f}"
                for estimate in (of_type.share, of_type.corrected)
                for value in (estimate.value, estimate.low, estimate.high)
            ]
            writer.writerow(
                [each.group, name, of_type.count, *numbers, each.white_cells, looks[each.group], each.warning]
            )
    return file.getvalue()
