"""One evaluation of a classifier as blocks of a page: scores, figures 53 to 57, confusion, trust."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from trainer.metrics.classification import format_estimate, format_nats
from trainer.metrics.evaluation import HEAT, PROBABILITY, RIGHT_PER_TYPE, Evaluation, shown_cells
from trainer.reports import figures
from trainer.reports.gallery import prediction_card, type_numbers
from trainer.reports.page import Block, Cards, Cell, Facts, Figure, Section, Table, Text, Tile, Tiles
from trainer.reports.picture import HEAT_WORDS, NO_PICTURE, thumbnail

HEADLINE = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy = mean sensitivity",
    "specificity": "Mean specificity",
    "precision": "Mean precision",
    "f1": "Mean F1",
    "auroc": "Mean AUROC",
    "calibration_error": "Calibration error",
}
TYPE_MEASURES = ("sensitivity", "specificity", "precision", "f1", "auroc", "accuracy")


def data_words(record: Mapping[str, Any]) -> str:
    """'barcelona, test split, domain giemsa, 1200 images': what every number carries."""
    data = record["dataset"]
    domains = data["domains"]
    word = "domain" if len(domains) == 1 else "domains"
    normalised = "" if record["normalizer"] is None else f", normalised by {_normalizer(record)}"
    return (
        f"{Path(data['path']).name}, {data['split']} split, {word} {', '.join(domains) or 'all'}, "
        f"{data['count']} images{normalised}"
    )


def data_facts(record: Mapping[str, Any]) -> Facts:
    """The lines that name an evaluation's data, checkpoint and normaliser."""
    data, checkpoint, scores = record["dataset"], record["checkpoint"], record["scores"]
    rows = [
        ("data set", f"{data['path']} (content {data['content_hash'][:12]})"),
        ("split", f"{data['split']}, domains: {', '.join(data['domains']) or 'all'}"),
        ("scored", f"{scores['count']} images in {scores['groups']} groups"),
        (
            "checkpoint",
            f"{checkpoint['file']}, step {checkpoint['step']} (SHA-256 {checkpoint['sha256'][:12]})",
        ),
        ("normaliser", _normalizer(record)),
        ("intervals", f"{scores['interval']['method']}; {scores['interval']['resamples']} resamples"),
    ]
    if "calibration" in record:
        calibration = record["calibration"]
        fitted = f"fitted on {calibration['validation_images']} validation images"
        rows.append(("temperature", f"{calibration['temperature']:.3f}, {calibration['remark'] or fitted}"))
    rows.append(("unseen", seen_words(record)))
    if record["not_scored"]:
        left = ", ".join(f"{count} {cell_type or 'unlabelled'}" for cell_type, count in record["not_scored"].items())
        rows.insert(3, ("not scored", f"{left}: not among the model's types"))
    return Facts(rows)


def seen_words(record: Mapping[str, Any]) -> str:
    """Whether a record's images are new to what is scored."""
    if "seen_images" not in record:
        return "not checked: an older record; score again"
    seen = record["seen_images"]
    words = f"compared with {seen['compared_with']} images that it, or what it began with, was trained on or chosen by"
    if seen["left_out"]:
        words += (
            f"; {seen['left_out']} images, or their patients or slides, were among them and left out: {seen['why']}"
        )
    return "; not checked: ".join([words, *seen["unchecked"]])


def headline(record: Mapping[str, Any]) -> Tiles:
    """The scores over all types with their intervals, in per cent."""
    scores = record["scores"]
    return Tiles(
        [Tile(label, format_estimate(scores[name]), interval_words(scores[name])) for name, label in HEADLINE.items()]
    )


def interval_words(estimate: Mapping[str, float | None]) -> str:
    """'95.1 to 98.8', in per cent, or that there is none."""
    if estimate["low"] is None or estimate["high"] is None:
        return "no interval"
    return f"{100 * estimate['low']:.1f} to {100 * estimate['high']:.1f}"


