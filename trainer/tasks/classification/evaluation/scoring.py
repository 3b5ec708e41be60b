"""Scoring the best checkpoint of a run, or of several runs together, on any data set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from data_pipeline.catalog import SPLITS
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Topology
from trainer.learners.topology import leave_processes
from trainer.metrics.classification import format_scores
from trainer.metrics.corruption import format_corruptions
from trainer.metrics.evaluation import save_evaluation
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.classification.evaluation.corruptions import CORRUPTIONS
from trainer.tasks.classification.evaluation.evaluate import evaluate
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.reports.model_card import write_model_card
from trainer.tasks.classification.reports.report import write_run_report


def score_runs(runs: Sequence[Path], out: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Score one run, or several as an ensemble; writes the record and the report into `out`.

    Where that is the run, its model card too.
    """
    ensemble = Ensemble.load(runs, config.views)
    if topology.rank == 0:
        ensemble.tell_if_uncalibrated()
    first = ensemble.members[0]
    dataset = config.open_dataset(first.config)
    splits = SPLITS if config.split == "all" else (config.split,)
    domains = _domains(ensemble) if config.domain is None else [config.domain]
    if config.domain is None and config.shards is not None:
        domains = None
    rows = dataset.samples(
        splits=splits, domains=domains, cell_types=ensemble.cell_types, folds=config.folds, columns=["id"]
    )
    place, remedy = f"split {config.split}", "score images that it has not seen"
    seen = unseen(_learned(runs), dataset, rows["id"].tolist(), config.seen_images, place, remedy)
    record, frame = evaluate(
        ensemble,
        dataset,
        replace(first.config.data, domains=domains),
        splits=splits,
        topology=topology,
        seen=seen,
        folds=config.folds,
        corruptions=CORRUPTIONS if config.corruptions else (),
    )
    leave_processes()
    if topology.rank != 0:
        return
    into_run = list(runs) == [out]
    same_data = dataset.content_hash == first.dataset_hash and ensemble.views == 1 and into_run
    own_test = same_data and config.split == "test" and domains == first.config.data.domains and not config.folds
    path = save_evaluation(out, record, frame, own_test=own_test)
    if into_run:
        write_model_card(out)
    say(seen, "scores")
    print(format_scores(record.scores))
    if record.corruptions is not None:
        print(format_corruptions(record.corruptions))
    print(f"{path.resolve()}\n{write_run_report(out).resolve()}")


def _domains(ensemble: Ensemble) -> list[str] | None:
    """Those that the members were trained on; None: all."""
    each = [member.config.data.domains for member in ensemble.members]
    named = [domains for domains in each if domains is not None]
    return None if len(named) < len(each) else list(dict.fromkeys(domain for domains in named for domain in domains))


def _learned(runs: Sequence[Path]) -> LearnedImages:
    """The images that any of the runs has seen."""
    if len(runs) == 1:
        return learned_by_run(runs[0])
    return LearnedImages.joined([learned_by_run(run).through(str(run)) for run in runs])
