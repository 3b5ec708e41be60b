"""How near a set of generated images is to a set of real ones, and how diverse, by the features of both."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.metrics.feature_space import FeatureSpace

Floats = NDArray[np.float64]

_ROUNDING = 1 + 1e-6  # a point on the very edge of a ball, such as the k-th neighbour itself, is inside


@dataclass(frozen=True)
class ImageFeatures:
    """A set of images in a feature space: features float64 [n, d], probabilities float64 [n, k]."""

    features: Floats
    probabilities: Floats


@dataclass(frozen=True)
class SetScore:
    """One score of a set of images."""

    value: float
    deviation: float | None  # over subsets (kernel) or splits (inception); None: there is one value only


@dataclass(frozen=True)
class GenerationScores:
    """Scores of generated images against real ones, in one feature space."""

    # By their names in this space: squared Fréchet distance of two Gaussians (FID); kernel distance, an unbiased
    # squared maximum mean discrepancy (KID), below 0 at times; inception score of the generated images alone.
    scores: dict[str, SetScore]
    real: int  # images
    generated: int
    dimensions: int  # of the features
    kernel_subset: int  # images of each kind in one kernel distance

    @property
    def frechet(self) -> SetScore:
        """The Fréchet distance."""
        return next(iter(self.scores.values()))

    @property
    def kernel(self) -> SetScore:
        """The kernel distance."""
        return list(self.scores.values())[1]

    @property
    def inception(self) -> SetScore:
        """The inception score."""
        return list(self.scores.values())[2]

    @property
    def too_few(self) -> bool:
        """With fewer images than dimensions covariances are singular: the Fréchet distance depends on the count."""
        return min(self.real, self.generated) < self.dimensions

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "too_few": self.too_few}


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


def compare(
    space: FeatureSpace, real: ImageFeatures, generated: ImageFeatures, seed: int = 0, kernel_subset: int = 1000
) -> GenerationScores:
    """The scores of two sets whose features were taken in `space`. Deterministic in its arguments."""
    kernel_subset = min(kernel_subset, len(real.features), len(generated.features))
    return GenerationScores(
        {
            space.score_name("frechet"): SetScore(frechet_distance(real.features, generated.features), None),
            space.score_name("kernel"): SetScore(
                *kernel_distance(real.features, generated.features, kernel_subset, seed=seed)
            ),
            space.score_name("inception"): SetScore(*inception_score(generated.probabilities, seed=seed)),
        },
        real=len(real.features),
        generated=len(generated.features),
        dimensions=real.features.shape[1],
        kernel_subset=kernel_subset,
    )


def frechet_distance(real: Floats, generated: Floats) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians of two sets of features [n, d] and [m, d].

    |mean - mean'|^2 + Tr(C + C' - 2 (C C')^(1/2)): the FID (Heusel et al. 2017, equation 6) when the features are
    Inception's. Two images at least on either side.
    """
    # Imported here, as below: these packages take seconds, for which a training's first step need not wait.
    from torchmetrics.image.fid import FrechetInceptionDistance

    centre = real.mean(axis=0)  # does not change the distance, but reduces rounding errors of the covariances
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
    Inception's. Subsets are no larger than the smaller set; where a subset is the whole of both sets, it is drawn once
    and the deviation is 0. Two images at least on either side.
    """
    from torchmetrics.image.kid import poly_mmd

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
    from scipy.special import rel_entr

    order = np.random.default_rng(seed).permutation(len(probabilities))
    parts = np.array_split(probabilities[order], min(splits, len(probabilities)))
    scores = [np.exp(rel_entr(part, part.mean(axis=0)).sum(axis=1).mean()) for part in parts]
    return float(np.mean(scores)), float(np.std(scores))


@dataclass(frozen=True)
class ManifoldScores:
    """Overlap of two sets of features. A set's manifold is the union of balls, one per point, up to its k-th neighbour.

    Kynkäänniemi et al. 2019, equations 1-3; Naeem et al. 2020, equations 3-4.
    """

    precision: float  # share of generated images in the real manifold
    recall: float  # share of real images in the generated manifold
    density: float  # mean number of real balls that hold a generated image, over k; may exceed 1
    coverage: float  # share of real balls that hold a generated image
    neighbours: int  # k


def compare_manifolds(real: Floats, generated: Floats, neighbours: int) -> ManifoldScores:
    """Scores of features [n, d] and [m, d] with k = neighbours. ValueError unless both sets have more than k."""
    if not 1 <= neighbours < min(len(real), len(generated)):
        raise ValueError(
            f"neighbours={neighbours}: needs more images than that: got {len(real)} real, {len(generated)} generated"
        )
    within_real = distances(generated, real) <= _radius(real, neighbours)  # [m, n]
    within_generated = distances(real, generated) <= _radius(generated, neighbours)  # [n, m]
    return ManifoldScores(
        precision=float(within_real.any(axis=1).mean()),
        recall=float(within_generated.any(axis=1).mean()),
        density=float(within_real.sum(axis=1).mean() / neighbours),
        coverage=float(within_real.any(axis=0).mean()),
        neighbours=neighbours,
    )


def distances(points: Floats, others: Floats) -> Floats:
    """Euclidean distances of two sets [n, d] and [m, d]: float64 [n, m]."""
    fast = "use_mm_for_euclid_dist"  # equal points lie up to 1e-8 of their length apart
    return torch.cdist(torch.from_numpy(points), torch.from_numpy(others), compute_mode=fast).numpy()


def _radius(points: Floats, neighbours: int) -> Floats:
    """Distance of each point to its k-th neighbour, itself not counted: float64 [n]."""
    between = distances(points, points)
    np.fill_diagonal(between, np.inf)
    radius: Floats = np.partition(between, neighbours - 1, axis=1)[:, neighbours - 1]
    return radius * _ROUNDING
