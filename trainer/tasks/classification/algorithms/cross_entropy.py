"""Supervised classification: one learner, cross entropy with label smoothing (thesis section 3.7)."""

from collections.abc import Iterable

import torch
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from trainer.learners.learner import Learner
from trainer.loop.fit import Batches, Stateless, StepResult


class Classification(Stateless):
    """The classifier's algorithm: one labelled global batch, one move."""

    def __init__(self, classifier: Learner, *, label_smoothing: float, global_batch: int, world_size: int) -> None:
        self.learners = {"classifier": classifier}
        self.takes = {"train": 1}
        self._classifier = classifier
        self._label_smoothing = label_smoothing
        # The engine averages gradients over processes, whose slices may differ in size: each image
        # therefore weighs world_size / global_batch, and the average is the joined batch's mean.
        self._weight = world_size / global_batch

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One move on one global batch: `loss` and `accuracy` (a count of right answers), `gradient_norm`."""
        classifier = self._classifier
        classifier.engine.train()
        loss_sum = torch.zeros((), device=classifier.device)
        correct = torch.zeros((), device=classifier.device)
        for number, part in enumerate(next(batches["train"]), start=1):
            with classifier.part_of_step(last=number == part.parts):
                logits = self._logits(part.images)
                loss = functional.cross_entropy(
                    logits.float(), part.labels, label_smoothing=self._label_smoothing, reduction="sum"
                )
                classifier.backward(loss * self._weight)
            loss_sum += loss.detach()
            correct += (logits.argmax(dim=1) == part.labels).sum()
        return StepResult({"loss": loss_sum, "accuracy": correct}, {"gradient_norm": classifier.step()})

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        try:
            with self._classifier.autocast():
                logits: torch.Tensor = self._classifier.engine(images)
                return logits
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "a micro-batch of one image is too few for this model's batch normalisation: "
                "raise train.micro_batch or train.global_batch"
            ) from error


@torch.no_grad()
def predict(classifier: torch.nn.Module, batches: Iterable[MicroBatch]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits float32 [n, types] and rows int64 [n] of all images in `batches`, on the CPU."""
    classifier.eval()
    logits, rows = [], []
    for batch in batches:
        logits.append(classifier(batch.images).float().cpu())
        rows.append(torch.from_numpy(batch.rows))
    if not rows:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64)
    return torch.cat(logits), torch.cat(rows)
