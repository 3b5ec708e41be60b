"""How far an image's features are from those of the training images: relative Mahalanobis distance (Ren et al. 2021).

The distance from the nearest type's mean, less the distance from the mean of all images, each under the covariance
of its own residuals: what all images of cells have in common does not count (arXiv 2106.09022).
"""

import torch
from torch import Tensor, nn

# Directions of the features that are kept: those in which the training images differ most.
COMPONENTS = 128


class TrainingDistance(nn.Module):
    """Features float32 [n, d] -> distances float32 [n]; larger is further from the training images."""

    mean: Tensor  # [d], of all training images
    within: Tensor  # [d, r], turns features into coordinates whose variance within a type is 1
    overall: Tensor  # [d, r], the same of the variance over all images
    centres: Tensor  # [types, r], of the types, in the coordinates of `within`

    def __init__(self, mean: Tensor, within: Tensor, overall: Tensor, centres: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("within", within), ("overall", overall), ("centres", centres)):
            self.register_buffer(name, value.float())

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor) -> "TrainingDistance":
        """From features [n, d] and labels int64 [n] of training images."""
        features = features.double()
        mean = features.mean(dim=0)
        centred = features - mean
        _, _, directions = torch.linalg.svd(centred, full_matrices=False)
        directions = directions[:COMPONENTS].T
        points = centred @ directions
        centres = torch.stack([points[labels == label].mean(dim=0) for label in labels.unique()])
        of_types = _whitening(points - centres[labels.unique(return_inverse=True)[1]])
        return cls(mean, directions @ of_types, directions @ _whitening(points), centres @ of_types)

    def forward(self, features: Tensor) -> Tensor:
        centred = features - self.mean
        nearest = torch.cdist(centred @ self.within, self.centres).square().amin(dim=1)
        return nearest - (centred @ self.overall).square().sum(dim=1)


def _whitening(points: Tensor) -> Tensor:
    """[r, r]: gives points [n, r] of mean 0 the covariance 1."""
    variances, directions = torch.linalg.eigh(points.T @ points / len(points))
    floor = variances.amax() * 1e-6
    whitening: Tensor = directions / variances.clamp_min(floor).sqrt()
    return whitening
