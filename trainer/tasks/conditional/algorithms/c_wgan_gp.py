"""C-WGAN-GP: a WGAN-GP of three learners, the third a classifier of cell types (thesis section 3.5, figure 28)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from data_pipeline.stream.stream import MicroBatch
from trainer.learners import losses
from trainer.learners.learner import Setting, Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import Generated
from trainer.tasks.conditional.algorithms.cwgan_gp import ConditionalWganGp, PenaltyOptions
from trainer.tasks.conditional.config import ConditionalRunConfig


@dataclass(frozen=True)
class ClassifierOptions(PenaltyOptions):
    """PenaltyOptions, and lambda (weight of the generator's classification loss) at the first and the last step."""

    classification_first: float = 0.1
    classification_last: float = 1.0


@registered
class ClassifierWganGp(ConditionalWganGp):
    """The classifier learns from real images; the generator minimises -D(G(z, C)) + lambda CE(C(G(z, C)), C).

    The critic is not conditioned on the type. lambda rises linearly over the run, because a classifier
    early in its training would push the generator towards unrealistic images.
    """

    Options = ClassifierOptions
    critic_sees_types = False
    has_classifier = True

    def __init__(self, config: ConditionalRunConfig, types: int, setting: Setting) -> None:
        super().__init__(config, types, setting)
        self._classifier = self.learners["classifier"]

    @property
    def classification_weight(self) -> float:
        """lambda of the generator's next move."""
        first, last = self.options.classification_first, self.options.classification_last
        return float(first + (last - first) * self._generator.steps / max(self.setting.total_steps - 1, 1))

    def moves(self) -> dict[str, Callable[[MicroBatch], Terms]]:
        return {"critic": self._judge, "classifier": self._classify, "generator": self._generate}

    def _classify(self, part: MicroBatch) -> Terms:
        with self._classifier.autocast():
            logits = self._classifier.engine(part.images)
        return {"classifier": (1.0, losses.classification(logits, part.labels)), "accuracy": _hits(logits, part.labels)}

    def _generator_terms(self, made: Generated) -> Terms:
        with self._classifier.autocast():
            logits = self._classifier.module.eval()(made.images)
        return super()._generator_terms(made) | {
            "classification": (self.classification_weight, losses.classification(logits, made.conditions)),
            "generated_accuracy": _hits(logits, made.conditions),
        }


def _hits(logits: torch.Tensor, types: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Right answers, to be counted and not to be learned from."""
    return 0.0, (logits.detach().argmax(dim=1) == types).float()
