"""Distances of image pairs and of colours, against values that can be worked out by hand or were published."""

import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab
from torch import Tensor

from data_pipeline.phantoms.folders import render_cell
from trainer.metrics.image_distance import (
    ciede2000,
    colour_statistics,
    density_structure,
    psnr,
    ssim,
    statistics_distance,
)

# Sharma, Wu and Dalal 2005, table 1: the pairs whose colours sRGB has.
SHARMA = [
    ((50.0, 2.5, 0.0), (50.0, 0.0, -2.5), 4.3065),
    ((50.0, 2.5, 0.0), (73.0, 25.0, -18.0), 27.1492),
    ((50.0, 2.5, 0.0), (61.0, -5.0, 29.0), 22.8977),
    ((50.0, 2.5, 0.0), (58.0, 24.0, 15.0), 19.4535),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((36.4612, 47.8580, 18.3852), (36.2715, 50.5065, 21.2231), 1.4146),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((6.7747, -0.2908, -2.4247), (5.8714, -0.0985, -2.2286), 0.6377),
]


def cells(stain: str, n: int = 3) -> Tensor:
    pictures = np.stack([render_cell("neutrophil", stain, index, index, 64) for index in range(n)])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def flat(colour: tuple[float, float, float]) -> Tensor:
    """An image [1, 3, 16, 16] of one CIELAB colour."""
    rgb = lab2rgb(np.array(colour).reshape(1, 1, 3))
    np.testing.assert_allclose(rgb2lab(rgb).ravel(), colour, atol=1e-3)  # sRGB has this colour
    return torch.from_numpy(rgb * 2 - 1).view(1, 3, 1, 1).expand(1, 3, 16, 16)


@pytest.mark.parametrize(("first", "second", "difference"), SHARMA)
def test_ciede2000_is_the_published_one(
    first: tuple[float, float, float], second: tuple[float, float, float], difference: float
) -> None:
    """Channels in another order or another white point would still give plausible numbers."""
    assert ciede2000(flat(first), flat(second)).item() == pytest.approx(difference, abs=2e-3)


def test_distances_come_per_image() -> None:
    """Intervals are over groups of images, so a score must not be averaged before."""
    images, others = cells("violet"), cells("giemsa")
    others[1] = images[1]
    for distance, equal in ((ssim, 1.0), (density_structure, 1.0), (psnr, float("inf")), (ciede2000, 0.0)):
        values = distance(images, others)
        assert values.shape == (3,)
        assert values[1].item() == pytest.approx(equal, abs=1e-5)
        assert not torch.isclose(values[::2], torch.tensor(equal, dtype=values.dtype)).any()
        torch.testing.assert_close(values[2:], distance(images[2:], others[2:]))


def test_ssim_and_psnr_of_flat_images_follow_their_formulas() -> None:
    """SSIM of values around 0 would depend on where grey happens to lie."""
    dark, light = torch.full((1, 3, 16, 16), -0.2), torch.full((1, 3, 16, 16), 0.2)
    expected = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    assert ssim(dark, light).item() == pytest.approx(expected, rel=1e-3)
    assert psnr(dark, dark + 0.02).item() == pytest.approx(40, abs=1e-3)


def test_density_structure_sees_structure_and_not_colour() -> None:
    """A normaliser that paints another cell must not pass for one that only changed the dye, nor the reverse."""
    images = cells("violet")
    recoloured = images[:, [2, 0, 1]]
    torch.testing.assert_close(density_structure(images, recoloured), torch.ones(3))
    assert (ssim(images, recoloured) < 0.99).all()
    restained, other_cell = density_structure(images, cells("giemsa")), density_structure(images, images.roll(1, 0))
    assert (restained > other_cell + 0.1).all()


def test_colour_statistics_and_their_distance_are_in_cielab_units() -> None:
    """The distance is reported beside CIEDE2000 and must be of the same size."""
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    half = red.clone()
    half[..., 4:] = 1.0  # white: L* 100, a* 0, b* 0
    statistics = colour_statistics(torch.cat([red, half]))
    np.testing.assert_allclose(statistics[0], [53.24, 80.09, 67.20, 0, 0, 0], atol=0.02)
    means, deviations = [(53.24 + 100) / 2, 80.09 / 2, 67.20 / 2], [(100 - 53.24) / 2, 80.09 / 2, 67.20 / 2]
    np.testing.assert_allclose(statistics[1], means + deviations, atol=0.02)

    set_a = np.random.default_rng(0).normal(size=(50, 6))
    shift = np.array([3.0, 4.0, 0, 0, 0, 12.0])
    assert statistics_distance(set_a, set_a + shift) == pytest.approx(13, rel=1e-6)
    assert statistics_distance(set_a, set_a) == pytest.approx(0, abs=1e-3)
