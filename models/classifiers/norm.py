"""Other normalisation layers in the place of batch norms, whose statistics bind a classifier to its training images."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.errors import ModelError
from models.layer_choices import ClassifierNorm

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
_AUXILIARY = ".generated."  # in the names of an auxiliary batch norm's second set


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018) with a batch norm's affine weights: statistics of each image, none saved.

    float [n, C, H, W], same out. Groups: 32 at most, of at least 8 channels each where there are so many.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        channels = norm.num_features
        groups = max(count for count in range(1, 33) if channels % count == 0 and count <= max(1, channels // 8))
        super().__init__(groups, channels, norm.eps, norm.affine)
        self.drop, self.act = _what_follows(norm)
        self.load_state_dict(without_statistics(norm.state_dict()))

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm by its running statistics in training, too; they never change. float [n, C, H, W], same out."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, affine=norm.affine)
        self.drop, self.act = _what_follows(norm)
        self.load_state_dict(norm.state_dict())

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        super().train(mode)
        self.training = False
        return self

    def forward(self, features: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(features)))


class AuxiliaryBatchNorm(nn.BatchNorm2d):
    """Batch norm with a second set of running statistics and affine weights for generated images (Xie et al. 2020).

    float [n, C, H, W], same out. In training the last `generated_images` of a batch are generated ones; these and the
    real ones are normalised apart, each by its own statistics. Fewer than two images have no statistics: they are
    normalised by the running ones. In evaluation it is the batch norm of real images.
    """

    generated_images = 0

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=norm.affine)
        self.drop, self.act = _what_follows(norm)
        self.load_state_dict(norm.state_dict())
        self.generated = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=norm.affine)
        self.generated.load_state_dict(norm.state_dict())

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return self._finished(super().forward(features))
        real, generated = features.split([len(features) - self.generated_images, self.generated_images])
        return self._finished(torch.cat([_normalized(self, real), _normalized(self.generated, generated)]))

    def _finished(self, normalized: Tensor) -> Tensor:
        return self.act(self.drop(normalized))


def _normalized(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    """Batch norm by the batch's statistics, or by the running ones where there are fewer than two images.

    Without an image, too, the weights have a gradient, zero: data-parallel training waits for it.
    """
    if len(features) > 1:
        return nn.BatchNorm2d.forward(norm, features)
    return functional.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def auxiliary_batch_norms(network: nn.Module) -> list[AuxiliaryBatchNorm]:
    """The network's auxiliary batch norms."""
    return [module for module in network.modules() if isinstance(module, AuxiliaryBatchNorm)]


def of_real_images(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without what auxiliary batch norms hold for generated images: that of plain batch norms."""
    return {name: value for name, value in weights.items() if _AUXILIARY not in name}


def replace_batch_norms(network: nn.Module, choice: ClassifierNorm) -> None:
    """Put another layer in the place of each BatchNorm2d, with its weights. ModelError where there is none."""
    kind = {"group": GroupNorm, "frozen": FrozenBatchNorm, "auxiliary": AuxiliaryBatchNorm}[choice]
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.BatchNorm2d)
    ]
    if not found:
        raise ModelError(f"model.norm={choice}: this network has no batch norm to replace: leave model.norm out")
    for parent, name, child in found:
        setattr(parent, name, kind(child))


def without_statistics(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without batch norms' running statistics."""
    return {name: value for name, value in weights.items() if not name.endswith(_STATISTICS)}


def _what_follows(norm: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The dropout and the activation that are part of timm's batch norms."""
    return getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