def evaluation_section(evaluation: Evaluation) -> Section:
    """Everything about one evaluation; pictures are read from the data set that its record names."""
    record, scores = evaluation.record, evaluation.record["scores"]
    words = data_words(record)
    # The page's head shows these of the run's own test split.
    blocks: list[Block] = [] if evaluation.is_own_test else [data_facts(record), headline(record)]
    if scores["absent"]:
        absent = ", ".join(scores["absent"])
        blocks.append(Text(f"No image of {absent} in this data: no score, and not in the means.", warning=True))
    if scores["groups"] < 2:
        blocks.append(Text("All images are of one group: nothing can be said about the scores' spread.", warning=True))
    blocks += [
        Figure(
            figures.per_type_bars(scores, evaluation.name),
            "Accuracy (one type against the rest), sensitivity and specificity of each type, with 95 % "
            f"intervals over groups ({words}); compare figures 53 and 54.",
        ),
        _type_table(scores, words),
        _confusion_table(record, words),
        *_trust(evaluation, words),
    ]
    title = f"{'Own test split' if evaluation.is_own_test else 'Evaluation'}: {_title_words(record)}"
    return Section(title, f"Scores on {words}.", [*blocks, *_galleries(evaluation, words)])


def _trust(evaluation: Evaluation, words: str) -> list[Block]:
    """Calibration before and after temperature, and selective prediction; less of both in records of old."""
    scores, calibration = evaluation.record["scores"], evaluation.record.get("calibration")
    models, told = [("this model", scores["reliability"])], ""
    if calibration is not None and calibration["temperature"] != 1:
        models = [
            (f"at temperature {calibration['temperature']:.2f}", scores["reliability"]),
            ("as trained", calibration["uncalibrated"]["reliability"]),
        ]
        told = (
            f" Temperature {calibration['temperature']:.3f} was fitted on {calibration['validation_images']} "
            "validation images, and all scores are of the probabilities that it gives; as trained: "
            f"{_trust_words(calibration['uncalibrated'])}."
        )
    if calibration is not None and calibration["remark"]:
        told += f" Calibration: {calibration['remark']}."
    bins = len(scores["reliability"])
    blocks: list[Block] = [
        Figure(
            figures.reliability_diagram(models, evaluation.name),
            f"Calibration ({words}): {_trust_words(scores)}, in {bins} bins.{told}",
        )
    ]
    if "selective" in scores:
        selective = scores["selective"]
        shares = "; ".join(
            f"of the surest {share} %, {format_estimate(estimate)} % are right ({interval_words(estimate)})"
            for share, estimate in selective["accuracy_at_coverage"].items()
        )
        area = selective["risk_coverage_area"]
        caption = (
            f"Selective prediction ({words}): {shares}. Area under the risk-coverage curve (mean share of wrong "
            f"answers over all coverages) {format_estimate(area)} % ({interval_words(area)}). To leave images to a "
            "person, give predict.py a confidence from the right as min_confidence=."
        )
        blocks.append(Figure(figures.risk_coverage(selective["curve"], evaluation.name), caption))
    return blocks


def _trust_words(scores: Mapping[str, Any]) -> str:
    """'expected calibration error 3.1 % (2.0 to 4.4), negative log likelihood 0.142 [0.101, 0.187]'."""
    error = scores["calibration_error"]
    words = f"expected calibration error {format_estimate(error)} % ({interval_words(error)})"
    if "negative_log_likelihood" in scores:
        words += f", negative log likelihood {format_nats(scores['negative_log_likelihood'])}"
    return words


def _title_words(record: Mapping[str, Any]) -> str:
    data = record["dataset"]
    return f"{Path(data['path']).name}, {data['split']}, {', '.join(data['domains']) or 'all domains'}"


def _normalizer(record: Mapping[str, Any]) -> str:
    normalizer = record["normalizer"]
    if isinstance(normalizer, Mapping):
        return ", ".join(f"{key} {value}" for key, value in normalizer.items())
    return "none" if normalizer is None else str(normalizer)


def _type_table(scores: Mapping[str, Any], words: str) -> Table:
    rows = []
    for cell_type, row in scores["per_type"].items():
        estimates = [row[measure] for measure in TYPE_MEASURES]
        cells = [
            Cell(format_estimate(estimate), "" if estimate["value"] is None else interval_words(estimate))
            for estimate in estimates
        ]
        rows.append([Cell(cell_type), Cell(str(row["count"])), Cell(str(row["groups"])), *cells])
    caption = f"Each type against the rest, in per cent, 95 % intervals over groups below ({words})."
    return Table(caption, ["type", "images", "groups", *TYPE_MEASURES], rows)


