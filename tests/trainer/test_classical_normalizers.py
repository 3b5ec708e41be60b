"""Classical stain normalisers: what they promise, on images that keep to their assumptions and on phantoms."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor
from torchstain.torch.normalizers import TorchMacenkoNormalizer

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.phantoms.folders import STAINS, render_cell
from models.stain.cielab import lab_to_rgb, rgb_to_lab
from trainer.metrics.image_distance import ciede2000, density_structure
from trainer.runs.normalizers.bundle import StainNormalizer
from trainer.runs.normalizers.classical import CLASSICAL, Macenko, Reinhard, ReinhardDomain

BARCELONA, MUNICH = STAINS


def cells(stain: str, first: int, n: int = 12) -> Tensor:
    """Phantoms float32 [n, 3, 64, 64] of all types; the same numbers in another stain are the same cells."""
    pictures = [
        render_cell(CELL_TYPES[number % 12], stain, slide=number, seed=number, size=64)
        for number in range(first, first + n)
    ]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def two_stains(vectors: list[list[float]], seeds: range, light: float = 240) -> Tensor:
    """Images that obey Beer and Lambert, of two stains with these densities (R, G, B), on glass."""
    basis = torch.tensor(vectors)
    amounts = torch.zeros(len(seeds), 2, 48, 48)
    for image, seed in zip(amounts, seeds, strict=True):
        drawn = torch.rand(2, 48, 48, generator=torch.Generator().manual_seed(seed))
        image[0, 8:24] = drawn[0, 8:24] * 0.8 + 0.8  # a nucleus with structure
        image[1, 24:40] = drawn[1, 24:40] * 0.4 + 0.4
        image[:, 20:28] = drawn[:, 20:28] * 0.6 + 0.3  # where both are
    density = torch.einsum("sc,nshw->nchw", basis, amounts)
    return (light * (-density).exp() - 1) / 127.5 - 1


@pytest.fixture(scope="module")
def fitted() -> dict[str, StainNormalizer]:
    target, source = cells(BARCELONA, 100), cells(MUNICH, 200)
    return {name: kind.fit(target, source) for name, kind in CLASSICAL.items()}


def test_cielab_is_the_standard_one_and_goes_back() -> None:
    """Statistics in a colour space of one's own are no one else's Reinhard."""
    images = cells(MUNICH, 0, 2)
    standard = rgb2lab(((images + 1) / 2).double().permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(rgb_to_lab(images).permute(0, 2, 3, 1).numpy(), standard, atol=0.01)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, rtol=0, atol=2e-3)


@pytest.mark.parametrize("kind", [Reinhard, ReinhardDomain])
def test_reinhard_brings_munich_to_barcelona(kind: type[Reinhard] | type[ReinhardDomain]) -> None:
    """The point of a normaliser: the aligned image of the other stain comes nearer, and the cell stays."""
    normalizer = kind.fit(cells(BARCELONA, 100, 24), cells(MUNICH, 200, 24))
    munich, barcelona = cells(MUNICH, 0, 24), cells(BARCELONA, 0, 24)
    before, after = ciede2000(munich, barcelona), ciede2000(normalizer(munich), barcelona)
    assert after.mean() < 0.7 * before.mean()
    assert (after < before).double().mean() > 0.75
    assert density_structure(normalizer(munich), munich).mean() > 0.85


def statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    deviation, mean = torch.std_mean(rgb_to_lab(images), dim=(2, 3), correction=0)
    return mean, deviation


def pale(stain: str, first: int) -> Tensor:
    """Cells of low contrast: nothing clips when their statistics are changed."""
    return cells(stain, first) * 0.3


def test_reinhard_gives_each_image_the_targets_statistics() -> None:
    """Exactly so, where no colour is clipped."""
    target = pale(BARCELONA, 100)
    expected_mean, expected_deviation = (each.mean(0) for each in statistics(target))
    mean, deviation = statistics(Reinhard.fit(target)(pale(MUNICH, 0)))
    torch.testing.assert_close(mean, expected_mean.expand(12, 3), rtol=0, atol=0.05)
    torch.testing.assert_close(deviation, expected_deviation.expand(12, 3), rtol=0, atol=0.05)


def test_reinhard_of_domains_keeps_what_differs_between_cells() -> None:
    """One map for all: the source's average becomes the target's, a darker cell stays darker."""
    target, source = pale(BARCELONA, 100), pale(MUNICH, 0)
    mean, deviation = statistics(ReinhardDomain.fit(target, source)(source))
    expected_mean, expected_deviation = (each.mean(0) for each in statistics(target))
    torch.testing.assert_close(mean.mean(0), expected_mean, rtol=0, atol=0.05)
    torch.testing.assert_close(deviation.mean(0), expected_deviation, rtol=0, atol=0.05)
    assert (mean[:, 0].argsort() == statistics(source)[0][:, 0].argsort()).all()
    with pytest.raises(ValueError, match="source stain"):
        ReinhardDomain.fit(target)


BLUE_PINK = [[0.60, 0.75, 0.28], [0.25, 0.85, 0.45]]
VIOLET_ORANGE = [[0.42, 0.88, 0.22], [0.20, 0.62, 0.76]]
LILAC_GREY = [[0.25, 0.94, 0.24], [0.52, 0.60, 0.61]]  # the nuclei's dye is not the redder density


@pytest.mark.parametrize("vectors", [VIOLET_ORANGE, LILAC_GREY])
def test_macenko_exchanges_the_stains_of_images_that_obey_its_model(vectors: list[list[float]]) -> None:
    """With the nuclear dye given the red cells' colour, nuclei would come out pink."""
    source, aligned = two_stains(vectors, range(4)), two_stains(BLUE_PINK, range(4))
    normalizer = Macenko.fit(two_stains(BLUE_PINK, range(10, 16)))
    before, after = ciede2000(source, aligned), ciede2000(normalizer(source), aligned)
    assert (before > 5).all()
    assert (after < 0.3 * before).all()
    assert normalizer.failures == 0


