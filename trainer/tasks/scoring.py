"""Scoring a run, or a bank of generated images, on real images of a data set, and renewing its report."""

from dataclasses import replace
from pathlib import Path

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import SPLITS
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Topology
from trainer.learners.topology import leave_processes
from trainer.metrics.classification import format_scores
from trainer.metrics.evaluation import save_evaluation, save_record
from trainer.metrics.feature_space import ClassifierFeatures, FeatureSpace, InceptionFeatures
from trainer.metrics.perceptual import perceptual_distance
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.classification.evaluation import evaluate
from trainer.tasks.classification.load import load_classifier, tell_if_uncalibrated
from trainer.tasks.classification.model_card import write_model_card
from trainer.tasks.classification.report import write_run_report
from trainer.tasks.classification.task import scoring_batch
from trainer.tasks.evaluation_config import EvaluateConfig
from trainer.tasks.generation.evaluation import evaluate_bank
from trainer.tasks.generation.report import write_generation_report
from trainer.tasks.generation.scores import Judges
from trainer.tasks.stain.evaluation import evaluate_stain_model
from trainer.tasks.stain.load import load_stain_model
from trainer.tasks.stain.report import write_stain_report


def score_stain_run(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Distances and structure of a stain run's two directions, on one split; the record and the report are written."""
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
    learned = LearnedImages.joined([learned_by_run(run), _learned_by_features(config.features)])
    ids = dataset.samples(splits=[config.split], domains=[trained.a, trained.b], columns=["id"])["id"].tolist()
    remedy = "score split=test of images that neither run nor features= has seen"
    seen = unseen(learned, dataset, ids, config.seen_images, f"split {config.split}", remedy)
    say(seen, "scores")
    result = evaluate_stain_model(trained, dataset, space, split=config.split, topology=topology, seen=seen)
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


def _learned_by_features(features: str) -> LearnedImages:
    """What a feature space was trained on; FID's network has seen no blood cells."""
    if features == "inception":
        return LearnedImages()
    return learned_by_run(Path(features)).of_role("trained").through(f"{features} (features=)")


def score_bank(root: Path, config: EvaluateConfig, topology: Topology) -> None:
    """A bank against the test images of its types, as its judges see both; the record and the report are written."""
    if topology.world_size > 1:
        raise UserError("a bank is scored by one process: start evaluate.py with python")
    bank, dataset, judge = ImageBank.open(root), config.open_dataset(), str(config.classifier)
    classifier = load_classifier(Path(judge))
    judges = Judges(
        _feature_space(config.features or judge, config).to(topology.device),
        classifier,
        perceptual_distance(config.lpips_weights, classifier).to(topology.device),
    )
    path = evaluate_bank(
        bank,
        dataset,
        judges,
        topology,
        seen_images=config.seen_images,
        space_learned=_learned_by_features(config.features or judge),
    )
    print(f"{path.resolve()}\n{write_generation_report(root).resolve()}")


def score_classifier(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Scores of a classifier's best checkpoint; the record, the model card and the report are written."""
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
        seen=seen,
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
    say(seen, "scores")
    print(format_scores(result["scores"]))
    print(f"{path.resolve()}\n{write_run_report(run).resolve()}")