def _confusion_table(record: Mapping[str, Any], words: str) -> Table:
    cell_types = record["cell_types"]
    rows = []
    for index, (cell_type, counts) in enumerate(zip(cell_types, record["scores"]["confusion"], strict=True)):
        total = sum(counts)
        row = [Cell(f"{index} {cell_type}"), Cell(str(total))]
        for other, count in enumerate(counts):
            share = count / total if total else 0.0
            small = f"{100 * share:.1f} %" if count else ""
            row.append(Cell(str(count), small, 0.1 + 0.6 * share if count else 0.0, wrong=other != index))
        rows.append(row)
    caption = f"Confusion: true type in rows, predicted in columns; counts and per cent of the row ({words})."
    head = ["true type", "images", *(f"{index} {cell_type}" for index, cell_type in enumerate(cell_types))]
    return Table(caption, head, rows, matrix=True)


def _galleries(evaluation: Evaluation, words: str) -> list[Block]:
    record, predictions = evaluation.record, evaluation.predictions
    if predictions is None:
        return [Text(f"{evaluation.name}.parquet cannot be read: no single cells are shown.", warning=True)]
    is_right = predictions["cell_type"] == predictions["predicted"]
    columns = [f"{PROBABILITY}{cell_type}" for cell_type in record["cell_types"]]
    right, wrong = shown_cells(predictions, record["cell_types"])
    shown = pd.concat([right, wrong])
    heat = dict(zip(shown["id"], shown[HEAT], strict=True)) if HEAT in shown else {}
    heat = {name: each for name, each in heat.items() if isinstance(each, bytes)}
    pictures, problem = _pictures(record, heat, shown["id"].tolist())
    key = f"Bars: {type_numbers(record['cell_types'])}.{f' {HEAT_WORDS}' if heat else ''}"
    blocks: list[Block] = [Text(problem, warning=True)] if problem else []
    if len(right):
        caption = (
            f"Right answers, {RIGHT_PER_TYPE} of each type drawn at random from {int(is_right.sum())} "
            f"({words}): predicted type with its confidence, true type in brackets; "
            f"compare figures 55 and 56. {key}"
        )
        blocks.append(Cards(caption, _cards(right, columns, record["cell_types"], pictures)))
    if len(wrong):
        caption = (
            f"Wrong answers, the {len(wrong)} most confident of {int((~is_right).sum())} ({words}); "
            f"compare figure 57. Blue: the true type, red: the answer. {key}"
        )
        blocks.append(Cards(caption, _cards(wrong, columns, record["cell_types"], pictures)))
    else:
        blocks.append(Text(f"No wrong answer ({words})."))
    return blocks


def _cards(
    rows: pd.DataFrame, columns: Sequence[str], cell_types: Sequence[str], pictures: Mapping[str, Markup]
) -> list[Any]:
    tables = rows[list(columns)].to_numpy(dtype=float).tolist()
    facts = zip(rows["id"], rows["cell_type"], rows["path"], rows["source"], tables, strict=True)
    return [
        prediction_card(
            probabilities,
            cell_types,
            cell_type,
            pictures.get(key, NO_PICTURE),
            f"{source}/{path.rsplit('/', 1)[-1]}",
        )
        for key, cell_type, path, source, probabilities in facts
    ]


def _pictures(
    record: Mapping[str, Any], heat: Mapping[str, bytes], ids: Sequence[str]
) -> tuple[dict[str, Markup], str]:
    """Thumbnails of the ids that the data set still holds, under their heat; and what is amiss ('' nothing)."""
    data = record["dataset"]
    try:
        dataset = Dataset.open(str(data["path"]))
    except UserError as error:
        return {}, f"No pictures: the data set cannot be read. {error}"
    samples = dataset.samples()
    pictures: dict[str, Markup] = {}
    problem = ""
    for _, row in samples[samples["id"].isin(list(ids))].iterrows():
        try:
            picture = dataset.read_encoded(row)
            pictures[row["id"]] = thumbnail(picture, row["cell_type"] or "cell", heat.get(row["id"]))
        except UserError as error:
            problem = f"Some pictures are missing. {error}"
    missing = len(set(ids) - set(pictures))
    if missing and not problem:
        problem = f"{missing} pictures are missing: the data set at {data['path']} has changed since."
    return pictures, problem
