"""Results of a reproduction as one record, read from its runs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from trainer.experiments.machine import describe_machine
from trainer.experiments.method_stages import CellTypeRoles
from trainer.experiments.reproduction import AUDIT_FILE, Reproduction
from trainer.experiments.reproduction_stages import SITE_ARMS, Scored
from trainer.experiments.results import SWEEP_FILE
from trainer.experiments.stages import in_order
from trainer.experiments.summary import SweepSummary, summarize
from trainer.loop.log import logged_seconds, read_records
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.classification import score
from trainer.metrics.evaluation import PROBABILITY, load_evaluations
from trainer.metrics.records import read_record
from trainer.runs import registry
from trainer.runs.network_size import parameters_of
from trainer.tasks.classification.reports.control_record import ControlRecord, read_control
from trainer.tasks.generation.records import BankEvaluation

Answered = tuple[pd.DataFrame, tuple[str, ...]]  # predictions, types of the classifier


@dataclass(frozen=True)
class ModelResult:
    """A trained and scored model."""

    run: str  # relative to the reproduction
    bank: str | None  # the generated images that were scored
    record: BankEvaluation | dict[str, Any]  # of evaluate.py; a dictionary for a stain run
    seconds: float  # of training, adaptation to rare types included
    steps: int  # of training, without the adaptation
    parameters: dict[str, int]  # network -> number of its weights

    @property
    def evaluation(self) -> BankEvaluation:
        """The scores of its bank."""
        assert isinstance(self.record, BankEvaluation), "a stain run has no bank"
        return self.record

    @property
    def directions(self) -> dict[str, Any]:
        """The scores of a stain run."""
        assert isinstance(self.record, dict), "a generator of cells has no directions"
        return dict(self.record["directions"])

    @property
    def feature_space(self) -> str:
        """Name of the feature space in which distances between image sets are computed."""
        return str(self.record["feature_space"] if isinstance(self.record, dict) else self.record.feature_space)


@dataclass(frozen=True)
class SiteResult:
    """Scores of an arm's classifiers on raw test images of one stain, all seeds together."""

    arm: str
    title: str
    trained_on: str  # stain, or "both"
    tested_on: str  # stain
    accuracy: Estimate
    balanced_accuracy: Estimate
    sensitivity: dict[str, Estimate]  # of the types that the images have
    groups: int
    count: int  # images
    seeds: int


@dataclass(frozen=True)
class ControlResult:
    """What an arm reaches under the thesis's protocol. Not a score: its test images are not apart from training."""

    arm: str
    generator_seed: int | None  # None: no generator made any of its images
    seed: int
    record: ControlRecord


@dataclass(frozen=True)
class ReproductionSummary:
    """results.json, of what is done."""

    preset: str
    note: str
    dataset: str
    content_hash: str
    stains: tuple[str, str]
    roles: CellTypeRoles
    machine: dict[str, Any]  # that wrote the report
    counts: dict[str, dict[str, dict[str, int]]]  # type -> stain -> split -> real images
    models: dict[str, dict[str, ModelResult]]  # kind -> name
    ablation: SweepSummary
    comparison: SweepSummary | None  # None: not begun
    sites: list[SiteResult]  # empty until all are done
    controls: list[ControlResult]  # no score is computed from them
    audit: dict[str, Any] | None  # of audit.py; None: not done
    to_run: list[str]  # stages that are not done


