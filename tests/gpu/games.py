"""Every algorithm with tiny networks, and batches of noise for it."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import MicroBatch, Topology
from launchers.console import read_config
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from models.stain.config import CriticConfig as StainCriticConfig
from models.stain.config import GeneratorConfig as StainGeneratorConfig
from trainer.learners.choices import Precision
from trainer.loop.fit import Algorithm
from trainer.loop.fit_config import FitConfig
from trainer.tasks.classification import training as classifier_training
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.load import build_network
from trainer.tasks.conditional import training as conditional_training
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig
from trainer.tasks.conditional.load import ALGORITHMS
from trainer.tasks.stain import training as stain_training
from trainer.tasks.stain.config import StainModelConfig, StainRunConfig
from trainer.tasks.stain.load import build_generators, into_domains

SIZE, TYPES, BATCH, STEPS = 32, 3, 4, 8
_DATA, _LENGTH = StreamConfig(image_size=SIZE), FitConfig(global_batch=BATCH)


def _classifier(precision: Precision, topology: Topology) -> Algorithm:
    settings = ["model=senet_tiny_ge", f"data.image_size={SIZE}", f"train.global_batch={BATCH}"]
    config = read_config(ClassifierRunConfig, "train_classifier", settings)
    torch.manual_seed(0)
    network = build_network(config.model, TYPES, SIZE)
    return classifier_training.make_algorithm(config, network, precision, "ddp", STEPS, topology)


def _conditional(algorithm: str, precision: Precision, topology: Topology) -> Algorithm:
    model = ConditionalModelConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        generator=GeneratorConfig(width=4, latent_size=6, blocks=[1, 1, 1]),
        critic=CriticConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        classifier=ClassifierConfig(width=4, hidden=8, blocks=[1, 1, 1]),
        critic_steps=1,
    )
    config = ConditionalRunConfig(model=model, data=_DATA, train=_LENGTH)
    return conditional_training.make_algorithm(config, TYPES, precision, "ddp", STEPS, topology)


def _stain(algorithm: str, precision: Precision, topology: Topology) -> Algorithm:
    model = StainModelConfig(
        algorithm=algorithm,  # type: ignore[arg-type]
        generator=StainGeneratorConfig(width=4, depth=3),
        critic=StainCriticConfig(width=4, layers=2),
    )
    config = StainRunConfig(a="a", b="b", model=model, data=_DATA, train=_LENGTH)
    torch.manual_seed(0)
    networks = build_generators(model, SIZE)
    teacher = into_domains(model, build_generators(model, SIZE)) if algorithm == "stain_student" else None
    return stain_training.make_algorithm(config, networks, teacher, precision, "ddp", STEPS, topology)


# Those whose learners are the trainer's own; the few-shot algorithms have others.
BUILD: dict[str, Callable[[Precision, Topology], Algorithm]] = {
    "classifier": _classifier,
    **{name: functools.partial(_conditional, name) for name in ALGORITHMS},
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
    """An algorithm with its streams."""

    algorithm: Algorithm
    streams: Mapping[str, Iterator[list[MicroBatch]]]

    def step(self) -> dict[str, float]:
        """One step; all its numbers."""
        result = self.algorithm.step(self.streams, detailed=False)
        return {name: value.item() for name, value in (*result.sums.items(), *result.norms.items())}


def play(name: str, precision: Precision, topology: Topology) -> Played:
    algorithm = BUILD[name](precision, topology)
    return Played(algorithm, {stream: ([batch] for batch in noise(topology.device)) for stream in algorithm.takes})


def weights_of(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def overflow(module: nn.Module) -> Any:
    """From now on gradients of this network overflow; `remove()` of what comes back ends it."""
    first = next(parameter for parameter in module.parameters() if parameter.requires_grad)
    return first.register_hook(lambda gradient: gradient + torch.inf)
