"""Perceptual distances of images: LPIPS where its weights are at hand, else in a classifier's feature maps."""

import copy
import pickle
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image.lpips import _LPIPS

from data_pipeline.errors import UserError
from data_pipeline.randomness import permute
from models.classifiers.architectures.senet import SENetGE
from models.classifiers.input_adapter import InputAdapter
from trainer.metrics.feature_space import ClassifierFeatures

Pairs = NDArray[np.int64]

# AlexNet of ImageNet, torchvision's file: what LPIPS v0.1 is calibrated for by default.
_BACKBONE = "alexnet-owt-7be5be79.pth"
_ADDRESS = f"https://download.pytorch.org/models/{_BACKBONE}"
_SMALLEST = 64  # pixels; the patches that LPIPS was calibrated on
_BATCH = 32


class PerceptualDistance(nn.Module, ABC):
    """Frozen network: images and others, float32 [n, 3, H, W] in [-1, 1] -> distance of each pair, float32 [n]."""

    name: str  # in reports; only the published one is called LPIPS

    @abstractmethod
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """As the class says; 0 for equal images."""


class LearnedPerceptualDistance(PerceptualDistance):
    """LPIPS v0.1 with AlexNet (Zhang et al. 2018). Images smaller than 64 px are enlarged to that (bilinear).

    weights: torchvision's file of AlexNet. UserError for a missing file, or one of another network.
    """

    name = "LPIPS"

    def __init__(self, weights: Path) -> None:
        super().__init__()
        if not weights.is_file():
            raise UserError(f"{weights}: no such file: give AlexNet's weights, {_BACKBONE} ({_ADDRESS})")
        network: Any = _LPIPS(net="alex", pnet_rand=True)
        try:
            saved = torch.load(weights, map_location="cpu", weights_only=True)
            # features.3.weight is slice2.3.weight there
            names = {name.partition(".")[2]: name for name in network.net.state_dict()}
            layers = {name.removeprefix("features."): value for name, value in saved.items() if "features." in name}
            network.net.load_state_dict({names[name]: value for name, value in layers.items()})
        except (RuntimeError, KeyError, AttributeError, EOFError, pickle.UnpicklingError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{weights}: not AlexNet's weights, or damaged ({reason}): give {_BACKBONE}") from error
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        if images.shape[-1] < _SMALLEST:
            images, others = (_resized(each, _SMALLEST) for each in (images, others))
        distances: Tensor = self.network(images, others)
        return distances.flatten()


class ClassifierPerceptualDistance(PerceptualDistance):
    """LPIPS's formula (Zhang et al. 2018, equation 1, all weights 1) in the feature maps of a classifier of cells.

    Maps of each stage, scaled to unit length at each place; squared differences, summed over channels, averaged
    over places, summed over stages.
    """

    def __init__(self, classifier: ClassifierFeatures) -> None:
        super().__init__()
        self.name = f"perceptual distance [{classifier.name}]"
        self.image_size = classifier.image_size
        # A copy: other users of the network would leave their maps here.
        self.network = copy.deepcopy(classifier.network)
        self._maps: list[Tensor] = []
        for stage in _stages(self.network):
            stage.register_forward_hook(lambda _, __, output: self._maps.append(_unit_length(output)))

    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        pairs = zip(self._maps_of(images), self._maps_of(others), strict=True)
        return torch.stack([(a - b).square().sum(1).mean(1) for a, b in pairs]).sum(0)

    def _maps_of(self, images: Tensor) -> list[Tensor]:
        self._maps.clear()
        self.network(images if images.shape[-1] == self.image_size else _resized(images, self.image_size))
        return list(self._maps)


def perceptual_distance(weights: str | None, classifier: ClassifierFeatures) -> PerceptualDistance:
    """LPIPS with the file of AlexNet's weights, or the one in torch's cache; without either the classifier's distance.

    Nothing is downloaded. UserError for a file that cannot be used.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _BACKBONE
    if weights is not None or cached.is_file():
        return LearnedPerceptualDistance(Path(weights or cached))
    return ClassifierPerceptualDistance(classifier)


def keyed_pairs(key: int, count: int, rows: int, others: int | None = None) -> Pairs:
    """At most `count` different pairs of row and other row, int64 [k, 2], drawn by key.

    Without `others` both are of one set of `rows` and never the same row. Empty where there is no pair.
    """
    columns = rows - 1 if others is None else others
    total = rows * columns
    if total <= 0:
        return np.empty((0, 2), dtype=np.int64)
    first, second = np.divmod(permute(key, np.arange(min(count, total)), total), columns)
    if others is None:
        second = second + (second >= first)
    return np.stack([first, second], axis=1)


@torch.no_grad()
def pair_distances(distance: PerceptualDistance, images: Tensor, others: Tensor) -> NDArray[np.float64]:
    """Distance of each image, float32 [n, 3, H, W] in [-1, 1], from the one in its place in `others`: float64 [n]."""
    device = next(distance.parameters()).device
    parts = zip(images.split(_BATCH), others.split(_BATCH), strict=True)
    found = [distance(some.to(device), more.to(device)).double().cpu() for some, more in parts]
    return torch.cat(found).numpy() if found else np.empty(0)


def _resized(images: Tensor, size: int) -> Tensor:
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True)


def _stages(network: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are the feature maps at each resolution."""
    if isinstance(network, InputAdapter):
        return _stages(network.network)
    if isinstance(network, SENetGE):
        return [network.get_submodule(name) for name in ("layer0", *network.stages)]
    timm_model: Any = network
    return [network.get_submodule(stage["module"]) for stage in timm_model.feature_info]


def _unit_length(maps: Tensor) -> Tensor:
    """Maps [n, C, H, W], or tokens [n, T, C], as [n, C, places], each place a vector of length 1."""
    flat = maps.flatten(2) if maps.ndim == 4 else maps.transpose(1, 2)
    return functional.normalize(flat, dim=1)
