"""Measurements of a stained cell without learning: colour, nucleus, cytoplasm, texture.

Mirrored images and quarter turns give the same values. Lengths are fractions of the image's side, at every image size.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from models.stain.cielab import rgb_to_lab

# The columns of `hand_features`, in their order.
FEATURES = (
    # Colour of the whole image in CIELAB: mean and standard deviation of each channel.
    "lightness_mean",
    "green_red_mean",
    "blue_yellow_mean",
    "lightness_deviation",
    "green_red_deviation",
    "blue_yellow_deviation",
    # The nucleus: what absorbs red light (see `nucleus_of`).
    "nucleus_area",  # share of the image
    "nucleus_circularity",  # 4 pi area / perimeter^2: about 1 for a disc, less for lobes and ragged borders
    "nucleus_elongation",  # minor axis / major axis of the ellipse with the same second moments
    "nucleus_fullness",  # area / area of that ellipse: 1 for an ellipse, less for lobes, horseshoes, several pieces
    "nucleus_density_mean",  # optical density of red light
    "nucleus_density_deviation",  # coarse or fine chromatin
    "nucleus_green_red",  # mean a* of CIELAB
    "nucleus_blue_yellow",  # mean b*
    # The cytoplasm: a band around the nucleus, a sixteenth of the side wide, in CIELAB.
    "cytoplasm_lightness_mean",
    "cytoplasm_green_red_mean",
    "cytoplasm_blue_yellow_mean",
    "cytoplasm_lightness_deviation",  # granules
    # Grey-level co-occurrence of lightness (Haralick et al. 1973), see `co_occurrence`.
    "texture_contrast",
    "texture_correlation",
    "texture_energy",
    "texture_homogeneity",
)
_CUTS = 32  # thresholds that are tried for a nucleus
_GREY_LEVELS = 8
_TEXTURE_STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows, columns: each direction, with its opposite


def hand_features(images: Tensor) -> Tensor:
    """Float images [n, 3, S, S] in [-1, 1] -> float64 [n, len(FEATURES)], finite for any image, on the same device.

    S at least 2. A row depends on its image only: in float64 the order of a sum, which may change with n, does not
    show.
    """
    images = images.double()
    lab = rgb_to_lab(images)
    density = (256.0 / ((images[:, 0] + 1) * 127.5 + 1)).log()  # OD = -log((I + 1) / 256) of red light
    nucleus = nucleus_of(density)
    band = _band_around(nucleus)
    columns = [
        *lab.mean((2, 3)).unbind(1),
        *lab.var((2, 3), correction=0).sqrt().unbind(1),
        *_shape(nucleus),
        *_mean_and_deviation(density, nucleus),
        *(_mean_and_deviation(channel, nucleus)[0] for channel in lab[:, 1:].unbind(1)),
        *(_mean_and_deviation(channel, band)[0] for channel in lab.unbind(1)),
        _mean_and_deviation(lab[:, 0], band)[1],
        *_texture(co_occurrence(lab[:, 0])),
    ]
    return torch.stack(columns, dim=1)


def nucleus_of(density: Tensor) -> Tensor:
    """1 in a nucleus, else 0: optical density of red light float [n, H, W] -> the same shape.

    Romanowsky stains make nuclei purple or blue, which absorbs red light; red cells let it pass. Each image has its
    Otsu threshold (1979: largest variance between the two sides), one of `_CUTS` between its extremes.
    """
    low, high = density.amin((1, 2)), density.amax((1, 2))
    mean = density.mean((1, 2))
    cuts, between = [], []
    for number in range(_CUTS):
        cut = low + (high - low) * number / _CUTS
        above = (density > cut[:, None, None]).to(density.dtype)
        share, moment = above.mean((1, 2)), (above * density).mean((1, 2))
        cuts.append(cut)
        between.append((moment - share * mean).square() / (share * (1 - share)).clamp_min(1e-12))
    best = torch.stack(between).argmax(0)
    cut = torch.stack(cuts).gather(0, best[None])[0]
    return (density > cut[:, None, None]).to(density.dtype)


def _band_around(mask: Tensor) -> Tensor:
    """Pixels up to a sixteenth of the side away from a mask [n, H, W], without the mask."""
    radius = max(1, round(mask.shape[-1] / 16))
    grown = functional.max_pool2d(mask[:, None], 2 * radius + 1, stride=1, padding=radius)
    return grown[:, 0] - mask


def _mean_and_deviation(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [n] of values [n, H, W] where the mask is 1; 0 for an empty mask."""
    count = mask.sum((1, 2)).clamp_min(1)
    mean = (values * mask).sum((1, 2)) / count
    variance = ((values - mean[:, None, None]).square() * mask).sum((1, 2)) / count
    return mean, variance.sqrt()


