"""AC-GAN: the discriminator says what is real and which type it is (Odena et al. 2017)."""

from trainer.learners import losses
from trainer.learners.learner import Terms
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import Generated, Judged
from trainer.tasks.conditional.algorithms.cgan import ConditionalGan


@registered
class AuxiliaryClassifierGan(ConditionalGan):
    """Both learners also want the types named, of real and of generated images (eq. 2, 3)."""

    critic_sees_types = False
    critic_names_types = True

    def _critic_terms(self, judged: Judged) -> Terms:
        named = losses.classification(judged.on_real[:, 1:], judged.real.labels)
        named = named + losses.classification(judged.on_generated[:, 1:], judged.conditions)
        return super()._critic_terms(judged) | {"critic_classification": (1.0, named)}

    def _generator_terms(self, made: Generated) -> Terms:
        named = losses.classification(made.answers[:, 1:], made.conditions)
        return super()._generator_terms(made) | {"classification": (1.0, named)}
