"""CGAN: generator and discriminator are conditioned on the cell type (Mirza and Osindero 2014, eq. 2)."""

from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import ConditionalAlgorithm, Generated, Judged


@registered
class ConditionalGan(ConditionalAlgorithm):
    """Binary cross entropy for the discriminator, the non-saturating loss for the generator.

    The generator minimises -log D(generated) (Goodfellow et al. 2014, section 3).
    """

    critic_sees_types = True

    def _critic_terms(self, judged: Judged) -> Terms:
        on_real = losses.cross_entropy_of_source(judged.on_real[:, 0], 1.0)
        on_generated = losses.cross_entropy_of_source(judged.on_generated[:, 0], 0.0)
        return {"critic": (1.0, on_real + on_generated)}

    def _generator_terms(self, made: Generated) -> Terms:
        return {"adversarial": (1.0, losses.cross_entropy_of_source(made.answers[:, 0], 1.0))}
