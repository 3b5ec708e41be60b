"""Every algorithm with tiny networks, and batches of noise for it."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.stream import MicroBatch, StreamConfig, Topology
from launchers.console import read_config
from models.conditional import ClassifierConfig, CriticConfig, GeneratorConfig
from models.stain import CriticConfig as StainCriticConfig
from models.stain import GeneratorConfig as StainGeneratorConfig
from trainer import classifier_training, conditional_training, stain_training
from trainer.classifier_config import ClassifierRunConfig
from trainer.conditional_config import ConditionalModelConfig, ConditionalRunConfig
from trainer.conditional_run import GAMES
from trainer.fit import FitConfig, Game
from trainer.stain_config import StainModelConfig, StainRunConfig
from trainer.stain_run import build_generators, into_domains
from trainer.topology import Precision
from trainer.trained_classifier import build_network

SIZE, TYPES, BATCH, STEPS = 32, 3, 4, 8
_DATA, _LENGTH = StreamConfig(image_size=SIZE), FitConfig(global_batch=BATCH)


def _classifier(precision: Precision, topology: Topology) -> Game:
    settings = ["model=senet_tiny_ge", f"data.image_size={SIZE}", f"train.global_batch={BATCH}"]
    config = read_config(ClassifierRunConfig, "train_classifier", settings)
    torch.manual_seed(0)
    network = build_network(config.model, TYPES, SIZE)
    return classifier_training.make_game(config, network, precision, "ddp", STEPS, topology)


def _conditional(game: str, precision: Precision, topology: Topology) -> Game:
    model = ConditionalModelConfig(
        game=game,  # type: ignore[arg-type]
        generator=GeneratorConfig(width=4, latent_size=6, blocks=[1, 1, 1]),
        critic=CriticConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        classifier=ClassifierConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        critic_steps=1,
    )
    config = ConditionalRunConfig(model=model, data=_DATA, train=_LENGTH)
    return conditional_training.make_game(config, TYPES, precision, "ddp", STEPS, topology)


def _stain(game: str, precision: Precision, topology: Topology) -> Game:
    model = StainModelConfig(
        game=game,  # type: ignore[arg-type]
        generator=StainGeneratorConfig(width=4, depth=3),
        critic=StainCriticConfig(width=4, layers=2),
    )
    config = StainRunConfig(a="a", b="b", model=model, data=_DATA, train=_LENGTH)
    torch.manual_seed(0)
    networks = build_generators(model, SIZE)
    teacher = into_domains(model, build_generators(model, SIZE)) if game == "stain_student" else None
    return stain_training.make_game(config, networks, teacher, precision, "ddp", STEPS, topology)


# Those whose players are the trainer's own; the few-shot games have others.
BUILD: dict[str, Callable[[Precision, Topology], Game]] = {
    "classifier": _classifier,
    **{name: functools.partial(_conditional, name) for name in GAMES},
    **{name: functools.partial(_stain, name) for name in ("w_cyclegan_gp", "cyclegan", "pix2pix", "stain_student")},
}


def noise(device: torch.device) -> Iterator[MicroBatch]:
    """Batches of random images, endless."""
    number = 0
    while True:
        generator = torch.Generator().manual_seed(number)
        images = torch.rand(BATCH, 3, SIZE, SIZE, generator=generator) * 2 - 1
        labels = torch.arange(BATCH) % TYPES
        positions = number * BATCH + np.arange(BATCH)
        yield MicroBatch(images.to(device), labels.to(device), np.arange(BATCH), positions, number, 1)
        number += 1


@dataclass
class Played:
    """A game with its streams."""

    game: Game
    streams: Mapping[str, Iterator[list[MicroBatch]]]

    def step(self) -> dict[str, float]:
        """One step; all its numbers."""
        result = self.game.step(self.streams, detailed=False)
        return {name: value.item() for name, value in (*result.sums.items(), *result.norms.items())}


def play(name: str, precision: Precision, topology: Topology) -> Played:
    game = BUILD[name](precision, topology)
    return Played(game, {stream: ([batch] for batch in noise(topology.device)) for stream in game.takes})


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def overflow(module: nn.Module) -> Any:
    """From now on gradients of this network overflow; `remove()` of what comes back ends it."""
    first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    return first.register_hook(lambda gradient: gradient + torch.inf)
