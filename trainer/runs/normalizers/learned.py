"""A trained generator as a stain normaliser."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.stain.build import build_generator
from models.stain.config import GeneratorConfig
from models.stain.grey import ColourGrey

_IDENTITY = ("name", "target", "checkpoint", "dataset_hash", "image_size")


@dataclass(frozen=True)
class LearnedNormalizer:
    """The generator of a stain run that gives images the stain of `target`.

    Its state holds the network's configuration and weights: neither the run nor the stain task is needed to load it.
    """

    network: nn.Module  # a models.stain.build.Generator, or a ColourGrey with one, in evaluation mode
    generator: GeneratorConfig
    name: str  # the run's algorithm
    target: str  # domain
    checkpoint: str  # SHA-256 of the run's checkpoint
    dataset_hash: str  # content hash of the run's data set
    image_size: int  # side in pixels of the square images that it was trained on

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if next(self.network.parameters()).device != images.device:  # an exporter cannot trace Module.to
            self.network.to(images.device)
        normalized: Tensor = self.network(images)
        return normalized.float()

    def describe(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _IDENTITY}

    def state_dict(self) -> dict[str, Any]:
        return {
            **self.describe(),
            "generator": dataclasses.asdict(self.generator),
            "grey_first": isinstance(self.network, ColourGrey),
            "weights": {name: weights.cpu() for name, weights in self.network.state_dict().items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        config = GeneratorConfig(**state["generator"])
        network: nn.Module = build_generator(config, state["image_size"])
        if state["grey_first"]:
            network = ColourGrey(network)
        network.load_state_dict(state["weights"])
        return cls(network.eval(), config, **{name: state[name] for name in _IDENTITY})
