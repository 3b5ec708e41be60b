"""DCGAN (Radford et al. 2016), which knows no types: one generator and one discriminator for each."""

from data_pipeline.errors import UserError
from trainer.learners.learner import Setting
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithms.cgan import ConditionalGan
from trainer.tasks.conditional.config import ConditionalRunConfig


@registered
class DeepConvolutionalGan(ConditionalGan):
    """Each pair learns from the batch's images of its own type."""

    critic_sees_types = False
    pair_for_each_type = True

    def __init__(self, config: ConditionalRunConfig, types: int, setting: Setting) -> None:
        if setting.rehearsal:
            raise UserError(
                "model=dcgan trains a pair of networks for each type on that type's images, so its plan would need the "
                "images; plan model=cgan and add the weights of the other pairs"
            )
        super().__init__(config, types, setting)
