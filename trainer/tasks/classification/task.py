"""Naming cells: a classifier is trained, calibrated, scored and reported."""

import dataclasses
from pathlib import Path

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.stream.stream import Topology
from models.classifiers.fitted import FittedClassifier
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.selection import Selection
from trainer.metrics.measures import epoch_measures
from trainer.runs import registry
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.network_size import NetworkSize
from trainer.runs.provenance import learned_by_weights
from trainer.runs.task import Task
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import build_network, load_classifier
from trainer.tasks.classification.training.protocol import BalanceFirstSession, own_images
from trainer.tasks.classification.training.session import ClassifierSession
from trainer.tasks.classification.training.stream import known_cell_types, training_stream


class Classification(Task[ClassifierRunConfig]):
    """A classifier that names the type of each cell."""

    kind = "classification"
    answers_test = True
    launcher = "train_classifier.py"
    config = ClassifierRunConfig
    load = staticmethod(load_classifier)

    def open(self, config: ClassifierRunConfig, dataset: Dataset, topology: Topology) -> ClassifierSession:
        if config.protocol == "balance_first":
            return BalanceFirstSession(config, dataset, topology)
        return ClassifierSession(config, dataset, topology)

    def build(self, config: ClassifierRunConfig, types: int, setting: Setting) -> Algorithm:
        network = build_network(dataclasses.replace(config.model, weights=None), types, config.data.image_size)
        if isinstance(network, FittedClassifier):
            raise UserError(f"model={config.model.name} is fitted at once, without steps: there is nothing to plan")
        return registry.algorithm_class(self.kind, config.train.algorithm)(network, config, setting)

    def count_epoch_steps(self, config: ClassifierRunConfig, dataset: Dataset, topology: Topology) -> int:
        types = known_cell_types(dataset, config.data)
        return training_stream(dataset, config, types, topology).batches_per_epoch

    def selection(self, config: ClassifierRunConfig, dataset: Dataset) -> Selection:
        train = config.train
        higher_is_better = epoch_measures()[train.select_by].higher_is_better
        return Selection(train.select_by, higher_is_better, train.patience, train.select_within)

    def learned(self, config: ClassifierRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Training images, and validation images, by which checkpoint and temperature are chosen."""
        own = own_images(config, dataset, cell_types)
        return LearnedImages.joined([own, learned_by_weights(config.model.weights), learned_by_makers(dataset)])

    def network_size(self, run: Path) -> NetworkSize:
        from trainer.tasks.classification.inference.network_size import network_size

        return network_size(run)

    def evaluate(self, run: Path, config: EvaluateConfig, topology: Topology) -> None:
        from trainer.tasks.classification.evaluation.scoring import score_runs

        score_runs(config.runs, config.folder, config, topology)

    def write_report(self, run: Path) -> Path:
        from trainer.tasks.classification.reports.report import write_run_report

        return write_run_report(run)


TASK = Classification()
