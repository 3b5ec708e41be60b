"""Score a trained classifier on real images of a data set, and renew its report.

usage:
  accelerate launch launchers/evaluate.py run=DIR [shards=DIR] [split=test] [domain=NAME]
      run=DIR       a run of train_classifier.py; its best checkpoint is scored
      shards=DIR    the data set; default: the one that the run was trained on
      split=test    or validation, train, all; images that trained or chose the classifier are refused
      domain=NAME   only the images of this stain
      folds=[0,1]   only the images of these folds, of the five that all images are dealt into
  Writes RUN/evaluation/metrics.json for the run's own test split, RUN/evaluation/<data set>-<split>-<domain>.json
  for anything else, and RUN/report.html.

example:
  accelerate launch launchers/evaluate.py run=runs/barcelona shards=data/blood split=all domain=munich
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.classifier_training import load_classifier, scoring_batch
from trainer.evaluation import evaluate, refuse_training_images
from trainer.metrics.classification import format_scores
from trainer.metrics.evaluation import save_evaluation
from trainer.report import write_run_report
from trainer.topology import join_processes, leave_processes


@dataclass(frozen=True)
class EvaluateConfig:
    """What to score."""

    run: str | None = None
    shards: str | None = None
    split: Literal["test", "validation", "train", "all"] = "test"
    domain: str | None = None
    folds: list[int] | None = None


def main(arguments: Sequence[str]) -> None:
    config = read_config(EvaluateConfig, "evaluate", arguments)
    if not config.run:
        raise UserError("no run=DIR given: name a run of train_classifier.py")
    run, topology = Path(config.run), join_processes()
    trained = load_classifier(run)
    own = Dataset.open(Path(str(trained.config.shards)))
    dataset = own if config.shards is None else Dataset.open(Path(config.shards))
    splits = SPLITS if config.split == "all" else (config.split,)
    domains = trained.config.data.domains if config.domain is None else [config.domain]
    if config.domain is None and config.shards is not None:
        domains = None
    refuse_training_images(own, trained.config.data, dataset, domains, splits)
    result, frame = evaluate(
        trained.network.to(topology.device),
        trained.checkpoint,
        dataset,
        replace(trained.config.data, domains=domains),
        splits=splits,
        cell_types=trained.cell_types,
        batch=scoring_batch(trained.config.train),
        topology=topology,
        normalizer=trained.normalizer,
        folds=config.folds,
    )
    leave_processes()
    if topology.rank != 0:
        return
    same_data = dataset.content_hash == trained.dataset_hash
    own_test = same_data and config.split == "test" and domains == trained.config.data.domains and not config.folds
    path = save_evaluation(run, result, frame, own_test=own_test)
    print(format_scores(result["scores"]))
    print(f"{path.resolve()}\n{write_run_report(run).resolve()}")


if __name__ == "__main__":
    launch(main, __doc__)
