"""A classifier's training: its streams, validation, calibration and final score."""

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_pipeline.catalog import Dataset
from data_pipeline.learned_images import SeenImages
from data_pipeline.stream.stream import Stream, Topology
from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.fitted import FittedClassifier
from trainer.learners.choices import VIEWS
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.fit import AfterEpoch
from trainer.loop.forecast import Expectation, try_out
from trainer.metrics.evaluation import save_evaluation
from trainer.runs import registry
from trainer.runs.normalizers.bundle import FILE
from trainer.runs.provenance import say, unseen
from trainer.runs.task import Session
from trainer.runs.training_data import save_training_data
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.evaluation.evaluate import evaluate, validation_scores
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.inference.load import TrainedClassifier, build_network, load_classifier
from trainer.tasks.classification.inference.logits import predict_all, scoring_batch, scoring_stream
from trainer.tasks.classification.inference.scale import at_one_scale
from trainer.tasks.classification.training.stream import known_cell_types, training_stream
from trainer.tasks.classification.training.uncertainty_fitting import fit_reference
from trainer.tasks.classification.uncertainty.calibration import fit_temperature, load_calibration, save_calibration
from trainer.tasks.classification.uncertainty.reference import load_reference, save_reference
from trainer.tasks.classification.uncertainty.views import EachView, mean_log_probabilities