def test_macenko_is_the_librarys_where_that_has_the_stains_in_order() -> None:
    """It is called Macenko's in reports, so it must be what the reference implementation does."""
    target, source = two_stains(BLUE_PINK, range(1)), two_stains(VIOLET_ORANGE, range(1, 2))
    reference = TorchMacenkoNormalizer()
    reference.fit((target[0] + 1) * 127.5)
    expected, _, _ = reference.normalize((source[0] + 1) * 127.5, stains=False)
    found = (Macenko.fit(target)(source)[0].permute(1, 2, 0) + 1) * 127.5
    # The library leaves the one grey level in that it added before the logarithm, and cuts fractions off.
    assert (found + 1 - expected).clamp(max=255).abs().max() <= 2


def test_macenko_leaves_images_without_two_stains_alone(fitted: dict[str, StainNormalizer]) -> None:
    """An empty field in a batch must neither stop the run, nor spoil its neighbours, nor go unnoticed."""
    normalizer = Macenko.from_state(fitted["macenko"].state_dict())
    cell = cells(BARCELONA, 0, 1)
    white, grey, black = (torch.full((1, 3, 64, 64), value) for value in (1.0, 0.0, -1.0))
    one_stain = two_stains([[0.6, 0.7, 0.4], [0.6, 0.7, 0.4]], range(1))
    batch = torch.cat([white, cell, grey, black])
    result = normalizer(batch)
    assert result.isfinite().all()
    assert normalizer.failures == 3
    torch.testing.assert_close(result[[0, 2, 3]], batch[[0, 2, 3]], rtol=0, atol=0)
    torch.testing.assert_close(result[1:2], normalizer(cell))
    assert not torch.allclose(result[1:2], cell, atol=0.05)
    torch.testing.assert_close(normalizer(one_stain), one_stain, rtol=0, atol=0)
    assert normalizer.failures == 4
    with pytest.raises(UserError, match="in 0 of 3 images of the target stain"):
        Macenko.fit(torch.cat([white, grey, black]))


@pytest.mark.parametrize("name", CLASSICAL)
def test_saved_and_loaded_it_does_the_same(name: str, fitted: dict[str, StainNormalizer], tmp_path: Path) -> None:
    """Images normalised tomorrow must look like today's; the record must tell two normalisers apart."""
    normalizer = fitted[name]
    torch.save(normalizer.state_dict(), tmp_path / "normalizer.pt")
    loaded = CLASSICAL[name].from_state(torch.load(tmp_path / "normalizer.pt", weights_only=True))
    images = cells(MUNICH, 0, 4)
    torch.testing.assert_close(loaded(images), normalizer(images), rtol=0, atol=0)
    assert json.loads(json.dumps(loaded.describe(), allow_nan=False)) == normalizer.describe()
    assert normalizer.describe()["name"] == normalizer.name == name
    other: Callable[..., StainNormalizer] = CLASSICAL[name].fit
    assert other(cells(BARCELONA, 300), cells(MUNICH, 400)).describe() != normalizer.describe()


@pytest.mark.parametrize("name", CLASSICAL)
def test_every_image_is_normalised_on_its_own_and_in_range(name: str, fitted: dict[str, StainNormalizer]) -> None:
    """A cell's look must not depend on which others share its batch; networks are fed [-1, 1]."""
    images = torch.cat([cells(MUNICH, 0, 4), torch.ones(1, 3, 64, 64), torch.full((1, 3, 64, 64), -1.0)])
    before = images.clone()
    result = fitted[name](images)
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.isfinite().all()
    assert result.abs().max() <= 1
    torch.testing.assert_close(images, before, rtol=0, atol=0)
    alone = torch.cat([fitted[name](image[None]) for image in images])
    torch.testing.assert_close(result, alone, rtol=0, atol=1e-4)
