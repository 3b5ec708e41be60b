"""One evaluation of a classifier as blocks of a page: scores, figures 53 to 57, confusion, trust."""

from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.classification import TRUST, Scores
from trainer.metrics.evaluation import (
    HEAT,
    PROBABILITY,
    RIGHT_PER_TYPE,
    ClassifierEvaluation,
    SavedEvaluation,
    ScoredData,
    SeenRecord,
    shown_cells,
)
from trainer.metrics.measures import Measure, measures, shown
from trainer.reports import figures
from trainer.reports.gallery import HEAT_WORDS, NO_PICTURE, prediction_card, thumbnail, type_numbers
from trainer.reports.page import (
    Block,
    Card,
    Cards,
    Cell,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    estimate_cell,
)
from trainer.reports.uncertainty_section import uncertainty_blocks


def data_words(record: ClassifierEvaluation) -> str:
    """'barcelona, test split, domain giemsa, 1200 images': what every number names."""
    data = record.dataset
    word = "domain" if len(data.domains) == 1 else "domains"
    normalised = "" if record.normalizer is None else f", normalised by {_normalizer(record)}"
    views = f", {record.views} views of each" if record.views > 1 else ""
    domains = ", ".join(data.domains) or "all"
    return f"{data.name}, {data.split} split, {word} {domains}, {data.count} images{views}{normalised}"


def data_facts(record: ClassifierEvaluation) -> Facts:
    """The lines that name an evaluation's data, checkpoint and normaliser."""
    data, scores, calibration = record.dataset, record.scores, record.calibration
    fitted = calibration.remark or f"fitted on {calibration.validation_images} validation images"
    rows = [
        ("data set", f"{data.path} (content {data.content_hash[:12]})"),
        ("split", f"{data.split}, domains: {', '.join(data.domains) or 'all'}"),
        ("scored", f"{scores.count} images in {scores.groups} groups"),
    ]
    if record.not_scored:
        left = ", ".join(f"{count} {cell_type or 'unlabelled'}" for cell_type, count in record.not_scored.items())
        rows.append(("not scored", f"{left}: not among the model's types"))
    scored = [(f"member {each.run}", each.checkpoint) for each in record.members] or [("checkpoint", record.checkpoint)]
    rows += [(name, f"{each.file}, step {each.step} (SHA-256 {each.sha256[:12]})") for name, each in scored]
    rows += [
        ("views of each image", str(record.views)),
        ("normaliser", _normalizer(record)),
        ("intervals", f"{scores.interval.method}; {scores.interval.resamples} resamples"),
        ("temperature", f"{calibration.temperature:.3f}, {fitted}"),
        ("unseen", seen_words(record.seen_images)),
    ]
    return Facts(rows)


def seen_words(seen: SeenRecord) -> str:
    """In words: with how many images that the model has seen the scored ones were compared, and what was left out."""
    words = f"compared with {seen.compared_with} images that it, or what it began with, was trained on or chosen by"
    if seen.left_out:
        words += f"; {seen.left_out} images, or their patients or slides, were among them and left out: {seen.why}"
    return "; not checked: ".join([words, *seen.unchecked])


def headline(scores: Scores) -> Tiles:
    """The scores over all types with their intervals."""
    return Tiles(
        [
            Tile(each.label, each.format(scores[each.name]), each.interval(scores[each.name]))
            for each in shown("headline")
        ]
    )


def score_cells(values: Mapping[str, Estimate], columns: Sequence[Measure]) -> list[Cell]:
    """A table cell for each measure, the interval below the value."""
    return [estimate_cell(values[each.name], *each.scale) for each in columns]


