"""Scoring a run's best checkpoint on any data set."""

from dataclasses import replace
from pathlib import Path

from data_pipeline.catalog import SPLITS
from data_pipeline.stream.stream import Topology
from trainer.learners.topology import leave_processes
from trainer.metrics.classification import format_scores
from trainer.metrics.corruption import format_corruptions
from trainer.metrics.evaluation import save_evaluation
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.classification.corruptions import CORRUPTIONS
from trainer.tasks.classification.evaluation import evaluate, scoring_batch
from trainer.tasks.classification.load import load_classifier, tell_if_uncalibrated
from trainer.tasks.classification.model_card import write_model_card
from trainer.tasks.classification.report import write_run_report


def score_run(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Score a classifier's best checkpoint; writes the record, the model card and the report."""
    trained = load_classifier(run)
    if topology.rank == 0:
        tell_if_uncalibrated(trained)
    dataset = config.open_dataset(trained.config)
    splits = SPLITS if config.split == "all" else (config.split,)
    domains = trained.config.data.domains if config.domain is None else [config.domain]
    if config.domain is None and config.shards is not None:
        domains = None
    rows = dataset.samples(
        splits=splits, domains=domains, cell_types=trained.cell_types, folds=config.folds, columns=["id"]
    )
    place, remedy = f"split {config.split}", "score images that it has not seen"
    seen = unseen(learned_by_run(run), dataset, rows["id"].tolist(), config.seen_images, place, remedy)
    record, frame = evaluate(
        trained.network.to(topology.device),
        trained.checkpoint,
        dataset,
        replace(trained.config.data, domains=domains),
        splits=splits,
        cell_types=trained.cell_types,
        batch=scoring_batch(trained.config.train),
        topology=topology,
        calibration=trained.calibration,
        seen=seen,
        normalizer=trained.normalizer,
        folds=config.folds,
        corruptions=CORRUPTIONS if config.corruptions else (),
    )
    leave_processes()
    if topology.rank != 0:
        return
    same_data = dataset.content_hash == trained.dataset_hash
    own_test = same_data and config.split == "test" and domains == trained.config.data.domains and not config.folds
    path = save_evaluation(run, record, frame, own_test=own_test)
    write_model_card(run)
    say(seen, "scores")
    print(format_scores(record.scores))
    if record.corruptions is not None:
        print(format_corruptions(record.corruptions))
    print(f"{path.resolve()}\n{write_run_report(run).resolve()}")
