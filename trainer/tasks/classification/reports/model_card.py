"""A run's model card: what the classifier is for and not for, what it learned from, how far it can be trusted."""

import dataclasses
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import replace_through
from data_pipeline.sources import layouts
from models.classifiers.architectures.timm import pretrained_config
from models.classifiers.config import ClassifierConfig
from trainer.metrics.classification import Scores
from trainer.metrics.evaluation import CalibrationRecord, SavedEvaluation, load_evaluations
from trainer.metrics.measures import measures, shown
from trainer.reports.evaluation_section import data_facts, data_words
from trainer.runs.arguments import written
from trainer.runs.record import RunRecord
from trainer.runs.training_data import read_training_data
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.reports.adaptation_record import Adaptation, read_adaptation
from trainer.tasks.classification.reports.adaptation_section import facts_of, table_of

Made = RunRecord[ClassifierRunConfig]

MODEL_CARD = "model_card.md"
# Below these the card warns that a type's score says little.
FEW_TRAINING_IMAGES = 100
FEW_TEST_IMAGES = 30
# The card names sensitivities whose interval is wider than this share of 1.
WIDE_INTERVAL = 0.1
_FRONT_MATTER = {
    "pipeline_tag": "image-classification",
    "tags": ["blood-smear", "single-cell", "hematology", "research-only"],
}


def write_model_card(run: Path) -> Path:
    """Write run/model_card.md from config.yaml, training_data.json and the evaluations; return its path.

    UserError when the folder is no run of train_classifier.py, or one of these files is damaged.
    """
    made: Made = RunRecord.read(run, ClassifierRunConfig.kind)
    path = run / MODEL_CARD
    card = model_card(run.resolve().name, made, read_training_data(run), load_evaluations(run), read_adaptation(run))
    replace_through(path, card.encode())
    return path