def evaluation_section(evaluation: SavedEvaluation) -> Section:
    """Everything about one evaluation; pictures are read from the data set that its record names."""
    record, scores = evaluation.record, evaluation.record.scores
    words = data_words(record)
    # The page's head shows these of the run's own test split.
    blocks: list[Block] = [] if evaluation.is_own_test else [data_facts(record), headline(scores)]
    if scores.absent:
        absent = ", ".join(scores.absent)
        blocks.append(Text(f"No image of {absent} in this data: no score, and not in the means.", warning=True))
    if scores.groups < 2:
        blocks.append(Text("All images are of one group: the scores have no intervals.", warning=True))
    blocks += [
        Figure(
            figures.per_type_bars(scores, evaluation.name),
            "Accuracy (one type against the rest), sensitivity and specificity of each type, with 95 % "
            f"intervals over groups ({words}); compare figures 53 and 54.",
        ),
        _type_table(scores, words),
        _confusion_table(record, words),
        _reliability(evaluation, words),
        _selective(evaluation, words),
        *uncertainty_blocks(evaluation.record.uncertainty, words),
        *_corruptions(evaluation.record, words),
        *_galleries(evaluation, words),
    ]
    title = f"{'Own test split' if evaluation.is_own_test else 'Evaluation'}: {_title_words(record.dataset)}"
    return Section(title, f"Scores on {words}.", blocks)


def _reliability(evaluation: SavedEvaluation, words: str) -> Figure:
    """Calibration, before and after the temperature where one was fitted."""
    scores, calibration = evaluation.record.scores, evaluation.record.calibration
    models, note = [("this model", scores.reliability)], ""
    if calibration.temperature != 1:
        models = [
            (f"at temperature {calibration.temperature:.2f}", scores.reliability),
            ("as trained", calibration.uncalibrated.reliability),
        ]
        note = (
            f" Temperature {calibration.temperature:.3f} was fitted on {calibration.validation_images} "
            "validation images, and all scores are of the probabilities that it gives; as trained: "
            f"{_trust_words(calibration.uncalibrated.measures)}."
        )
    if calibration.remark:
        note += f" Calibration: {calibration.remark}."
    caption = f"Calibration ({words}): {_trust_words(scores.overall)}, in {len(scores.reliability)} bins.{note}"
    return Figure(figures.reliability_diagram(models, evaluation.name), caption)


def _trust_words(found: Mapping[str, Estimate]) -> str:
    """'expected calibration error 3.1 % (2.0 to 4.4), negative log likelihood 0.142 [0.101, 0.187]'."""
    error, likelihood = (found[name] for name in TRUST)
    nats = measures()[TRUST[1]].format(likelihood, brackets=True)
    return f"expected calibration error {error.format()} % ({error.interval()}), negative log likelihood {nats}"


def _selective(evaluation: SavedEvaluation, words: str) -> Figure:
    selective = evaluation.record.scores.selective
    shares = "; ".join(
        f"of the surest {share} %, {estimate.format()} % are right ({estimate.interval()})"
        for share, estimate in selective.accuracy_at_coverage.items()
    )
    area = selective.risk_coverage_area
    caption = (
        f"Selective prediction ({words}): {shares}. Area under the risk-coverage curve (mean share of wrong "
        f"answers over all coverages) {area.format()} % ({area.interval()}). To leave images to a "
        "person, give predict.py a confidence from the right as min_confidence=."
    )
    return Figure(figures.risk_coverage(selective.curve, evaluation.name), caption)


def _corruptions(record: ClassifierEvaluation, words: str) -> list[Block]:
    """Scores on the images as a worse microscope, camera or stain would give them; nothing where not scored."""
    found = record.corruptions
    if found is None:
        return []
    caption = (
        f"Balanced accuracy on corrupted images in per cent, accuracy below ({words}); severity 1 is mild. Mean over "
        f"all kinds and severities: balanced accuracy {100 * found.balanced_accuracy:.1f}, "
        f"accuracy {100 * found.accuracy:.1f}."
    )
    rows = [
        [
            Cell(kind),
            *(Cell(f"{100 * each.balanced_accuracy:.1f}", f"{100 * each.accuracy:.1f}") for each in severities),
        ]
        for kind, severities in found.by_kind.items()
    ]
    head = ["corruption", *(f"severity {each.severity}" for each in next(iter(found.by_kind.values())))]
    return [Table(caption, head, rows)]


