"""Score a run on real images of a data set, or a bank of generated images against them, and renew its report.

usage:
  accelerate launch launchers/evaluate.py run=DIR [shards=DIR] [split=test] [domain=NAME]
      run=DIR       a run of train_classifier.py, whose best checkpoint is scored, or of train_stain_gan.py
      shards=DIR    the data set, a folder or a URL (cache=DIR cache_size=GB); default: the one of the run's training
      split=test    or validation, train, all; images that trained or chose a classifier are refused
      domain=NAME   only the images of this stain
      folds=[0,1]   only the images of these folds, of the five that all images are dealt into
      features=RUN  for a stain run: a run of train_classifier.py whose features are compared, or
                    features=inception [inception_weights=FILE], the network of FID
  python launchers/evaluate.py bank=DIR shards=DIR classifier=RUN [features=inception] [lpips_weights=FILE]
      bank=DIR        images of synthesize.py, of the types that the data set has real images of
      classifier=RUN  the independent judge: a run of train_classifier.py that has seen real images alone
      features=RUN    what sets of images are compared in: another run, or inception; default: the classifier's
      lpips_weights=FILE  torchvision's AlexNet, for LPIPS; default: the one in torch's cache, else a perceptual
                      distance in the classifier's feature maps takes its place, under a name of its own
  A classifier's scores are of the probabilities that the temperature in RUN/calibration.json gives.
  Writes RUN/evaluation/metrics.json for the run's own test split, RUN/evaluation/<data set>-<split>-<domain>.json
  for anything else, RUN/model_card.md and RUN/report.html; for a bank BANK/evaluation, BANK/report.html and two
  scores of each image into the bank.

example:
  accelerate launch launchers/evaluate.py run=runs/barcelona shards=data/blood split=all domain=munich
  python launchers/evaluate.py run=runs/stain features=runs/barcelona
  python launchers/evaluate.py bank=banks/moderate shards=data/blood classifier=runs/barcelona features=inception
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from data_pipeline.catalog import SPLITS
from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.errors import UserError
from data_pipeline.image_bank import ImageBank
from data_pipeline.stream import Topology
from launchers.console import launch, read_config
from trainer.classifier_training import scoring_batch
from trainer.evaluation import evaluate, refuse_training_images
from trainer.generation_evaluation import evaluate_bank
from trainer.generation_scores import Judges
from trainer.metrics.classification import format_scores
from trainer.metrics.evaluation import save_evaluation, save_record
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace, InceptionFeatures
from trainer.metrics.perceptual import perceptual_distance
from trainer.report import write_generation_report, write_model_card, write_run_report, write_stain_report
from trainer.run_directory import read_run_config
from trainer.stain_evaluation import evaluate_stain_model
from trainer.stain_run import load_stain_model
from trainer.topology import join_processes, leave_processes
from trainer.trained_classifier import load_classifier, tell_if_uncalibrated


@dataclass(frozen=True)
class EvaluateConfig(DatasetConfig):
    """What to score."""

    run: str | None = None
    bank: str | None = None
    split: Literal["test", "validation", "train", "all"] = "test"
    domain: str | None = None
    folds: list[int] | None = None
    features: str | None = None
    classifier: str | None = None
    lpips_weights: str | None = None
    inception_weights: str | None = None


def main(arguments: Sequence[str]) -> None:
    config = read_config(EvaluateConfig, "evaluate", arguments)
    if bool(config.run) == bool(config.bank):
        raise UserError(
            "give run=DIR of train_classifier.py or train_stain_gan.py, or bank=DIR of synthesize.py, one of them"
        )
    topology = join_processes()
    if config.bank:
        _score_bank(Path(config.bank), config, topology)
        return
    run = Path(str(config.run))
    content = read_run_config(run)
    if "kind" in content:
        raise UserError(
            f"{run}: what a generator has learned is scored by its images: draw them with synthesize.py, then give "
            "bank=DIR"
        )
    if "game" in content.get("model", {}):
        _score_stain_run(run, config, topology)
    else:
        _score_classifier(run, config, topology)


def _score_stain_run(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    if topology.world_size > 1:
        raise UserError("a stain run is scored by one process: start evaluate.py with python")
    if config.split == "all" or config.domain is not None or config.folds is not None:
        raise UserError(f"{run}: a stain run is scored on one split of both its domains: leave out domain= and folds=")
    if config.features is None:
        raise UserError(
            f"{run}: give features=RUN, a run of train_classifier.py whose features are compared, or features=inception"
        )
    trained = load_stain_model(run)
    dataset = config.open_dataset(trained.config)
    space = _feature_space(config.features, config).to(topology.device)
    result = evaluate_stain_model(trained, dataset, space, split=config.split, topology=topology)
    own_test = dataset.content_hash == trained.dataset_hash and config.split == "test"
    path = save_record(run, result, own_test=own_test)
    for name, scores in result["directions"].items():
        measures = ", ".join(f"{key} {each['value']:.4g}" for key, each in scores["generated"]["scores"].items())
        print(f"{name}: {measures}, structure {scores['structure']['mean']:.3f}, {scores['count']} images")
    print(f"{path.resolve()}\n{write_stain_report(run).resolve()}")


def _feature_space(features: str, config: EvaluateConfig) -> FeatureSpace:
    if features == "inception":
        return InceptionFeatures(None if config.inception_weights is None else Path(config.inception_weights))
    return ClassifierFeatures.of(load_classifier(Path(features)))


def _score_bank(root: Path, config: EvaluateConfig, topology: Topology) -> None:
    if topology.world_size > 1:
        raise UserError("a bank is scored by one process: start evaluate.py with python")
    if not config.shards or not config.classifier:
        raise UserError(f"{root}: give shards=DIR, real images, and classifier=RUN, trained on real images alone")
    if config.split != "test" or config.domain is not None or config.folds is not None:
        raise UserError(
            f"{root}: a bank is scored against its types' test images: leave out split=, domain= and folds="
        )
    bank, dataset = ImageBank.open(root), config.open_dataset()
    classifier = load_classifier(Path(config.classifier))
    judges = Judges(
        _feature_space(config.features or config.classifier, config).to(topology.device),
        classifier,
        perceptual_distance(config.lpips_weights, classifier).to(topology.device),
    )
    path = evaluate_bank(bank, dataset, judges, topology)
    print(f"{path.resolve()}\n{write_generation_report(root).resolve()}")


def _score_classifier(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    trained = load_classifier(run)
    if topology.rank == 0:
        tell_if_uncalibrated(trained)
    own = trained.config.open_dataset()
    dataset = config.open_dataset(trained.config)
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
        calibration=trained.calibration,
        normalizer=trained.normalizer,
        folds=config.folds,
    )
    leave_processes()
    if topology.rank != 0:
        return
    same_data = dataset.content_hash == trained.dataset_hash
    own_test = same_data and config.split == "test" and domains == trained.config.data.domains and not config.folds
    path = save_evaluation(run, result, frame, own_test=own_test)
    write_model_card(run)
    print(format_scores(result["scores"]))
    print(f"{path.resolve()}\n{write_run_report(run).resolve()}")


if __name__ == "__main__":
    launch(main, __doc__)