class ClassifierSession(Session[ClassifierRunConfig]):
    """A classifier's training."""

    def __init__(self, config: ClassifierRunConfig, dataset: Dataset, topology: Topology) -> None:
        config = at_one_scale(config, dataset)
        self.config, self.dataset, self.topology = config, dataset, topology
        self._run = Path(str(config.run))
        self.cell_types = known_cell_types(dataset, config.data)
        stream = self._training()
        self.streams = {"train": stream}
        self.epoch_steps = config.train.iterations_per_epoch or stream.batches_per_epoch
        self.normalizer = FILE if FILE in dataset.metadata.get("attachments", {}) else None
        # The test split too is opened now: that it cannot be scored is better known before the training.
        self._validation, self._test = (self._held_out(split) for split in ("validation", "test"))

    def _training(self) -> Stream:
        return training_stream(self.dataset, self.config, self.cell_types, self.topology)

    def _held_out(self, split: str) -> tuple[Stream, SeenImages]:
        """The stream of a split without images seen before, and which these are.

        UserError without an image, or where what the run begins with has seen one.
        """
        config, dataset, domains = self.config, self.dataset, self.config.data.domains
        ids = dataset.samples(splits=[split], domains=domains, cell_types=self.cell_types, columns=["id"])["id"]
        # Validation may choose twice, as it does in a run that begins with the weights of an older one.
        before = self.learned.of_role("trained") if split == "validation" else self.learned
        remedy = "begin with other weights or images"
        seen = unseen(before, dataset, ids.tolist(), config.seen_images, f"split {split}", remedy)
        if self.topology.rank == 0:
            say(seen, split)
        stream = scoring_stream(
            dataset,
            dataclasses.replace(config.data, cell_types=None),
            splits=[split],
            cell_types=self.cell_types,
            batch=scoring_batch(config.train),
            topology=self.topology,
            left_out=seen.through,
        )
        return stream, seen

    def begin(self) -> None:
        if self.normalizer is not None:
            self._run.mkdir(parents=True, exist_ok=True)
            aside = self._run / f"{FILE}.new"
            shutil.copyfile(self.dataset.attachment_path(FILE), aside)
            aside.replace(self._run / FILE)

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm | None:
        config = self.config
        # A run that resumes has its own weights, wherever those that it began with are now.
        model = config.model if fresh else dataclasses.replace(config.model, weights=None)
        network = build_network(model, len(self.cell_types), config.data.image_size)
        if isinstance(network, FittedClassifier):
            self._unfitted = network if fresh else None
            return None
        algorithm: Algorithm = registry.algorithm_class(config.kind, config.train.algorithm)(network, config, setting)
        self._classifier = algorithm.learners["classifier"]
        return algorithm

    def fit_at_once(self, fingerprint: Mapping[str, Any], after_epoch: AfterEpoch | None) -> None:
        """Fit a classifier that is not trained in steps: naive Bayes, a head on frozen features."""
        from trainer.tasks.classification.training.fitting import Pass, fit_at_once, frozen_passes

        network, config, held_out = self._unfitted, self.config, self._validation[0]
        if network is None or self.selection is None:
            return
        network.to(self.topology.device)
        if isinstance(network, FrozenClassifier):
            each_once = training_stream(self.dataset, config, self.cell_types, self.topology, augmented=False)
            uniform = dataclasses.replace(config, data=dataclasses.replace(config.data, sampling="uniform"))
            augmented = training_stream(self.dataset, uniform, self.cell_types, self.topology)
            streams = [each_once, held_out]
            training, (validation,) = frozen_passes(network, self.dataset, config, streams, augmented)
        else:
            training = [Pass(self.streams["train"], batches=self.epoch_steps)]
            validation = Pass(held_out)
        fit_at_once(
            network,
            training,
            validation,
            config,
            selection=self.selection,
            topology=self.topology,
            fingerprint=fingerprint,
            after_epoch=after_epoch,
        )

    def score_epoch(self, step: int) -> dict[str, float]:
        self._classifier.share_buffers()
        with self._classifier.autocast():
            return validation_scores(self._classifier.average, self._validation[0])

    def expectation(self) -> Expectation:
        """On a CPU, where a step may take minutes: seconds per step, estimated by `try_out`. Empty on a GPU."""
        if self.topology.device.type != "cpu" or self.topology.rank != 0:
            return Expectation()
        from trainer.tasks.classification.training.model_advice import advise_model

        size, types = self.config.data.image_size, len(self.cell_types)
        images = -(-self.config.train.global_batch // self.topology.world_size)
        seconds = try_out(self._classifier.module, size, images)
        return Expectation(seconds, partial(advise_model, self.config.model, types, size))

    def finish(self) -> None:
        """Calibrate on validation images, score the best checkpoint on test images.

        Rank 0 writes the scores, the record of the training data and the model card.
        """
        trained = self._calibrated(load_classifier(self._run))
        result, frame = evaluate(
            Ensemble((trained,)),
            self.dataset,
            self.config.data,
            splits=["test"],
            topology=self.topology,
            seen=self._test[1],
        )
        if self.topology.rank == 0:
            # Here: the first step need not wait for what draws a report.
            from trainer.tasks.classification.reports.model_card import write_model_card

            save_evaluation(self._run, result, frame, own_test=True)
            save_training_data(self._run, self.dataset, self.config.data)
            write_model_card(self._run)

    def _calibrated(self, trained: TrainedClassifier) -> TrainedClassifier:
        """With what is fitted to the best checkpoint on validation images, temperatures for each number of views too.

        The run keeps it; what is there is not fitted again.
        """
        digest = trained.checkpoint.digest
        fitted = [load_calibration(self._run, digest, count) for count in VIEWS]
        # Naive Bayes has no features of its own to compare images in.
        has_reference = isinstance(trained.network, NaiveBayes) or load_reference(self._run, digest) is not None
        if has_reference and all(each.checkpoint == digest for each in fitted):
            return trained
        stream, _ = self._validation
        each_view = predict_all(EachView(trained.network.to(self.topology.device), VIEWS[-1]), stream)
        answers = torch.stack([mean_log_probabilities(each_view[:, :count]) for count in VIEWS], dim=1)
        labels = torch.tensor(stream.labels)
        for index, count in enumerate(VIEWS):
            if fitted[index].checkpoint != digest:
                fitted[index] = fit_temperature(answers[:, index], labels, digest, count)
        reference = None
        if not has_reference:
            data = self.config.data
            reference = fit_reference(trained, self.dataset, data, stream, answers, self.topology)
        if self.topology.rank == 0:
            save_calibration(self._run, *fitted)
            if reference is not None:
                save_reference(self._run, reference)
        if distributed.is_initialized():
            distributed.barrier()  # every rank reads the reference when it scores
        return dataclasses.replace(trained, calibration=fitted[0])