def summarize_reproduction(plan: Reproduction) -> ReproductionSummary:
    """Everything that the report shows. UserError if the ablation has not begun or a file is damaged."""
    folder, stages, audit = plan.folder, plan.stages_folder, plan.folder / AUDIT_FILE
    return ReproductionSummary(
        preset=plan.where.stem,
        note=plan.config.note,
        dataset=plan.dataset.address,
        content_hash=plan.dataset.content_hash,
        stains=plan.stains,
        roles=plan.roles,
        machine=describe_machine(),
        counts=_counts(plan.dataset),
        models={
            kind: {name: _model(plan, scored) for name, scored in models.items() if scored.score.done(stages)}
            for kind, models in plan.models.items()
        },
        ablation=summarize(folder / "ablation"),
        comparison=summarize(folder / "comparison") if (folder / "comparison" / SWEEP_FILE).is_file() else None,
        sites=_sites(plan) if all((each.score or each.run).done(stages) for each in plan.sites) else [],
        controls=[
            ControlResult(each.arm, each.generator_seed, each.seed, read_control(folder / plan.place(each.run)))
            for each in plan.controls
            if each.run.done(stages)
        ],
        audit=json.loads(audit.read_text(encoding="utf-8")) if audit.is_file() else None,
        to_run=[stage.name for stage in in_order(plan.stages, stages)],
    )


def _counts(dataset: Dataset) -> dict[str, dict[str, dict[str, int]]]:
    rows = dataset.samples(columns=["cell_type", "domain", "split"])
    found = rows.value_counts(["cell_type", "domain", "split"])
    domains = sorted(rows["domain"].unique())
    return {
        name: {domain: {split: int(found.get((name, domain, split), 0)) for split in SPLITS} for domain in domains}
        for name in CELL_TYPES
    }


def _model(plan: Reproduction, scored: Scored) -> ModelResult:
    place, bank = plan.place(scored.run), plan.place(scored.bank) if scored.bank else None
    run = plan.folder / place
    records = sorted((plan.folder / (bank or place) / "evaluation").glob("*.json"))
    if not records:
        raise UserError(f"{run}: not scored: run reproduce.py again")
    logs = registry.task(scored.run.settings.kind).logs(run)
    return ModelResult(
        place,
        bank,
        read_record(BankEvaluation, records[-1]) if bank else json.loads(records[-1].read_text(encoding="utf-8")),
        sum(map(logged_seconds, logs)),
        max((record["step"] for record in read_records(run)), default=0),
        parameters_of(logs),
    )


def _sites(plan: Reproduction) -> list[SiteResult]:
    """One result for each arm, training site and tested stain.

    All answers of a classifier to a stain's test images count: those of the run's own test split, normalised in the
    data set, and those of raw images that the run's normaliser prepared afterwards.
    """
    to, of = plan.stains
    raw_stain = {to: to, of: of, f"{of}_as_{to}": of, f"{to}_as_{of}": to}
    answers: dict[tuple[str, str, str], list[Answered]] = {}
    for arm, site, place in plan.site_runs():
        run = plan.folder / place
        for evaluation in load_evaluations(run):
            frame = evaluation.predictions
            if frame is None:
                raise UserError(f"{run}/evaluation: {evaluation.name}.parquet is missing: score it again")
            types = tuple(evaluation.record.cell_types)
            for stain, rows in frame.groupby(frame["domain"].map(raw_stain)):
                answers.setdefault((arm, site, str(stain)), []).append((rows, types))
    return [_site(*key, parts) for key, parts in answers.items()]


def _site(arm: str, trained_on: str, tested_on: str, parts: Sequence[Answered]) -> SiteResult:
    """Scores of all seeds' answers together: an image's group holds its answers of every seed."""
    types = parts[0][1]
    frame = pd.concat([rows for rows, _ in parts])
    raw = frame["parent"].where(frame["parent"] != "", frame["id"])
    groups = frame["group"].where(frame["group"] != "", raw)
    numbers = {name: number for number, name in enumerate(types)}
    found = score(
        frame[[f"{PROBABILITY}{name}" for name in types]].to_numpy(dtype=np.float64),
        frame["cell_type"].map(numbers).to_numpy(np.int64),
        groups.tolist(),
        types,
    )
    return SiteResult(
        arm,
        SITE_ARMS[arm].title,
        trained_on,
        tested_on,
        found["accuracy"],
        found["balanced_accuracy"],
        {name: row["sensitivity"] for name, row in found.per_type.items() if row.count},
        found.groups,
        len(frame) // len(parts),
        len(parts),
    )