def model_card(
    name: str,
    made: Made,
    trained_on: Mapping[str, Any] | None,
    evaluations: Sequence[SavedEvaluation],
    adaptation: Adaptation | None,
) -> str:
    """The text of a card. name: its title. adaptation: of a run that adapt.py wrote."""
    parts = [
        f"---\n{yaml.safe_dump(_FRONT_MATTER, sort_keys=False)}---",
        f"# {name}",
        _use(made, trained_on),
        _training_data(made, trained_on),
        _training(made.config),
        "" if adaptation is None else _adaptation(adaptation),
        *(_scores(evaluation) for evaluation in evaluations),
        _limits(made.cell_types, trained_on, evaluations),
        _licences(made.config.model, trained_on),
        f"## To reproduce\n\nOn the data set of content {made.dataset_hash}:\n\n```sh\n"
        f"{command(made.config) if adaptation is None else adaptation.command}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def command(config: ClassifierRunConfig) -> str:
    """The shell command of a run: every setting is an argument, so later defaults change nothing."""
    arguments = [f"{name}={written(value)}" for name, value in _settings(dataclasses.asdict(config))]
    return " \\\n    ".join(["accelerate launch launchers/train_classifier.py", *map(shlex.quote, arguments)])


def _settings(values: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and name != "data.crop":  # one argument, a table
            yield from _settings(value, f"{name}.")
        else:
            yield name, value


def _use(made: Made, trained_on: Mapping[str, Any] | None) -> str:
    types = made.cell_types
    unknown = [name for name in CELL_TYPES if name not in types]
    lines = [
        f"`{made.config.model.name}`, a classifier of single white and red blood cells and platelets, trained with "
        "HemaForge.",
        "## Use",
        "For research on images that show one cell, cut from stained blood smears. **Not a medical device**: not for "
        "diagnosis, nor for any decision about a patient. Not for whole slides or fields of view, other tissues, or "
        "stains, microscopes and magnifications that it was not scored on below.",
        f"It knows {len(types)} types: {', '.join(types)}. It names every image one of these"
        + (f"; of the types that this project names it does not know {', '.join(unknown)}." if unknown else "."),
    ]
    side = made.config.data.image_size
    if trained_on is not None:
        seen = [f"{domain} ({_scale(facts)})" for domain, facts in trained_on["domains"].items()]
        lines.append(f"Stains (domains) in training: {'; '.join(seen)}. Images enter at {side} px.")
    if made.normalizer is not None:
        lines.append(f"Raw images of another stain go through `{made.normalizer}`, beside this card, first.")
    return "\n\n".join(lines)


def _scale(facts: Mapping[str, Any]) -> str:
    scales = facts["microns_per_pixel"]
    return f"{', '.join(f'{scale:g}' for scale in scales)} µm per raw pixel" if scales else "magnification not recorded"


def _training_data(made: Made, trained_on: Mapping[str, Any] | None) -> str:
    heading = "## Training data"
    if trained_on is None:
        return f"{heading}\n\nData set of content {made.dataset_hash}; nothing else of it was recorded."
    sources = ", ".join(f"{source['name']} ({source['domain']})" for source in trained_on["sources"])
    ratio = "an unknown ratio" if trained_on["ratio"] is None else "/".join(f"{s:g}" for s in trained_on["ratio"])
    made_by = trained_on["made_by"]
    facts = [
        ("data set", f"{trained_on['data_set']}, content {trained_on['content_hash']}"),
        ("sources", sources or "not recorded"),
        ("made by", made_by if isinstance(made_by, str) else _flat_text(made_by)),
        ("stored as", _flat_text(trained_on["stored"])),
        ("splits", f"by a hash of the patient or slide, training/validation/test {ratio}; near duplicates taken out"),
        *((f"bank {bank['name']}", _flat_text(bank["made_by"])) for bank in trained_on["banks"]),
    ]
    for name, domain in trained_on["domains"].items():
        words = f"{domain['images']} images in {domain['groups']} groups, {domain['without_group']} without a known "
        facts.append((f"domain {name}", f"{words}patient or slide"))
    images: dict[str, list[int]] = {}
    for cell_type in made.cell_types:
        counted = _counts(trained_on, cell_type)
        training = [counted["train", origin] for origin in ("real", "normalized", "synthetic")]
        held_out = [counted[split, "real"] + counted[split, "normalized"] for split in ("validation", "test")]
        images[cell_type] = [*training, *held_out]
    head = ["images", "real", "normalised", "synthetic", "validation", "test"]
    totals = ["all", *map(sum, zip(*images.values(), strict=True))]
    rows = [*([name, *counts] for name, counts in images.items()), totals]
    return "\n\n".join([heading, _facts(facts), "Training images by origin, and held-out ones:", _table(head, rows)])


def _counts(trained_on: Mapping[str, Any], cell_type: str) -> Counter[tuple[str, str]]:
    """(split, origin) -> images of the type."""
    counted: Counter[tuple[str, str]] = Counter()
    for row in trained_on["counts"]:
        if row["cell_type"] == cell_type:
            counted[row["split"], row["origin"]] += row["images"]
    return counted


def _training(config: ClassifierRunConfig) -> str:
    data = config.data
    facts = [
        ("model", _flat_text(dataclasses.asdict(config.model))),
        ("initial weights", config.model.weights or "random"),
        ("images", f"{data.image_size} px, {data.sampling} sampling, crop {data.crop or 'none'}"),
        ("augmentation", _flat_text(dataclasses.asdict(config)["data"]["augment"])),
        ("optimiser", _flat_text(dataclasses.asdict(config.optimizer))),
        ("training", _flat_text(dataclasses.asdict(config.train))),
        ("seed", config.seed),
    ]
    return f"## Training\n\n{_facts(facts)}"


def _adaptation(adaptation: Adaptation) -> str:
    """What the run was adapted from and to; the training above is that of the run it was adapted from."""
    parts = ["## Adaptation", _facts(facts_of(adaptation)), *adaptation.advice]
    caption, head, rows = table_of(adaptation)
    if rows:
        parts += [caption, _table(head, rows)]
    return "\n\n".join(parts)


def _scores(evaluation: SavedEvaluation) -> str:
    """One evaluation: what it is of, every measure over all types, and of each type."""
    record, scores = evaluation.record, evaluation.record.scores
    overall = [[each.label, each.format(scores[each.name], brackets=True)] for each in measures().values()]
    cell_type, share = _constant_answer(scores)
    overall.append([f"accuracy of always answering {cell_type}", f"{100 * share:.1f}"])
    columns = shown("types")
    rows = [
        [name, row.count, row.groups, *(each.format(row[each.name], brackets=True) for each in columns)]
        for name, row in scores.per_type.items()
    ]
    parts = [
        f"## Scores: {'own test split' if evaluation.is_own_test else data_words(record)}",
        _facts(data_facts(record).rows),
        "In per cent where no unit is named, with 95 % intervals over groups.",
        _table(["over all types", "score"], overall),
        _table(["type", "images", "groups", *(each.name.replace("_", " ") for each in columns)], rows),
        "### Calibration",
        _facts(_calibration(record.calibration)),
    ]
    return "\n\n".join(parts)


def _calibration(calibration: CalibrationRecord) -> list[tuple[str, Any]]:
    before = {measures()[name]: estimate for name, estimate in calibration.uncalibrated.measures.items()}
    return [
        ("temperature", f"{calibration.temperature:.6g}"),
        ("validation images", calibration.validation_images),
        ("remark", calibration.remark),
        *((f"uncalibrated: {each.label}", each.format(found, brackets=True)) for each, found in before.items()),
    ]


def _constant_answer(scores: Scores) -> tuple[str, float]:  # the commonest type and its share of the images
    name, row = max(scores.per_type.items(), key=lambda item: item[1].count)
    return name, row.count / scores.count


def _limits(
    cell_types: Sequence[str], trained_on: Mapping[str, Any] | None, evaluations: Sequence[SavedEvaluation]
) -> str:
    lines = [] if trained_on is None else [*_limits_of_data(cell_types, trained_on)]
    if not any(evaluation.is_own_test for evaluation in evaluations):
        lines.append("The run's own test split has not been scored.")
    for evaluation in evaluations:
        name = "own test split" if evaluation.is_own_test else evaluation.name
        lines += [f"{name}: {line}" for line in _limits_of_scores(evaluation.record.scores)]
        unchecked = evaluation.record.seen_images.unchecked
        lines += [f"{name}: not checked whether all images are unseen: {line}." for line in unchecked]
    listed = "\n".join(f"- {line}" for line in lines) or "None of those that this card looks for."
    return f"## Limits\n\n{listed}"


def _limits_of_data(cell_types: Sequence[str], trained_on: Mapping[str, Any]) -> Iterable[str]:
    counts = {name: _counts(trained_on, name) for name in cell_types}
    for name, counted in counts.items():
        count = sum(images for (split, _), images in counted.items() if split == "train")
        if count < FEW_TRAINING_IMAGES:
            yield f"{name}: few training images, {count}."
    if made := [name for name, counted in counts.items() if counted["train", "synthetic"]]:
        yield f"Generated images are among the training images of {', '.join(made)}; no score is on them."
    if alone := sum(facts["without_group"] for facts in trained_on["domains"].values()):
        yield (
            f"Of {alone} images no patient or slide is known: cells of one patient may lie on both sides of the "
            "split, and scores on such images may be too good for new patients."
        )


def _limits_of_scores(scores: Scores) -> Iterable[str]:
    for name in scores.absent:
        yield f"no image of {name}: how well it is known was not measured, and it is not in the means."
    measured = {name: row for name, row in scores.per_type.items() if row.count}
    if few := [f"{name} ({row.count})" for name, row in measured.items() if row.count < FEW_TEST_IMAGES]:
        yield f"scored on few images: {', '.join(few)}."
    wide, unknown = [], []
    for name, row in measured.items():
        sensitivity = row["sensitivity"]
        if sensitivity.low is None or sensitivity.high is None:
            unknown.append(name)
        elif sensitivity.high - sensitivity.low > WIDE_INTERVAL:
            wide.append(f"{name} {sensitivity.format(brackets=True)}")
    if wide:
        yield f"wide intervals of the sensitivity, over {100 * WIDE_INTERVAL:g} points: {', '.join(wide)}."
    if unknown:
        yield f"no interval of the sensitivity, all images being of one group or alike: {', '.join(unknown)}."
    name, share = _constant_answer(scores)
    if share > 0.5:
        yield (
            f"{100 * share:.1f} % of the images are {name}, so always answering {name} has that accuracy: look at "
            "balanced accuracy and at each type."
        )


def _flat_text(values: Mapping[str, Any]) -> str:
    """'name adamw; learning rate 0.001': values as arguments have them, empty ones left out."""
    flat = [(name.replace("_", " ").replace(".", ", "), value) for name, value in _settings(values)]
    return "; ".join(f"{name} {written(value)}" for name, value in flat if value not in ("", None))


def _licences(model: ClassifierConfig, trained_on: Mapping[str, Any] | None) -> str:
    """Licences and citations of public images and weights that it learned from; '' for none."""
    sources = {} if trained_on is None else {source["kind"]: source["name"] for source in trained_on["sources"]}
    known = {kind: layouts()[kind].licence for kind in sources if kind in layouts()}
    lines = [f"Images of {sources[kind]}: {licence}" for kind, licence in known.items() if licence]
    # A file that is named after timm's model holds its weights.
    if model.timm_name and model.weights and Path(model.weights).stem in ("pretrained", model.timm_name):
        licence = pretrained_config(model.timm_name).license or "licence not stated"
        lines.append(f"Weights that the training began with: ImageNet weights of timm's {model.timm_name}, {licence}.")
    listed = "\n".join(f"- {line}" for line in lines)
    return f"## Licences and citations\n\n{listed}" if lines else ""


def _facts(rows: Sequence[tuple[str, Any]]) -> str:
    return _table(["", ""], rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
