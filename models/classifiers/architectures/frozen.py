"""A frozen timm backbone and a head that is fitted to its features: linear, or k nearest neighbours."""

import torch
from torch import Tensor, nn

from models.classifiers.architectures.timm import build as build_timm
from models.classifiers.config import ClassifierConfig
from models.classifiers.fitted import FittedClassifier
from models.classifiers.nearest_neighbours import NearestNeighbours


def build(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    """The backbone alone: a timm model without its last layer; `FrozenClassifier` puts the head on top."""
    return build_timm(config, 0, image_size)


class FrozenClassifier(FittedClassifier):
    """A backbone whose weights never change, and a head fitted to its features; before the fit all types are equal.

    backbone: images [n, 3, S, S] in [-1, 1] -> features [n, size].
    """

    def __init__(self, backbone: nn.Module, size: int, config: ClassifierConfig, number_of_types: int) -> None:
        super().__init__()
        self.types = number_of_types
        self.backbone = backbone.requires_grad_(False)
        self.head: nn.Module = nn.Linear(size, number_of_types)
        if config.head == "nearest":
            self.head = NearestNeighbours(torch.zeros(1, size), torch.zeros(1), number_of_types, neighbours=1)
        self.head.requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        # On a CPU, convolutions are faster in this memory format.
        features: Tensor = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return features.float()

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)
