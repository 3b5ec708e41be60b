"""What the few-shot algorithms share: episodes, in which copies of networks learn from a handful of images."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from timm.utils import ModelEmaV3
from torch import nn

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key, normal, uniform
from models.few_shot.networks import Generator
from trainer.learners.choices import Precision
from trainer.learners.topology import autocast
from trainer.tasks.few_shot.config import FewShotWeights, InnerLoopConfig

# Where the loss scale of half precision begins: an episode is too short to come down from the usual 65536.
_FIRST_LOSS_SCALE = 2.0**10

# Images float32 [n, 3, S, S] in [-1, 1], and int64 [n], where they stand in the order of all images shown.
Shown = tuple[torch.Tensor, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Draw:
    """The random numbers of one move: a row for each image, by its position and what they are for (contract C11)."""

    key: int
    positions: npt.NDArray[np.int64]

    def normal(self, purpose: str, count: int, device: torch.device = torch.device("cpu")) -> torch.Tensor:
        """Standard normal float32 [n, count], on the device."""
        draws = normal(derive_key(self.key, purpose), self.positions, count)
        return to_device(draws.astype(np.float32), device)

    def uniform(self, purpose: str, count: int) -> npt.NDArray[np.float64]:
        """Uniform in [0, 1), float64 [n, count]."""
        return uniform(derive_key(self.key, purpose), self.positions, count)


def weighted_sum(weights: FewShotWeights, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The weighted sum of terms' means over the images; a term that has no weight counts once."""
    return torch.stack([getattr(weights, name, 1.0) * term.mean() for name, term in terms.items()]).sum()


class FastLearner:
    """Copies of networks that share one fresh Adam and learn inside an episode, in this process alone.

    networks: the copies, on the device of those that they were made from. averages: the same with the exponential
    moving average of their weights where `average_decay` is above 0, else the copies themselves.
    """

    def __init__(
        self, networks: Mapping[str, nn.Module], config: InnerLoopConfig, precision: Precision, average_decay: float
    ) -> None:
        self.networks = nn.ModuleDict({name: copy.deepcopy(network) for name, network in networks.items()}).train()
        for parameter in self.networks.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        device = next(self.networks.parameters()).device
        self._optimizer = torch.optim.Adam(
            self.networks.parameters(),
            lr=config.learning_rate,
            betas=(config.betas[0], config.betas[1]),
            fused=device.type == "cuda",
        )
        self._scaler = torch.amp.GradScaler(device.type, init_scale=_FIRST_LOSS_SCALE, enabled=precision == "fp16")
        self._average = ModelEmaV3(self.networks, decay=average_decay, use_warmup=True) if average_decay > 0 else None
        self._moves = 0

    @property
    def averages(self) -> nn.ModuleDict:
        averages = self.networks if self._average is None else self._average.module
        assert isinstance(averages, nn.ModuleDict)
        return averages

    def move(self, loss: torch.Tensor) -> None:
        """One step of Adam down the loss's gradient."""
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        self._moves += 1
        if self._average is not None:
            self._average.update(self.networks, self._moves)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While another learner moves: gradients pass through these networks and stay out of their weights."""
        moving = [parameter for parameter in self.networks.parameters() if parameter.requires_grad]
        for parameter in moving:
            parameter.requires_grad_(False)
        yield
        for parameter in moving:
            parameter.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next move depends on."""
        return {
            "networks": self.networks.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "moves": self._moves,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self.networks.load_state_dict(state["networks"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._moves = state["moves"]


class Episode(ABC):
    """One cell type's few images and networks that learn from them, starting as copies of others (fast weights).

    A subclass says which networks learn against the discriminator and with it, and what either minimises.
    """

    generators: ClassVar[tuple[str, ...]] = ("generator",)
    discriminators: ClassVar[tuple[str, ...]] = ("discriminator",)

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        config: InnerLoopConfig,
        weights: FewShotWeights,
        *,
        precision: Precision,
        average_decay: float = 0.0,
    ) -> None:
        """networks: by name, all that the algorithm has; they stay as they are."""
        self._config, self._weights, self._precision = config, weights, precision
        self._generators = FastLearner(
            {name: networks[name] for name in self.generators}, config, precision, average_decay
        )
        self._discriminators = FastLearner({name: networks[name] for name in self.discriminators}, config, precision, 0)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The fast weights, by the networks' names."""
        return {**self._generators.networks, **self._discriminators.networks}

    @property
    def averages(self) -> dict[str, nn.Module]:
        """What makes images, with averaged weights where an average is kept."""
        return dict(self._generators.averages.items())

    def play_round(self, shown: Iterator[Shown], key: int, number: int, rounds: int) -> dict[str, torch.Tensor]:
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
            with other.frozen(), self._autocast(images.device):
                terms = find_terms(images, draw)
            learner.move(weighted_sum(self._weights, terms))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().mean() / steps
        return sums

    @abstractmethod
    def discriminator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        """What the discriminator minimises, float32 [n] each, from real images [n, 3, S, S]."""

    @abstractmethod
    def generator_terms(self, images: torch.Tensor, draw: Draw) -> dict[str, torch.Tensor]:
        """What the generator and those that learn with it minimise, float32 [n] each."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next round depends on."""
        return {"generators": self._generators.state_dict(), "discriminators": self._discriminators.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._generators.load_state_dict(state["generators"])
        self._discriminators.load_state_dict(state["discriminators"])

    def _generate(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        """As many images from noise as there are real ones, float32 [n, 3, S, S]."""
        generator = self.networks["generator"]
        assert isinstance(generator, Generator)
        made: torch.Tensor = generator(draw.normal("z", generator.in_size, images.device))
        return made

    def _autocast(self, device: torch.device) -> Any:
        return autocast(self._precision, device)


def judge(discriminator: nn.Module, *batches: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The logits of each batch of images, from one pass."""
    logits: torch.Tensor = discriminator(torch.cat(batches))
    return logits.split([len(batch) for batch in batches])
