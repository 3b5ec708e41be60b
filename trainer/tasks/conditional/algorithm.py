"""What C-WGAN-GP and its rivals share: a generator that is given a cell type, a critic, and the order of moves."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, normal, uniform
from data_pipeline.stream.stream import MicroBatch
from models.conditional.networks import OfEachType, build_classifier, build_critic, build_generator
from models.errors import ModelError
from trainer.learners.choices import NetworkChoices
from trainer.learners.differentiable_augmentation import NUMBERS, augment
from trainer.learners.learner import Learner, Setting, Terms
from trainer.loop.algorithm import Adversarial, Batches
from trainer.runs.registry import NoOptions, read_options
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig


class Judged(NamedTuple):
    """Inputs of a critic's loss: n real and n generated images."""

    real: MicroBatch
    shown: torch.Tensor  # float32 [n, 3, S, S], the real images as the critic sees them
    generated: torch.Tensor  # float32 [n, 3, S, S], as the critic sees them
    conditions: torch.Tensor  # int64 [n], what the generated images were asked to be
    on_real: torch.Tensor  # float32 [n, outputs], the critic's answers: the score first
    on_generated: torch.Tensor


class Generated(NamedTuple):
    """Inputs of a generator's loss."""

    images: torch.Tensor  # float32 [n, 3, S, S] in [-1, 1], with their graph
    conditions: torch.Tensor  # int64 [n]
    answers: torch.Tensor  # float32 [n, outputs], the critic's


class ConditionalAlgorithm(Adversarial[MicroBatch]):
    """The critic moves `critic_steps` times, each on a global batch of stream `train`, then the generator once.

    A subclass says what its learners minimise, and which networks they are: whether the critic is shown the types,
    whether it also names them, whether there is a classifier, whether each type has a pair of its own.
    """

    Options: ClassVar[type[Any]] = NoOptions
    critic_sees_types: ClassVar[bool] = False
    critic_names_types: ClassVar[bool] = False
    has_classifier: ClassVar[bool] = False
    pair_for_each_type: ClassVar[bool] = False

    def __init__(self, config: ConditionalRunConfig, types: int, setting: Setting) -> None:
        """types: how many the labels name. UserError for networks or options that cannot be."""
        model = config.model
        self.check(model)
        self.options = read_options("conditional", model.algorithm, model.options)
        optimizers = {
            "critic": model.critic_optimizer,
            "classifier": model.classifier_optimizer,
            "generator": model.generator_optimizer,
        }
        learners = {
            name: Learner(
                name,
                network,
                optimizers[name],
                setting,
                moves=model.critic_steps if name == "critic" else 1,
                choices=NetworkChoices(),
            )
            for name, network in self.build_networks(model, config.data.image_size, types).items()
        }
        super().__init__(learners, setting, critic_steps=model.critic_steps, streams=("train",))
        self._generator, self._critic = learners["generator"], learners["critic"]
        self._types, self._latent_size = types, model.generator.latent_size

    @classmethod
    def check(cls, model: ConditionalModelConfig) -> None:
        """UserError for settings that do not go with the algorithm."""

    @classmethod
    def build_networks(cls, model: ConditionalModelConfig, image_size: int, types: int) -> dict[str, nn.Module]:
        """Fresh networks by learner, in the order of moves. UserError for a size that they cannot take."""
        named, shown = types * cls.critic_names_types, types * cls.critic_sees_types
        # Built in this order whatever the order of moves: initial weights are drawn one after the other.
        generator = cls.build_generator(model, image_size, types)
        critic: nn.Module
        if cls.pair_for_each_type:
            critic = OfEachType([build_critic(model.critic, image_size) for _ in range(types)])
        else:
            critic = build_critic(model.critic, image_size, class_outputs=named, shown_classes=shown)
        networks = {"critic": critic}
        if cls.has_classifier:
            networks["classifier"] = build_classifier(model.classifier, image_size, types)
        return networks | {"generator": generator}

    @classmethod
    def build_generator(cls, model: ConditionalModelConfig, image_size: int, types: int) -> nn.Module:
        """A fresh generator. UserError for a size that it cannot take."""
        try:
            if cls.pair_for_each_type:
                return OfEachType([build_generator(model.generator, image_size, 0) for _ in range(types)])
            return build_generator(model.generator, image_size, types)
        except ModelError as error:
            raise UserError(f"data.image_size={image_size}: {error}") from error

    @classmethod
    def conditions_of(cls, state: Mapping[str, Any], types: int) -> list[int]:
        """The condition that the generator receives for each type. state: the algorithm's `state_dict()`."""
        return list(range(types))

    @property
    def conditions(self) -> list[int]:
        """The condition that the generator receives for each type, in the present state."""
        return self.conditions_of(self.state_dict(), self._types)

    def moves(self) -> dict[str, Callable[[MicroBatch], Terms]]:
        return {"critic": self._judge, "generator": self._generate}

    def _parts(self, batches: Batches) -> list[MicroBatch]:
        return list(next(batches["train"]))

    @abstractmethod
    def _critic_terms(self, judged: Judged) -> Terms:
        """What the critic minimises."""

    @abstractmethod
    def _generator_terms(self, made: Generated) -> Terms:
        """What the generator minimises."""

    def _conditions_for(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        """What to generate beside these real images, int64 [n]: as many of each type as there are here."""
        return part.labels

    def _latents(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        """Standard normal float32 [n, latent_size], the same however the global batch is sliced."""
        draws = normal(derive_key(self.setting.seed, "latent", purpose), part.positions, self._latent_size)
        return to_device(draws.astype(np.float32), part.images.device)

    def _shown(self, images: torch.Tensor, part: MicroBatch, purpose: str) -> torch.Tensor:
        """The images as the critic sees them, [n, 3, S, S]: changed by the option `augment`, if there is one."""
        changes = getattr(self.options, "augment", None)
        if not changes:
            return images
        key = derive_key(self.setting.seed, "augmentation", purpose)
        return augment(images, uniform(key, part.positions, NUMBERS), changes)

    def _judge(self, part: MicroBatch) -> Terms:
        conditions = self._conditions_for(part, "critic")
        with torch.no_grad(), self._generator.autocast():
            generated = self._generator.module(self._latents(part, "critic"), conditions)
        shown = self._shown(part.images, part, "real")
        generated = self._shown(generated, part, "generated")
        # Real and generated images go through the engine in one pass: some engines allow no second.
        with self._critic.autocast():
            answers = self._critic.engine(torch.cat([shown, generated]), torch.cat([part.labels, conditions]), parts=2)
        on_real, on_generated = answers.float().chunk(2)
        return self._critic_terms(Judged(part, shown, generated, conditions, on_real, on_generated))

    def _generate(self, part: MicroBatch) -> Terms:
        conditions = self._conditions_for(part, "generator")
        with self._generator.autocast():
            images = self._generator.engine(self._latents(part, "generator"), conditions)
            answers = self._critic.module(self._shown(images, part, "generated"), conditions).float()
        return self._generator_terms(Generated(images, conditions, answers))
