"""Distances between two pictures of one cell, and between the colours of two sets of pictures.

Images are float32 [n, 3, H, W] in [-1, 1], sRGB; distances of pairs come per image.
"""

import math

import numpy as np
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab
from torch import Tensor, from_numpy
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from trainer.metrics.generation import frechet_distance

Floats = NDArray[np.float64]


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity, float32 [n], 1 for equal images (Wang et al. 2004: Gaussian window of 1.5 px).

    Taken of intensities in [0, 1]: its luminance term means nothing for values that may be negative.
    """
    return _ssim_of_unit_range((images + 1) / 2, (others + 1) / 2)


def psnr(images: Tensor, others: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in decibels, float32 [n]; infinite for equal images."""
    return peak_signal_noise_ratio(images, others, data_range=2.0, reduction="none", dim=(1, 2, 3))


def density_structure(images: Tensor, others: Tensor) -> Tensor:
    """Structural similarity of grey optical densities, float32 [n]: how much structure is kept, independent of colour.

    Density: mean over the channels of -log((I + 1) / 256), I in 0..255, as a share of the highest, log 256.
    """
    return _ssim_of_unit_range(_grey_density(images), _grey_density(others))


def _grey_density(images: Tensor) -> Tensor:
    density = -(((images.clamp(-1, 1) + 1) * 127.5 + 1) / 256).log()
    return density.mean(dim=1, keepdim=True) / math.log(256)


def _ssim_of_unit_range(images: Tensor, others: Tensor) -> Tensor:
    similarity = structural_similarity_index_measure(images, others, data_range=1.0, reduction="none")
    assert isinstance(similarity, Tensor)
    return similarity


def ciede2000(images: Tensor, others: Tensor) -> Tensor:
    """CIEDE2000 colour difference, mean over the pixels, float64 [n] on the CPU; about 1 is just noticeable."""
    difference: Floats = deltaE_ciede2000(_lab(images), _lab(others))
    return from_numpy(difference.mean(axis=(1, 2)))


def colour_statistics(images: Tensor) -> Floats:
    """Of each image mean L*, a*, b*, then their standard deviations over the pixels: float64 [n, 6]."""
    lab = _lab(images)
    return np.concatenate([lab.mean(axis=(1, 2)), lab.std(axis=(1, 2))], axis=1)


def statistics_distance(statistics: Floats, others: Floats) -> float:
    """How far two sets of colour statistics [n, 6] and [m, 6] lie apart, in CIELAB units.

    The Fréchet (2-Wasserstein) distance of their Gaussians, not squared: two sets that differ by a shift of every
    image's mean colour are that shift's length apart.
    """
    return math.sqrt(frechet_distance(statistics, others))


def _lab(images: Tensor) -> Floats:
    """CIELAB (D65) float64 [n, H, W, 3]."""
    intensities = (images.clamp(-1, 1).double().cpu().permute(0, 2, 3, 1).numpy() + 1) / 2
    return rgb2lab(intensities)
