"""Supervised classification: one learner, cross entropy with label smoothing (thesis section 3.7), mixup, cutmix."""

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.classifiers.norm import auxiliary_batch_norms
from trainer.learners.learner import Learner, Setting, Terms
from trainer.loop.algorithm import Batches, Stateless, StepResult
from trainer.runs.registry import registered
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training.mixing import Mixing


@registered
class CrossEntropy(Stateless):
    """One labelled global batch, one step."""

    def __init__(self, network: nn.Module, config: ClassifierRunConfig, setting: Setting) -> None:
        fit = config.train
        self._classifier = Learner(
            "classifier",
            network,
            config.optimizer,
            setting,
            frozen_steps=setting.total_steps * fit.frozen_epochs // fit.epochs,
            choices=fit.network_choices,
        )
        self.learners = {"classifier": self._classifier}
        self.takes = {"train": 1}
        self._label_smoothing, self._weight = fit.label_smoothing, fit.synthetic.weight
        self._auxiliary = auxiliary_batch_norms(self._classifier.module)
        mixes = (fit.mixup or fit.cutmix) and not setting.rehearsal  # fake images have no positions
        self._mixing = Mixing(fit.mixup, fit.cutmix, setting.seed, setting.global_batch) if mixes else None

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """Sums `loss` and `accuracy` (a count of right answers), norm `gradient_norm`.

        The right answer for a mixed image is the type with the larger share.
        """
        self._classifier.engine.train()
        sums, norm = self._classifier.move(next(batches["train"]), self._terms)
        return StepResult(sums, {"gradient_norm": norm})

    def _terms(self, part: MicroBatch) -> Terms:
        if self._auxiliary:
            part = self._generated_last(part)
        if self._mixing is None:
            logits = self._logits(part.images).float()
            loss = self._loss(logits, part.labels)
        else:
            mixed = self._mixing(part)
            logits = self._logits(mixed.images).float()
            others = self._loss(logits, part.labels[mixed.partners])
            loss = mixed.shares * self._loss(logits, part.labels) + (1 - mixed.shares) * others
        if self._weight != 1 and part.generated is not None:
            loss = loss * to_device(np.where(part.generated, self._weight, 1).astype(np.float32), loss.device)
        return {"loss": (1.0, loss), "accuracy": (0.0, (logits.argmax(dim=1) == part.labels).float())}

    def _generated_last(self, part: MicroBatch) -> MicroBatch:
        """The micro-batch with its generated images at the end, where auxiliary batch norms take them to be."""
        generated = np.zeros(len(part.rows), bool) if part.generated is None else part.generated
        for norm in self._auxiliary:
            norm.generated_images = int(generated.sum())
        if not generated.any():
            return part
        order = np.argsort(generated, kind="stable")
        places = to_device(order, part.images.device)
        return dataclasses.replace(
            part,
            images=part.images[places],
            labels=part.labels[places],
            rows=part.rows[order],
            positions=part.positions[order],
            generated=generated[order],
        )

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=self._label_smoothing, reduction="none")

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        try:
            with self._classifier.autocast():
                return self._classifier.engine(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "a micro-batch of one image is too few for this model's batch normalisation: "
                "raise train.micro_batch or train.global_batch"
            ) from error
