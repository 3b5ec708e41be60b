"""From a run's configuration to a Rehearsal: its training step without its data."""

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
# Of the run: schedules and loss weights depend on it, memory does not.
_STEPS = 100


def rehearsal_of(config: RunConfig, precision: Precision) -> Rehearsal:
    """A run's step on one process. UserError for a model without such steps."""
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
            # An image pool's operations depend on its content; plan.py adds its memory.
            pooled = dataclasses.replace(config, model=dataclasses.replace(config.model, pool_size=0))
            return stain_training.make_algorithm(pooled, networks, teacher, precision, "alone", _STEPS, topology)
        return _few_shot_algorithm(config, precision, topology)

    if isinstance(config, ClassifierRunConfig) and config.model.architecture == "naive_bayes":
        raise UserError("model=naive_bayes is fitted in one pass, without steps: there is nothing to plan")
    if isinstance(config, ConditionalRunConfig) and config.model.algorithm == "dcgan":
        raise UserError(
            "model=dcgan trains a pair of networks for each type on that type's images, so its plan would need the "
            "images; plan model=cgan and add the weights of the other pairs"
        )
    episode = None
    if isinstance(config, FewShotRunConfig) and config.model.algorithm != "mine_gan":
        episode = config.shots
    return Rehearsal(make_algorithm, types_of(config), size, episode)


def types_of(config: RunConfig) -> int:
    """Number of cell types that a run is planned with, whatever its data set."""
    if isinstance(config, ConditionalRunConfig):
        return len(config.data.cell_types or MODERATE_TYPES)
    return len(config.data.cell_types or CELL_TYPES)


def _few_shot_algorithm(config: FewShotRunConfig, precision: Precision, topology: Topology) -> Algorithm:
    """The training on rich types; for an algorithm without it, the adaptation."""
    # Two rounds: the first allocates Adam's state, the second has the peak.
    inner = dataclasses.replace(config.model.inner, rounds=min(config.model.inner.rounds, 2))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, inner=inner))
    # fp16's loss scale reads values, which fake tensors lack; bf16 needs the same memory and no loss scale.
    precision = "bf16" if precision == "fp16" else precision
    networks = build_networks(config.model, config.data.image_size)
    if config.model.learns_from_rich:
        return few_shot_training.make_algorithm(config, networks, precision, "alone", _STEPS, topology)
    return _Adaptation(begin_episode(config.model, networks, precision, config.adaptation.average_decay))


class _Adaptation(Stateless):
    """One round of adaptation to a rare type as an algorithm's step."""

    def __init__(self, episode: Episode) -> None:
        self.learners: dict[str, Any] = {}
        self._episode = episode
        self.takes = {"train": 1}

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        shown: list[Shown] = [(part.images, part.positions) for part in next(batches["train"])]
        endless = iter(lambda: shown[0], None)
        self._episode.play_round(endless, 0, 0, 1)
        return StepResult({"loss": torch.zeros(())}, {})