def _shape(mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Area, circularity, elongation and fullness [n] of masks [n, S, S], see FEATURES; 0 for an empty mask."""
    side = mask.shape[-1]
    area = mask.mean((1, 2))
    framed = functional.pad(mask, (1, 1, 1, 1))
    crossings = framed.diff(dim=1).abs().sum((1, 2)) + framed.diff(dim=2).abs().sum((1, 2))
    perimeter = math.pi / 4 * crossings / side  # Crofton's formula in two directions
    circularity = 4 * math.pi * area / perimeter.square().clamp_min(1 / side**2)
    places = (torch.arange(side, dtype=mask.dtype, device=mask.device) + 0.5) / side
    rows, columns = places[:, None].expand(side, side), places.expand(side, side)
    weight = mask / mask.sum((1, 2), keepdim=True).clamp_min(1)
    down = rows - (weight * rows).sum((1, 2), keepdim=True)
    right = columns - (weight * columns).sum((1, 2), keepdim=True)
    pixel = 1 / (12 * side**2)  # a pixel's own second moment
    vertical = (weight * down.square()).sum((1, 2)) + pixel
    horizontal = (weight * right.square()).sum((1, 2)) + pixel
    mixed = (weight * down * right).sum((1, 2))
    middle, spread = (vertical + horizontal) / 2, ((vertical - horizontal) / 2).hypot(mixed)
    minor, major = (middle - spread).clamp_min(pixel), middle + spread
    elongation = (minor / major).sqrt().masked_fill(area == 0, 0.0)
    return area, circularity, elongation, area / (4 * math.pi * (minor * major).sqrt())


def co_occurrence(lightness: Tensor) -> Tensor:
    """Frequencies of pairs of grey levels: lightness float [n, S, S] in [0, 100] -> float64 [n, 8, 8], symmetric.

    Eight equal levels; pairs are a thirty-second of the side apart, in eight directions.
    """
    levels = (lightness * (_GREY_LEVELS / 100)).floor().clamp(0, _GREY_LEVELS - 1)
    numbers = torch.arange(_GREY_LEVELS, device=levels.device).view(1, -1, 1, 1)
    # Sums of zeros and ones in float32 are exact integers below 2^24, in any order.
    is_level = (levels[:, None] == numbers).float()
    height, width = levels.shape[1:]
    distance = max(1, round(width / 32))
    counts = levels.new_zeros((len(levels), _GREY_LEVELS, _GREY_LEVELS))
    for step in _TEXTURE_STEPS:
        down, right = step[0] * distance, step[1] * distance
        here = is_level[:, :, : height - down, max(0, -right) : width - max(0, right)]
        there = is_level[:, :, down:, max(0, right) : width - max(0, -right)]
        counts = counts + here.flatten(2) @ there.flatten(2).transpose(1, 2)
    counts = counts + counts.transpose(1, 2)
    return counts / counts.sum((1, 2), keepdim=True)


def _texture(shares: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contrast, correlation, energy and homogeneity [n] of co-occurrence shares [n, L, L] (Haralick et al. 1973)."""
    levels = torch.arange(shares.shape[-1], dtype=shares.dtype, device=shares.device)
    apart = (levels[:, None] - levels).square()
    contrast = (shares * apart).sum((1, 2))
    homogeneity = (shares / (1 + apart)).sum((1, 2))
    single = shares.sum(2)
    mean = single @ levels
    variance = (single * (levels - mean[:, None]).square()).sum(1)
    # A single level counts as perfectly correlated, as in scikit-image.
    flat = variance < 1e-12
    correlation = 1 - contrast / (2 * variance).masked_fill(flat, 1.0)
    energy = shares.square().sum((1, 2)).sqrt()
    return contrast, correlation, energy, homogeneity
