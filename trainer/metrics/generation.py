"""How near a set of generated images is to a set of real ones, by the features of both."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import rel_entr
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from trainer.metrics.feature_space import FeatureSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageFeatures:
    """A set of images in a feature space: features float64 [n, d], probabilities float64 [n, k]."""

    features: Floats
    probabilities: Floats


@dataclass(frozen=True)
class GenerationScores:
    """Scores of generated images against real ones, in one feature space.

    frechet: squared distance of two Gaussians (FID). kernel: squared maximum mean discrepancy (KID), unbiased, so
    below 0 at times. inception: of the generated images alone. A deviation is the standard deviation over subsets
    (kernel) or splits (inception). names: what each of the three is called in this space.
    real, generated: numbers of images. dimensions: of the features; with fewer images than these on either side
    (`too_few`) covariances are singular and the Fréchet distance says more of the count than of the images.
    """

    names: dict[str, str]
    frechet: float
    kernel: float
    kernel_deviation: float
    inception: float
    inception_deviation: float
    real: int
    generated: int
    dimensions: int

    @property
    def too_few(self) -> bool:
        """Whether the Fréchet distance is of too few images to be compared with others'."""
        return min(self.real, self.generated) < self.dimensions

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON, each score under its full name."""
        return {
            "scores": {
                self.names["frechet"]: {"value": self.frechet, "deviation": None},
                self.names["kernel"]: {"value": self.kernel, "deviation": self.kernel_deviation},
                self.names["inception"]: {"value": self.inception, "deviation": self.inception_deviation},
            },
            "real": self.real,
            "generated": self.generated,
            "dimensions": self.dimensions,
            "too_few": self.too_few,
        }


def score_generation(
    space: FeatureSpace, real: Iterable[Tensor], generated: Iterable[Tensor], seed: int = 0
) -> GenerationScores:
    """Score batches of generated images against batches of real ones, each float32 [n, 3, H, W] in [-1, 1]."""
    return compare(space, extract_features(space, real), extract_features(space, generated), seed)


@torch.no_grad()
def extract_features(space: FeatureSpace, batches: Iterable[Tensor]) -> ImageFeatures:
    """Features of all images of the batches, in order. ValueError when there is none."""
    device = next(space.parameters()).device
    features, probabilities = [], []
    for images in batches:
        found, probable = space(images.to(device))
        features.append(found.double().cpu())
        probabilities.append(probable.double().cpu())
    if not features:
        raise ValueError("no image to take features of")
    return ImageFeatures(torch.cat(features).numpy(), torch.cat(probabilities).numpy())


def compare(space: FeatureSpace, real: ImageFeatures, generated: ImageFeatures, seed: int = 0) -> GenerationScores:
    """The scores of two sets whose features were taken in `space`. Deterministic in its arguments."""
    kernel, kernel_deviation = kernel_distance(real.features, generated.features, seed=seed)
    inception, inception_deviation = inception_score(generated.probabilities, seed=seed)
    return GenerationScores(
        names={score: space.score_name(score) for score in ("frechet", "kernel", "inception")},
        frechet=frechet_distance(real.features, generated.features),
        kernel=kernel,
        kernel_deviation=kernel_deviation,
        inception=inception,
        inception_deviation=inception_deviation,
        real=len(real.features),
        generated=len(generated.features),
        dimensions=real.features.shape[1],
    )


def frechet_distance(real: Floats, generated: Floats) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians of two sets of features [n, d] and [m, d].

    |mean - mean'|^2 + Tr(C + C' - 2 (C C')^(1/2)): the FID (Heusel et al. 2017, equation 6) when the features are
    Inception's. Two images at least on either side.
    """
    centre = real.mean(axis=0)  # the distance does not see it, rounding errors of the covariances do
    identity = nn.Identity()
    identity.num_features = real.shape[1]  # type: ignore[assignment]  # how torchmetrics learns the dimensions
    metric = FrechetInceptionDistance(feature=identity)
    metric.update(torch.from_numpy(real - centre), real=True)
    metric.update(torch.from_numpy(generated - centre), real=False)
    return max(0.0, float(metric.compute()))


def kernel_distance(
    real: Floats, generated: Floats, subset_size: int = 1000, subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Squared maximum mean discrepancy of features [n, d] and [m, d]: its mean over random subsets, and deviation.

    Kernel (x y / d + 1)^3, unbiased estimate: the KID (Binkowski et al. 2018, section 4) when the features are
    Inception's. Subsets are no larger than the smaller set; where both sets are one whole subset there is only one
    way to draw it, and the deviation is 0. Two images at least on either side.
    """
    size = min(subset_size, len(real), len(generated))
    if size < 2:
        raise ValueError(f"a kernel distance needs two images of each kind: got {len(real)} and {len(generated)}")
    draws = 1 if size == len(real) == len(generated) else subsets
    generator = torch.Generator().manual_seed(seed)
    tables = torch.from_numpy(real), torch.from_numpy(generated)
    distances = np.empty(draws)
    for draw in range(draws):
        subset = [table[torch.randperm(len(table), generator=generator)[:size]] for table in tables]
        distances[draw] = float(poly_mmd(*subset))
    return float(distances.mean()), float(distances.std())


def inception_score(probabilities: Floats, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of probabilities [n, k]: mean and deviation over random splits of the images.

    From 1 (every image alike, or the network undecided) to k (certain, all classes equally often). Salimans et al.
    2016, section 4. No more splits than images.
    """
    order = np.random.default_rng(seed).permutation(len(probabilities))
    parts = np.array_split(probabilities[order], min(splits, len(probabilities)))
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))
