"""W-CycleGAN-GP to the letter: the penalty of eq. 28, 30 is Euclidean (thesis section 3.4)."""

from dataclasses import dataclass

from trainer.learners.choices import PenaltyMetric
from trainer.runs.registry import registered
from trainer.tasks.stain.algorithms.w_cyclegan_gp import WassersteinOptions, WCycleGanGp


@dataclass(frozen=True)
class EuclideanOptions(WassersteinOptions):
    """WassersteinOptions, the penalty's metric as printed."""

    penalty_metric: PenaltyMetric = "euclidean"


@registered
class WCycleGanGpThesis(WCycleGanGp):
    """Has a name of its own, which its runs, normalisers and scores carry."""

    Options = EuclideanOptions
