"""The meta-learned encoder GAN to the letter; what differs from `few_shot_meta` is in its preset alone."""

from trainer.runs.registry import registered
from trainer.tasks.few_shot.algorithms.few_shot_meta import FewShotMeta


@registered
class FewShotMetaThesis(FewShotMeta):
    """`few_shot_meta` under a name of its own, for its runs, images and scores."""
