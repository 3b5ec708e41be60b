"""What the few-shot algorithms share: episodes, in which copies of networks learn from a handful of images."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, normal, uniform
from models.errors import ModelError
from models.few_shot.networks import Discriminator, Generator
from trainer.learners.average import RunningAverage
from trainer.learners.choices import Precision
from trainer.learners.learner import Setting, Terms, add, frozen_weights
from trainer.learners.optimizer import make_adam
from trainer.learners.topology import autocast
from trainer.loop.algorithm import Algorithm
from trainer.runs.registry import NoOptions, algorithm_class, read_options
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig, InnerLoopConfig

# Where the loss scale of half precision begins: an episode is too short to come down from the usual 65536.
_FIRST_LOSS_SCALE = 2.0**10

# Images float32 [n, 3, S, S] in [-1, 1], and int64 [n], where they stand in the order of all images shown.
Shown = tuple[torch.Tensor, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Draw:
    """The random numbers of one move: a row for each image, by its position and what they are for."""

    key: int
    positions: npt.NDArray[np.int64]

    def normal(self, purpose: str, count: int, device: torch.device = torch.device("cpu")) -> torch.Tensor:
        """Standard normal float32 [n, count], on the device."""
        draws = normal(derive_key(self.key, purpose), self.positions, count)
        return to_device(draws.astype(np.float32), device)

    def uniform(self, purpose: str, count: int) -> npt.NDArray[np.float64]:
        """Uniform in [0, 1), float64 [n, count]."""
        return uniform(derive_key(self.key, purpose), self.positions, count)


class FastLearner:
    """Copies of networks that share one fresh Adam and learn inside an episode, on this rank alone.

    module: the copies by name. average: the same with the running average of their weights, or the copies themselves.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: InnerLoopConfig,
        precision: Precision,
        average_decay: float,
        rehearsal: bool,
    ) -> None:
        self.module = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()}).train()
        for parameter in self.module.parameters():
            parameter.grad = None
        device = next(self.module.parameters()).device
        if device.type == "cpu" and not rehearsal:  # 1.2 times as fast there; fake tensors cannot change
            self.module.to(memory_format=torch.channels_last)
        weights, self.learning_rate = self.module.parameters(), config.learning_rate
        self._optimizer = make_adam(weights, self.learning_rate, config.betas, device, rehearsal=rehearsal)
        self._scaler = torch.amp.GradScaler(device.type, init_scale=_FIRST_LOSS_SCALE, enabled=precision == "fp16")
        self._average = RunningAverage(self.module, average_decay) if average_decay > 0 else None
        self._steps = 0

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of fp16; None in other precisions."""
        return float(self._scaler.get_scale()) if self._scaler.is_enabled() else None

    @property
    def average(self) -> nn.ModuleDict:
        average = self.module if self._average is None else self._average.module
        assert isinstance(average, nn.ModuleDict)
        return average

    def move(self, loss: torch.Tensor) -> None:
        """One step of Adam down the loss's gradient."""
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self._steps += 1
        if self._average is not None:
            self._average.update(self.module, self._steps)

    def state_dict(self) -> dict[str, Any]:
        """The complete state."""
        return {
            "module": self.module.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state."""
        self.module.load_state_dict(state["module"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._steps = state["steps"]


class Episode(ABC):
    """One cell type's few images and networks that learn from them, starting as copies of others (fast weights).

    A subclass says which networks learn against the discriminator and with it, and what either minimises.
    """

    Options: ClassVar[type[Any]] = NoOptions
    generators: ClassVar[tuple[str, ...]] = ("generator",)
    discriminators: ClassVar[tuple[str, ...]] = ("discriminator",)
    makers: ClassVar[tuple[str, ...]] = ("generator",)  # networks that make an image from its latents
    meta_trained: ClassVar[bool] = False  # by Reptile on the rich types

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        model: FewShotModelConfig,
        precision: Precision,
        average_decay: float = 0.0,
        *,
        rehearsal: bool = False,
    ) -> None:
        """networks: by name, all that the algorithm has; they stay as they are. rehearsal: see Setting."""
        self._config, self._precision = model.inner, precision
        self.options = read_options("few_shot", model.algorithm, model.options)
        generators, discriminators = (
            {name: networks[name] for name in names} for names in (self.generators, self.discriminators)
        )
        self._generators = FastLearner(generators, model.inner, precision, average_decay, rehearsal)
        self._discriminators = FastLearner(discriminators, model.inner, precision, 0, rehearsal)
        self.learners = {"generators": self._generators, "discriminators": self._discriminators}

    @classmethod
    def runs_episodes(cls, model: FewShotModelConfig) -> bool:
        """Whether it is meta-trained on the rich types."""
        return cls.meta_trained and model.meta

    @classmethod
    def learns_from_rich(cls, model: FewShotModelConfig) -> bool:
        """Whether anything is learned before the adaptation."""
        return cls.runs_episodes(model)

    @classmethod
    def latent_size(cls, model: FewShotModelConfig) -> int:
        """Numbers that an image follows from."""
        return model.generator.latent_size

    @classmethod
    def build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        """Fresh networks by name. UserError for a size that they cannot take."""
        try:
            return cls._build_networks(model, image_size)
        except ModelError as error:
            raise UserError(str(error)) from error

    @classmethod
    def _build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        discriminator = Discriminator(model.discriminator, image_size)
        return {
            "discriminator": discriminator,
            "generator": Generator(model.generator, cls.latent_size(model), image_size),
        }

    @classmethod
    def make(cls, makers: Mapping[str, nn.Module], latents: torch.Tensor) -> torch.Tensor:
        """Images float32 [n, 3, S, S] from latents [n, latent_size]."""
        return makers["generator"](latents)

    @classmethod
    def training_on_rich(
        cls, config: FewShotRunConfig, networks: Mapping[str, nn.Module], setting: Setting
    ) -> Algorithm:
        """Trains these networks on the rich types. Algorithms whose `learns_from_rich` can be true define it."""
        raise NotImplementedError(f"{cls.__name__} learns nothing before the adaptation")

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The fast weights, by the networks' names."""
        return {**self._generators.module, **self._discriminators.module}

    @property
    def averages(self) -> dict[str, nn.Module]:
        """What makes images, with averaged weights where an average is kept."""
        return dict(self._generators.average.items())

    def run_round(self, shown: Iterator[Shown], key: int, number: int, rounds: int) -> dict[str, torch.Tensor]:
        """Round `number` of `rounds`, each move on the next of `shown`; each term's mean over images and moves.

        key: of all that is drawn in the episode; positions tell a move's images apart.
        """
        sums: dict[str, torch.Tensor] = {}
        for move in range(self._config.moves):
            images, positions = next(shown)
            draw = Draw(derive_key(key, number, move), positions)
            if move < self._config.discriminator_steps:
                learner, other, steps = self._discriminators, self._generators, self._config.discriminator_steps
                find_terms = self.discriminator_terms
            else:
                learner, other, steps = self._generators, self._discriminators, self._config.generator_steps
                find_terms = self.generator_terms
            with frozen_weights(other.module), self._autocast(images.device):
                terms = find_terms(images, draw)
            learner.move(torch.stack([weight * values.mean() for weight, values in terms.values()]).sum())
            add(sums, {name: values.detach().mean() for name, (_, values) in terms.items()}, 1 / steps)
        return sums

    @abstractmethod
    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """What the discriminator minimises, float32 [n] each, from real images [n, 3, S, S]."""

    @abstractmethod
    def generator_terms(self, images: torch.Tensor, draw: Draw) -> Terms:
        """What the generator and those that learn with it minimise, float32 [n] each."""

    def _generate(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """As many images from noise as there are real ones, float32 [n, 3, S, S]."""
        generator = self.networks["generator"]
        assert isinstance(generator, Generator)
        return generator(draw.normal("z", generator.in_size, images.device))

    def _autocast(self, device: torch.device) -> Any:
        return autocast(self._precision, device)


def judge(discriminator: nn.Module, *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The logits of each batch of images, from one pass."""
    logits: torch.Tensor = discriminator(torch.cat(batches))
    return logits.split([len(batch) for batch in batches])


def episode_class(model: FewShotModelConfig) -> type[Episode]:
    """The class of the model's algorithm. UserError for model.meta=false where it is not meta-trained."""
    found: type[Episode] = algorithm_class("few_shot", model.algorithm)
    if not model.meta and not found.meta_trained:
        raise UserError(f"model.meta=false: {model.algorithm} is not meta-trained; leave it out")
    return found
