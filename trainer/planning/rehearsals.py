"""The step of a run as it can be tried without its data: from a launcher's configuration to a Rehearsal."""

import dataclasses
from typing import Any

import torch

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.learners.choices import Precision
from trainer.loop.fit import Algorithm, Batches, Stateless, StepResult
from trainer.planning.step_memory import Rehearsal
from trainer.tasks.classification import load as trained_classifier
from trainer.tasks.classification import training as classifier_training
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional import training as conditional_training
from trainer.tasks.conditional.config import MODERATE_TYPES, ConditionalRunConfig
from trainer.tasks.few_shot import training as few_shot_training
from trainer.tasks.few_shot.adaptation import begin_episode
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episode import Episode, Shown
from trainer.tasks.few_shot.load import build_networks
from trainer.tasks.stain import training as stain_training
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.load import build_generators, into_domains

RunConfig = ClassifierRunConfig | StainRunConfig | ConditionalRunConfig | FewShotRunConfig
RUN_CONFIGS: dict[str, type[RunConfig]] = {
    kind.__name__: kind for kind in (ClassifierRunConfig, StainRunConfig, ConditionalRunConfig, FewShotRunConfig)
}
# Schedules and weights of terms depend on it, memory does not.
_STEPS = 100


def rehearsal_of(config: RunConfig, precision: Precision) -> Rehearsal:
    """The step of a run, on one process. UserError for a model that is not trained in steps."""
    size, topology = config.data.image_size, Topology()

    def make_algorithm() -> Algorithm:
        if isinstance(config, ClassifierRunConfig):
            network = trained_classifier.build_network(
                dataclasses.replace(config.model, weights=None), types_of(config), size
            )
            return classifier_training.make_algorithm(config, network, precision, "alone", _STEPS, topology)
        if isinstance(config, ConditionalRunConfig):
            return conditional_training.make_algorithm(config, types_of(config), precision, "alone", _STEPS, topology)
        if isinstance(config, StainRunConfig):
            networks = build_generators(config.model, size)
            teacher = None
            if config.model.algorithm == "stain_student":
                taught = stain_training.load_teacher(config).config
                teacher = into_domains(taught.model, build_generators(taught.model, size))
            # The operations of a pool depend on its images; what it holds is counted apart, see plan.py.
            pooled = dataclasses.replace(config, model=dataclasses.replace(config.model, pool_size=0))
            return stain_training.make_algorithm(pooled, networks, teacher, precision, "alone", _STEPS, topology)
        return _few_shot_algorithm(config, precision, topology)

    if isinstance(config, ClassifierRunConfig) and config.model.architecture == "naive_bayes":
        raise UserError("model=naive_bayes is fitted in one pass and takes no steps: there is nothing to plan")
    if isinstance(config, ConditionalRunConfig) and config.model.algorithm == "dcgan":
        raise UserError(
            "model=dcgan deals its images to a pair of networks for each type, which no plan can without the images; "
            "cgan's plan is near it, but for the weights of the other pairs"
        )
    return Rehearsal(make_algorithm, types_of(config), size, _episode_size(config))


def types_of(config: RunConfig) -> int:
    """How many cell types a run without a data set is taken to have."""
    if isinstance(config, ConditionalRunConfig):
        return len(config.data.cell_types or MODERATE_TYPES)
    return len(config.data.cell_types or CELL_TYPES)


def _episode_size(config: RunConfig) -> int | None:
    """Images of an episode, which no micro-batch divides; None where there is a micro-batch."""
    if isinstance(config, FewShotRunConfig) and config.model.algorithm != "mine_gan":
        return config.shots
    return None


def _few_shot_algorithm(config: FewShotRunConfig, precision: Precision, topology: Topology) -> Algorithm:
    """The training on rich types, or where there is none the adaptation."""
    # Two rounds: the first begins Adam's state, the second holds the most.
    inner = dataclasses.replace(config.model.inner, rounds=min(config.model.inner.rounds, 2))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, inner=inner))
    # An episode's loss scale looks at numbers, which there are none of; bf16 takes the same memory and needs none.
    precision = "bf16" if precision == "fp16" else precision
    networks = build_networks(config.model, config.data.image_size)
    if config.model.learns_from_rich:
        return few_shot_training.make_algorithm(config, networks, precision, "alone", _STEPS, topology)
    return _Adaptation(begin_episode(config.model, networks, precision, config.adaptation.average_decay))


class _Adaptation(Stateless):
    """A round of the adaptation to a rare type as an algorithm's step."""

    def __init__(self, episode: Episode) -> None:
        self.learners: dict[str, Any] = {}
        self._episode = episode
        self.takes = {"train": 1}

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        shown: list[Shown] = [(part.images, part.positions) for part in next(batches["train"])]
        endless = iter(lambda: shown[0], None)
        self._episode.play_round(endless, 0, 0, 1)
        return StepResult({"loss": torch.zeros(())}, {})
