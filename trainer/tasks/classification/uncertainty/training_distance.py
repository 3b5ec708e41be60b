"""How far an image is from the training images: relative Mahalanobis distance, in the last stages.

The distance from the nearest type's mean, less the distance from the mean of all images, each under the covariance of
its own residuals (Ren et al. 2021, arXiv 2106.09022): what all images of cells have in common does not count. The mean
over stages (as Lee et al. 2018, arXiv 1807.03888) also notices what the last features no longer tell apart. Halves of
types count beside types: what is unlike both kinds of a type may lie near their mean.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.metrics.conformal import FAMILIAR, scale_to_limit

# Directions of a layer's features that are kept: those in which the training images differ most.
COMPONENTS = 64
# Weight of the distance from the mean of all images. Below 1, as if these images varied more than those in training:
# a picture that is far from all of them is then unfamiliar too, which it is not under two normal distributions alone.
BACKGROUND = 0.95
_GROUPS = ("types", "halves")
_ROUNDS = 20  # of k-means


class LayerDistance(nn.Module):
    """Features float32 [n, c] of one layer -> distances float32 [n]; larger is further from the training images.

    The mean of two distances: to the nearest type, and to the nearest half of a type, for many types are of two kinds.
    Buffers: mean [c] of all training images; directions [c, r] to coordinates; overall [r, r], in which their variance
    is 1. And for both kinds of groups: whitening [r, r], in which the variance within a group is 1; centres [groups, r]
    in these; scale [2], weight and offset that bring validation images to the common scale.
    """

    mean: Tensor
    directions: Tensor
    overall: Tensor

    def __init__(self, **buffers: Tensor) -> None:
        super().__init__()
        for name, value in buffers.items():
            self.register_buffer(name, value.float())

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, validation: Tensor) -> "LayerDistance":
        """From features [n, c] and labels int64 [n] of training images, and features of validation images."""
        features = features.double()
        mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
        standard = (features - mean) / spread
        _, _, directions = torch.linalg.svd(standard, full_matrices=False)
        directions = directions[:COMPONENTS].T
        points = standard @ directions
        buffers = {"mean": mean, "directions": directions / spread[:, None], "overall": _whitening(points)}
        _, types = labels.unique(return_inverse=True)
        for name, groups in zip(_GROUPS, (types, _halves(points, types)), strict=True):
            centres = _centres(points, groups)
            whitening = _whitening(points - centres[groups])
            buffers |= {f"{name}_whitening": whitening, f"{name}_centres": centres @ whitening}
            buffers[f"{name}_scale"] = torch.tensor([1.0, 0.0])
        fitted = cls(**buffers)
        for name in _GROUPS:
            held_out = fitted._distance(name, validation).double().numpy()
            setattr(fitted, f"{name}_scale", torch.tensor(scale_to_limit(held_out, FAMILIAR)))
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        return torch.stack([self._distance(name, features) for name in _GROUPS]).mean(dim=0)

    def _distance(self, name: str, features: Tensor) -> Tensor:
        points = (features - self.mean) @ self.directions
        whitening, centres, scale = (self.get_buffer(f"{name}_{each}") for each in ("whitening", "centres", "scale"))
        nearest = (points @ whitening - centres[:, None]).square().sum(dim=2).amin(dim=0)
        distance = nearest - BACKGROUND * (points @ self.overall).square().sum(dim=1)
        return scale[0] * distance + scale[1]


class TrainingDistance(nn.Module):
    """Features of all layers float32 [n, sum of their sizes] -> distances float32 [n], their mean."""

    def __init__(self, layers: Sequence[LayerDistance]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._sizes = [len(layer.mean) for layer in layers]

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, validation: Tensor, sizes: Sequence[int]) -> "TrainingDistance":
        """From features of training images [n, d], their labels int64 [n], and features of validation images.

        sizes: of the layers, whose features stand side by side.
        """
        parts = zip(features.split(list(sizes), dim=1), validation.split(list(sizes), dim=1), strict=True)
        return cls([LayerDistance.fit(trained, labels, held_out) for trained, held_out in parts])

    def type_means(self) -> Tensor:
        """Mean features [types, c] of each type's training images in the last layer, by the kept directions."""
        last = self.layers[-1]
        whitened = last.get_buffer("directions") @ last.get_buffer("types_whitening")
        return last.get_buffer("mean") + last.get_buffer("types_centres") @ torch.linalg.pinv(whitened)

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self._sizes, dim=1)
        return torch.stack([layer(part) for layer, part in zip(self.layers, parts, strict=True)]).mean(dim=0)


def _centres(points: Tensor, groups: Tensor) -> Tensor:
    """[groups, r]: means of points [n, r] by their groups int64 [n]."""
    return torch.stack([points[groups == group].mean(dim=0) for group in range(int(groups.max()) + 1)])


def _halves(points: Tensor, types: Tensor) -> Tensor:
    """int64 [n]: the half of its type that each point is in, by 2-means from the two sides of the first component."""
    whitened = points @ _whitening(points - _centres(points, types)[types])
    halves = 2 * types
    for label in range(int(types.max()) + 1):
        own = whitened[types == label]
        _, _, components = torch.linalg.svd(own - own.mean(dim=0), full_matrices=False)
        second = (own - own.mean(dim=0)) @ components[0] > 0
        for _ in range(_ROUNDS):
            if second.all() or not second.any():
                break
            second = torch.cdist(own, _centres(own, second.long())).argmin(dim=1) == 1
        halves[types == label] += second.long()
    return halves.unique(return_inverse=True)[1]


def _whitening(points: Tensor) -> Tensor:
    """[r, r]: gives points [n, r] of mean 0 the covariance 1."""
    variances, directions = torch.linalg.eigh(points.T @ points / len(points))
    return directions / variances.clamp_min(float(variances.amax()) * 1e-6).sqrt()
