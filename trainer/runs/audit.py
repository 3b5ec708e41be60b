"""Audit of a classifier's scores: are they of real, unseen images? Compares records, catalogues and training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipeline.audit_check import Check, named
from data_pipeline.catalog import SPLITS, Dataset, Sample, from_table
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, SeenImages
from data_pipeline.lineage import normalization_needs_label
from trainer.metrics.evaluation import PROBABILITY, ClassifierEvaluation, SavedEvaluation, load_evaluations
from trainer.runs.provenance import learned_by_run

_SEEN = "or its group was used to train or choose the classifier, or is a copy of what was"
_REMEDY = "do not use this score: remove the record and score the run again with evaluate.py"


def audit_run(folder: Path, here: Dataset | None, open_dataset: Callable[[str], Dataset]) -> list[Check]:
    """Look up every image with a prediction in the run's evaluation records; a check for each record.

    The run says itself what it, and all that it began with, learned from. here: a data set that is open already.
    open_dataset: opens the one that a record names. UserError for no record, and for one that cannot be read.
    """
    evaluations = load_evaluations(folder)
    if not evaluations:
        raise UserError(f"{folder}: no evaluation there yet: score the run with evaluate.py first")
    learned = learned_by_run(folder)
    return [_check_evaluation(evaluation, learned, here, open_dataset) for evaluation in evaluations]


def _check_evaluation(
    evaluation: SavedEvaluation, learned: LearnedImages, here: Dataset | None, open_dataset: Callable[[str], Dataset]
) -> Check:
    name = f"evaluation {evaluation.name}"
    data, answers = evaluation.record.dataset, evaluation.predictions
    checked = (
        f"predictions of {data.split} images of {data.name}, each real and no copy of one of the "
        f"{len(learned)} images that the run and what it began with were trained on or chosen by"
    )
    if answers is None:
        why = f"{evaluation.name}.parquet, its predictions, cannot be read: score the run again"
        return Check(name, checked, 0, unknown=why)
    try:
        is_here = here is not None and data.content_hash == here.content_hash
        dataset = here if here is not None and is_here else open_dataset(data.path)
    except UserError as error:
        found = [f"{identity[:16]} {_SEEN}" for identity in learned.ids_among(answers)]
        return Check(name, checked, len(answers), tuple(found), _REMEDY, unknown=str(error))
    if dataset.content_hash != data.content_hash:
        why = f"{data.path} is another data set now (content {dataset.content_hash[:12]}): bring the scored one back"
        return Check(name, checked, len(answers), unknown=why)
    rows = {row.id: row for row in from_table(dataset.table) if row.kept}
    # Groups are those of the catalogue: a group forged in the record hides nothing.
    seen = learned.seen_among(dataset, rows)
    try:
        found = _find(evaluation.record, answers, dataset, rows, seen)
    except (KeyError, TypeError, ValueError) as error:
        found = [f"the record is not one of evaluate.py ({type(error).__name__}: {error})"]
    found += [
        f"{named(rows[identity])} {_SEEN}{through and f', through {through}'}"
        for identity in answers["id"]
        if (through := seen.through.get(identity)) is not None
    ]
    return Check(name, checked, len(answers), tuple(found), _REMEDY, unknown="; ".join(seen.unchecked))


def _find(
    record: ClassifierEvaluation,
    answers: pd.DataFrame,
    dataset: Dataset,
    rows: Mapping[str, Sample],
    seen: SeenImages,
) -> list[str]:
    """Contradictions between the catalogue, a record and its predictions.

    rows: the data set's kept ones, by id. seen: images that a record may say were left out.
    """
    found = [f"{identity[:16]} is counted twice" for identity in answers["id"][answers["id"].duplicated()]]
    splits, folds = _splits_of(record.dataset.split)
    domains, types = record.dataset.domains, record.cell_types
    by_label = normalization_needs_label(dataset)
    for identity, label in zip(answers["id"], answers["cell_type"], strict=True):
        row = rows.get(identity)
        if row is None:
            found.append(f"{identity[:16]} is not in the data set")
            continue
        wrong = []
        if row.origin == "synthetic":
            wrong.append("is synthetic")
        if row.origin == "normalized" and record.normalizer is None:
            wrong.append("is normalised, and the record names no normaliser")
        if row.origin == "normalized" and by_label:
            wrong.append("was normalised by its label")
        if row.split not in splits or (folds is not None and row.fold not in folds):
            wrong.append(f"is of fold {row.fold} and of a split that was not to be scored")
        if row.domain not in domains:
            wrong.append(f"is of domain {row.domain}")
        if row.cell_type != label:
            wrong.append(f"is {row.cell_type or 'unlabelled'}, not {label}")
        found += [f"{named(row)} {words}" for words in wrong]
    expected = dataset.samples(splits=splits, domains=domains, cell_types=types, folds=folds, columns=["id"])
    left_out = list(seen.through) if record.seen_images.left_out else []
    missing = ~expected["id"].isin(answers["id"]) & ~expected["id"].isin(left_out)
    if missing.any():
        found.append(
            f"{int(missing.sum())} images of that split were left out, first {expected['id'][missing].iloc[0][:16]}"
        )
    return found + _recount(record, answers)


def _recount(record: ClassifierEvaluation, answers: pd.DataFrame) -> list[str]:
    """Contradictions of the record's counts and confusion with its predictions."""
    found, scores, types = [], record.scores, record.cell_types
    for place, count in (("data set", record.dataset.count), ("scores", scores.count)):
        if count != len(answers):
            found.append(f"the record's {place} says {count} images, there are predictions of {len(answers)}")
    number = {name: position for position, name in enumerate(types)}
    truth, said = (answers[name].map(number).to_numpy(dtype=int) for name in ("cell_type", "predicted"))
    confusion = np.zeros((len(types), len(types)), dtype=int)
    np.add.at(confusion, (truth, said), 1)
    probabilities = answers[[f"{PROBABILITY}{name}" for name in types]].to_numpy()
    # Rounding to float32 may have made two equal.
    if (probabilities[np.arange(len(said)), said] < probabilities.max(axis=1)).any():
        found.append("an answer is not the type of the highest probability beside it")
    if confusion.tolist() != scores.confusion:
        found.append("the record's confusion is not that of its predictions")
    return found


def _splits_of(words: str) -> tuple[list[str], list[int] | None]:
    """Splits and folds of a record's split: 'test', 'train+validation+test-folds0+1'."""
    splits, _, folds = words.partition("-folds")
    names = splits.split("+")
    if not set(names) <= set(SPLITS):
        raise ValueError(f"split {words!r}")
    return names, [int(fold) for fold in folds.split("+")] if folds else None
