"""What the algorithms between two stains share: generators and critics of both domains, and the order of moves."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.errors import ModelError
from models.stain.build import build_critic, build_generator
from models.stain.two_way import DomainPair, Translation, TwoWay
from trainer.learners import losses
from trainer.learners.learner import Learner, Setting, Terms
from trainer.loop.algorithm import DETAIL, Adversarial, Batches
from trainer.runs.registry import NoOptions, read_options
from trainer.tasks.stain.config import StainModelConfig, StainRunConfig

# Losses that each network has of its own: the critics' of both domains, the generators' into both.
_NETWORK_LOSSES = ("critic", "adversarial")
# Gradients at an image's pixels are small; half precision would round them to zero.
_GRADIENT_SCALE = 2.0**12


class Pair(NamedTuple):
    """One micro-batch of each domain, at the same positions of the global order."""

    a: MicroBatch
    b: MicroBatch
    shown: Mapping[str, torch.Tensor] | None = None  # generated images of each domain that critics see, from a pool


class StainAlgorithm:
    """An algorithm whose learner `generators` gives images of either domain the other's stain."""

    Options: ClassVar[type[Any]] = NoOptions
    two_way: ClassVar[bool] = False  # generators between the domains (TwoWay), or one into each (DomainPair)

    def __init__(self, config: StainRunConfig, generators: nn.Module, setting: Setting) -> None:
        self.options = read_options("stain", config.model.algorithm, config.model.options)
        self._generators = Learner("generators", generators, config.model.generator_optimizer, setting)

    @classmethod
    def build_generators(cls, model: StainModelConfig, image_size: int) -> nn.Module:
        """Fresh generators of both domains. UserError for a size that they cannot take."""
        try:
            pair = [build_generator(model.generator, image_size) for _ in range(2)]
        except ModelError as error:
            raise UserError(str(error)) from error
        return TwoWay(a_to_b=pair[0], b_to_a=pair[1]) if cls.two_way else DomainPair(*pair)

    @classmethod
    def into_domains(cls, generators: nn.Module) -> tuple[nn.Module, nn.Module]:
        """(to_a, to_b): networks that give any image the stain of a domain."""
        if isinstance(generators, TwoWay):
            return generators.b_to_a, generators.a_to_b
        assert isinstance(generators, DomainPair)
        return generators.a, generators.b


class StainGan(StainAlgorithm, Adversarial[Pair]):
    """Critics of both domains move, then the generators of both at once. Streams are `a` and `b`."""

    critic_channels: ClassVar[int] = 3

    def __init__(self, config: StainRunConfig, generators: nn.Module, setting: Setting) -> None:
        StainAlgorithm.__init__(self, config, generators, setting)
        steps = self._critic_steps_of(config.model)
        try:
            built = [build_critic(config.model.critic, config.data.image_size, self.critic_channels) for _ in range(2)]
        except ModelError as error:
            raise UserError(str(error)) from error
        optimizer = config.model.critic_optimizer
        self._critics = Learner("critics", DomainPair(*built), optimizer, setting, moves=steps)
        learners = {"critics": self._critics, "generators": self._generators}
        Adversarial.__init__(self, learners, setting, critic_steps=steps, streams=("a", "b"))

    def _critic_steps_of(self, model: StainModelConfig) -> int:
        return model.critic_steps

    def moves(self) -> dict[str, Callable[[Pair], Terms]]:
        return {
            "critics": lambda pair: self._of_each_network(self._critic_terms(pair)),
            "generators": lambda pair: self._of_each_network(self._generator_terms(pair)),
        }

    def _of_each_network(self, terms: Terms) -> Terms:
        """On logged steps, with the loss of each of the four networks (figure 40): those of domain A's come first."""
        if not self._detailed:
            return terms
        halves = {name: terms[name][1].chunk(2) for name in _NETWORK_LOSSES if name in terms}
        return terms | {
            f"{DETAIL}{name}_{domain}": (0.0, half)
            for name, both in halves.items()
            for domain, half in zip(("a", "b"), both, strict=True)
        }

    def _parts(self, batches: Batches) -> list[Pair]:
        return [Pair(a, b) for a, b in zip(next(batches["a"]), next(batches["b"]), strict=True)]

    @abstractmethod
    def _critic_terms(self, pair: Pair) -> Terms:
        """What both critics minimise; `critic` is of domain A's images [n], then of domain B's."""

    @abstractmethod
    def _generator_terms(self, pair: Pair) -> Terms:
        """What both generators minimise; `adversarial` is of images in domain A [n], then of those in domain B."""


@dataclass(frozen=True)
class CycleOptions:
    """The weight of each term (eq. 21, 23, 29)."""

    adversarial: float = 1.0
    cycle: float = 10.0
    identity: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, float | int) and value < 0:
                raise ValueError(f"{name}={value}: must be at least 0")


class CycleGanBase(StainGan):
    """Translation between two domains without pairs (thesis 3.4), with cycle consistency and identity."""

    two_way = True
    Options = CycleOptions

    def __init__(self, config: StainRunConfig, generators: nn.Module, setting: Setting) -> None:
        super().__init__(config, generators, setting)
        assert isinstance(self._generators.module, TwoWay)
        self._two_way = self._generators.module

    @abstractmethod
    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        """What a generator minimises, of each image [n], from the critic's answer to its images."""

    def _fakes(self, pair: Pair) -> dict[str, torch.Tensor]:
        """Generated images of both domains, float32, without their graph."""
        a, b = pair.a, pair.b
        with torch.no_grad(), self._generators.autocast():
            return {"a": self._two_way.b_to_a(b.images).float(), "b": self._two_way.a_to_b(a.images).float()}

    def _judge(self, pair: Pair, fakes: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Both critics' patch maps [2n, 1, h, w]: of real images, then of generated ones."""
        a, b = pair.a, pair.b
        # In one pass through the engine: some engines allow no second.
        with self._critics.autocast():
            maps: tuple[torch.Tensor, torch.Tensor] = self._critics.engine(
                torch.cat([a.images, fakes["a"]]), torch.cat([b.images, fakes["b"]])
            )
        return maps

    def _generator_terms(self, pair: Pair) -> Terms:
        """Equations 29 and 23, both directions."""
        a, b = pair.a.images, pair.b.images
        with self._generators.autocast():
            made: Translation = self._generators.engine(a, b, identity=self.options.identity > 0)
            maps = self._critics.module(made.fake_a, made.fake_b)
        cycle = losses.cycle_consistency(a, made.cycle_a) + losses.cycle_consistency(b, made.cycle_b)
        terms: Terms = {
            "adversarial": (self.options.adversarial, torch.cat([self._adversarial(one) for one in maps])),
            "cycle": (self.options.cycle, cycle),
        }
        if made.same_a is not None and made.same_b is not None:
            same = losses.identity(a, made.same_a) + losses.identity(b, made.same_b)
            terms["identity"] = (self.options.identity, same)
        return terms | (_pulls(terms, made) if self._detailed else {})


def _pulls(terms: Terms, made: Translation) -> Terms:
    """L2 norm of each term's gradient at a generated image of domain A, to compare the terms' strength.

    The identity term acts on another output of the generator, and is measured there.
    """
    pulls: Terms = {}
    for name, (weight, values) in terms.items():
        image = made.same_a if name == "identity" and made.same_a is not None else made.fake_a
        (gradient,) = torch.autograd.grad(weight * values.sum() * _GRADIENT_SCALE, image, retain_graph=True)
        pulls[f"{DETAIL}pull_{name}"] = (0.0, gradient.float().flatten(1).norm(dim=1) / _GRADIENT_SCALE)
    return pulls
