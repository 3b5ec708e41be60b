"""How far an image is from the training images: relative Mahalanobis distance, in the last stages.

The distance from the nearest type's mean, less the distance from the mean of all images, each under the covariance of
its own residuals (Ren et al. 2021, arXiv 2106.09022): what all images of cells have in common does not count. The mean
over stages (as Lee et al. 2018, arXiv 1807.03888) also notices what the last features no longer tell apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.metrics.conformal import FAMILIAR, scale_to_limit

# Directions of a layer's features that are kept: those in which the training images differ most.
COMPONENTS = 64
# Weight of the distance from the mean of all images. Below 1, as if these images varied more than those in training:
# a picture that is far from all of them is then unfamiliar too, which it is not under two normal distributions alone.
BACKGROUND = 0.95


class LayerDistance(nn.Module):
    """Features float32 [n, c] of one layer -> distances float32 [n]; larger is further from the training images."""

    mean: Tensor  # [c], of all training images
    within: Tensor  # [c, r], turns features into coordinates whose variance within a type is 1
    overall: Tensor  # [c, r], the same of the variance over all images
    centres: Tensor  # [types, r], of the types, in the coordinates of `within`
    scale: Tensor  # [2], weight and offset that bring validation images to the common scale

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
        _, rows = labels.unique(return_inverse=True)
        centres = torch.stack([points[rows == row].mean(dim=0) for row in range(int(rows.max()) + 1)])
        of_types, of_all = _whitening(points - centres[rows]), _whitening(points)
        directions = directions / spread[:, None]
        fitted = cls(
            mean=mean,
            within=directions @ of_types,
            overall=directions @ of_all,
            centres=centres @ of_types,
            scale=torch.tensor([1.0, 0.0]),
        )
        fitted.scale = torch.tensor(scale_to_limit(fitted(validation).double().numpy(), FAMILIAR))
        return fitted

    def forward(self, features: Tensor) -> Tensor:
        centred = features - self.mean
        nearest = (centred @ self.within - self.centres[:, None]).square().sum(dim=2).amin(dim=0)
        distance = nearest - BACKGROUND * (centred @ self.overall).square().sum(dim=1)
        return self.scale[0] * distance + self.scale[1]


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
        last: Any = self.layers[-1]
        means: Tensor = last.mean + last.centres @ torch.linalg.pinv(last.within)
        return means

    def forward(self, features: Tensor) -> Tensor:
        parts = features.split(self._sizes, dim=1)
        return torch.stack([layer(part) for layer, part in zip(self.layers, parts, strict=True)]).mean(dim=0)


def _whitening(points: Tensor) -> Tensor:
    """[r, r]: gives points [n, r] of mean 0 the covariance 1."""
    variances, directions = torch.linalg.eigh(points.T @ points / len(points))
    whitening: Tensor = directions / variances.clamp_min(float(variances.amax()) * 1e-6).sqrt()
    return whitening
