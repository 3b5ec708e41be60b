"""Scoring a run's two directions on any data set."""

from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Topology
from trainer.metrics.evaluation import save_record
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.feature_spaces import learned_by_features, open_space
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.tasks.stain.evaluation import evaluate_stain_model
from trainer.tasks.stain.load import load_stain_model
from trainer.tasks.stain.report import write_stain_report


def score_run(run: Path, config: EvaluateConfig, topology: Topology) -> None:
    """Score a stain run's two directions on one split; writes the record and the report."""
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
    space = open_space(config.features, config.inception_weights)[0].to(topology.device)
    learned = LearnedImages.joined([learned_by_run(run), learned_by_features(config.features)])
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
