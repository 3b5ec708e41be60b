"""C-WGAN-GP to the letter: table 12's classifier sees generated images too (thesis section 3.5, tables 10-12)."""

from dataclasses import dataclass

import torch

from data_pipeline.stream.stream import MicroBatch
from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithms.c_wgan_gp import ClassifierOptions, ClassifierWganGp


@dataclass(frozen=True)
class ConstantOptions(ClassifierOptions):
    """ClassifierOptions, lambda constant."""

    classification_first: float = 1.0
    classification_last: float = 1.0


@registered
class ClassifierWganGpThesis(ClassifierWganGp):
    """The classifier learns from real and from generated images: its input in table 12 is (X, G(z, C))."""

    Options = ConstantOptions

    def _classify(self, part: MicroBatch) -> Terms:
        with torch.no_grad(), self._generator.autocast():
            generated = self._generator.module(self._latents(part, "classifier"), part.labels)
        # Real and generated images go through the engine in one pass: some engines allow no second.
        with self._classifier.autocast():
            answers = self._classifier.engine(torch.cat([part.images, generated]), parts=2)
        on_real, on_generated = answers.float().chunk(2)
        return {
            "classifier": (1.0, losses.classification(on_real, part.labels)),
            "classifier_generated": (1.0, losses.classification(on_generated, part.labels)),
            "accuracy": (0.0, (on_real.detach().argmax(dim=1) == part.labels).float()),
        }
