"""Which images are normalised, by the type that a first classifier names: the thesis's rule without its labels."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig

_IDENTITY = ("name", "types", "checkpoint", "dataset_hash")


@dataclass(frozen=True)
class TypeGate:
    """A first classifier of raw images, and the types whose images pass.

    Its state holds the network's configuration and weights, as that of a `LearnedNormalizer` does.
    """

    network: nn.Module  # images float32 [n, 3, S, S] in [-1, 1] -> logits [n, types], in evaluation mode
    config: ClassifierConfig
    image_size: int  # S; images of another size are resized
    cell_types: tuple[str, ...]  # of the network's outputs
    types: tuple[str, ...]  # those that pass
    checkpoint: str  # SHA-256 of the run's checkpoint
    dataset_hash: str  # content hash of the run's data set

    @property
    def name(self) -> str:
        """Name of the classifier's model."""
        return self.config.name

    @torch.no_grad()
    def passes(self, images: Tensor) -> Tensor:
        """Bool [n]: whether the type named for each image passes. images: float32 [n, 3, H, W] in [-1, 1]."""
        if any(weights.device != images.device for weights in self.network.parameters()):
            self.network.to(images.device)  # an exporter cannot trace Module.to
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        passing = torch.tensor([name in self.types for name in self.cell_types], device=images.device)
        return passing[self.network(images).argmax(dim=1)]

    def describe(self) -> dict[str, Any]:
        """What names it in scores."""
        return {name: getattr(self, name) for name in _IDENTITY} | {"types": list(self.types)}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        state: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        state["config"] = dataclasses.asdict(self.config)
        state["weights"] = {name: weights.cpu() for name, weights in state.pop("network").state_dict().items()}
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The gate of a `state_dict()`."""
        facts = dict(state)
        config = ClassifierConfig(**facts.pop("config"))
        network = build_classifier(config, len(facts["cell_types"]), facts["image_size"])
        network.load_state_dict(facts.pop("weights"))
        return cls(network.eval(), config, **{name: facts[name] for name in facts})
