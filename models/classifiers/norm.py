"""Other normalisation layers in the place of batch norms, whose statistics bind a classifier to one laboratory."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from models.errors import ModelError

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
        normalized: Tensor = self.act(self.drop(super().forward(features)))
        return normalized


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
        normalized: Tensor = self.act(self.drop(super().forward(features)))
        return normalized


def replace_batch_norms(network: nn.Module, choice: Literal["group", "frozen"]) -> None:
    """Put another layer in the place of each BatchNorm2d, with its weights. ModelError where there is none."""
    kind = {"group": GroupNorm, "frozen": FrozenBatchNorm}[choice]
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