def _title_words(data: ScoredData) -> str:
    return f"{data.name}, {data.split}, {', '.join(data.domains) or 'all domains'}"


def _normalizer(record: ClassifierEvaluation) -> str:
    if record.normalizer is None:
        return "none"
    return ", ".join(f"{key} {value}" for key, value in record.normalizer.items())


def _type_table(scores: Scores, words: str) -> Table:
    columns = shown("types")
    rows = [
        [Cell(cell_type), Cell(str(row.count)), Cell(str(row.groups)), *score_cells(row.measures, columns)]
        for cell_type, row in scores.per_type.items()
    ]
    caption = f"Each type against the rest, in per cent, 95 % intervals over groups below ({words})."
    return Table(caption, ["type", "images", "groups", *(each.name.replace("_", " ") for each in columns)], rows)


def _confusion_table(record: ClassifierEvaluation, words: str) -> Table:
    cell_types = record.cell_types
    rows = []
    for index, (cell_type, counts) in enumerate(zip(cell_types, record.scores.confusion, strict=True)):
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


def _galleries(evaluation: SavedEvaluation, words: str) -> list[Block]:
    record, predictions = evaluation.record, evaluation.predictions
    if predictions is None:
        return [Text(f"{evaluation.name}.parquet cannot be read: no single cells are shown.", warning=True)]
    is_right = predictions["cell_type"] == predictions["predicted"]
    right, wrong = shown_cells(predictions, record.cell_types)
    all_shown = pd.concat([right, wrong])
    heat = dict(zip(all_shown["id"], all_shown[HEAT], strict=True)) if HEAT in all_shown else {}
    heat = {name: each for name, each in heat.items() if isinstance(each, bytes)}
    pictures, problem = _pictures(record.dataset, heat, all_shown["id"].tolist())
    key = f"Bars: {type_numbers(record.cell_types)}.{f' {HEAT_WORDS}' if heat else ''}"
    blocks: list[Block] = [Text(problem, warning=True)] if problem else []
    if len(right):
        caption = (
            f"Right answers, {RIGHT_PER_TYPE} of each type drawn at random from {int(is_right.sum())} "
            f"({words}): predicted type with its confidence, true type in brackets; "
            f"compare figures 55 and 56. {key}"
        )
        blocks.append(Cards(caption, _cards(right, record.cell_types, pictures)))
    if not len(wrong):
        return [*blocks, Text(f"No wrong answer ({words}).")]
    caption = (
        f"Wrong answers, the {len(wrong)} most confident of {int((~is_right).sum())} ({words}); "
        f"compare figure 57. Blue: the true type, red: the answer. {key}"
    )
    return [*blocks, Cards(caption, _cards(wrong, record.cell_types, pictures))]


def _cards(rows: pd.DataFrame, cell_types: Sequence[str], pictures: Mapping[str, Markup]) -> list[Card]:
    return [
        prediction_card(
            [row[f"{PROBABILITY}{name}"] for name in cell_types],
            cell_types,
            row["cell_type"],
            pictures.get(row["id"], NO_PICTURE),
            f"{row['source']}/{row['path'].rsplit('/', 1)[-1]}",
        )
        for row in rows.to_dict("records")
    ]


def _pictures(data: ScoredData, heat: Mapping[str, bytes], ids: Sequence[str]) -> tuple[dict[str, Markup], str]:
    """Thumbnails of the ids that the data set still holds, under their heat; and what is missing ('' nothing)."""
    try:
        dataset = Dataset.open(data.path)
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
        problem = f"{missing} pictures are missing: the data set at {data.path} has changed since."
    return pictures, problem
