"""DCGAN (Radford et al. 2016), which knows no types: one generator and one discriminator for each."""

from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithms.cgan import ConditionalGan


@registered
class DeepConvolutionalGan(ConditionalGan):
    """Each pair plays on the batch's images of its own type."""

    critic_sees_types = False
    pair_for_each_type = True
