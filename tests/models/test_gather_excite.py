"""Gather-excite against the paper's definitions written out by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.classifiers.gather_excite import GatherExcite, GlobalGather, linear_resampling


def gate_by_hand(features: np.ndarray, extent: int) -> np.ndarray:
    """Parameter-free gather-excite, loops over the selection operator of the paper's section 2."""
    count, channels, height, width = features.shape
    out = np.empty_like(features)
    for row in range(height):
        for column in range(width):
            # nearest neighbour: the gathered position whose cell this position falls into
            u = row * math.ceil(height / extent) // height
            v = column * math.ceil(width / extent) // width
            window = features[
                :,
                :,
                max(extent * u - extent + 1, 0) : extent * u + extent,
                max(extent * v - extent + 1, 0) : extent * v + extent,
            ]
            mean = window.reshape(count, channels, -1).mean(-1)
            out[:, :, row, column] = features[:, :, row, column] / (1 + np.exp(-mean))
    return out


@pytest.mark.parametrize("extent", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(7, 7), (12, 9), (3, 3)])
def test_average_gather_of_finite_extent(extent: int, size: tuple[int, int]) -> None:
    """The parameter-free operator is the paper's at every extent, on maps that no extent divides too."""
    features = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = gate_by_hand(features.numpy(), extent)
    gated = GatherExcite(3, "average", extent)(features)
    np.testing.assert_allclose(gated.numpy(), expected, rtol=1e-12)


def test_average_gather_of_global_extent() -> None:
    """Extent 0 gates each channel by the sigmoid of its mean and has no parameters."""
    features = torch.randn(2, 5, 6, 4)
    module = GatherExcite(5, "average", 0)
    assert not list(module.parameters())
    torch.testing.assert_close(module(features), features * torch.sigmoid(features.mean((2, 3)))[:, :, None, None])


@pytest.mark.parametrize("extent", [2, 4, 8])
def test_depthwise_gather_of_finite_extent(extent: int) -> None:
    """log2(extent) depth-wise convolutions of stride 2 with batch norm, ReLU in between, nearest gate."""
    torch.manual_seed(0)
    module = GatherExcite(4, "depthwise", extent).eval()
    features = torch.randn(2, 4, 14, 11)
    convolutions = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert len(convolutions) == math.log2(extent)
    gathered = features
    for index, convolution in enumerate(convolutions):
        if index:
            gathered = gathered.relu()
        padded = F.pad(gathered, (1, 1, 1, 1))
        height, width = math.ceil(gathered.shape[2] / 2), math.ceil(gathered.shape[3] / 2)
        summed = torch.zeros(2, 4, height, width)
        for i in range(3):
            for j in range(3):
                window = padded[:, :, i : i + 2 * height - 1 : 2, j : j + 2 * width - 1 : 2]
                summed += convolution.weight[:, 0, i, j].view(4, 1, 1) * window
        gathered = summed / math.sqrt(1 + 1e-5)  # a fresh batch norm in evaluation mode
    rows = torch.arange(14) * gathered.shape[2] // 14
    columns = torch.arange(11) * gathered.shape[3] // 11
    expected = features * torch.sigmoid(gathered)[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(module(features), expected, rtol=1e-4, atol=1e-5)


def test_global_depthwise_gather_is_one_convolution_of_the_maps_size() -> None:
    """At the kernel's own size the operator is the paper's convolution, exactly."""
    gather = GlobalGather(6, 7).eval()
    features = torch.randn(3, 6, 7, 7)
    expected = F.conv2d(features, gather.weight, groups=6) / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(gather(features), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (7, 6), (14, 14)])
def test_global_depthwise_gather_keeps_its_meaning_at_other_sizes(size: tuple[int, int]) -> None:
    """Weights learned at one image size give the same answer for the same (constant) context at another."""
    gather = GlobalGather(4, 7).eval()
    nn.init.constant_(gather.weight, 0.3)
    features = torch.randn(4).view(1, 4, 1, 1)
    at_home = gather(features.expand(1, 4, 7, 7))
    torch.testing.assert_close(gather(features.expand(1, 4, *size)), at_home, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [(7, 3), (3, 7), (5, 5), (2, 9)])
def test_linear_resampling_equals_torchs_interpolation(source: int, target: int) -> None:
    """The matrices that replace torch's non-deterministic backward resample as torch does."""
    line = torch.randn(source)
    expected = F.interpolate(line.view(1, 1, -1), size=target, mode="linear", align_corners=False).flatten()
    torch.testing.assert_close(linear_resampling(source, target, line.device) @ line, expected)


@pytest.mark.parametrize("gather", ["average", "depthwise"])
@pytest.mark.parametrize("extent", [0, 4])
def test_every_variant_trains_at_any_size(gather: str, extent: int) -> None:
    """Each variant keeps the map's shape, gates strictly below one, and feeds every parameter."""
    module = GatherExcite(16, gather, extent)
    for size in [(1, 1), (5, 8), (7, 7)]:
        module.zero_grad()
        features = torch.randn(4, 16, *size, requires_grad=True)
        gated = module(features)
        assert gated.shape == features.shape
        assert (gated.abs() < features.abs()).all()
        gated.square().sum().backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize(("gather", "extent"), [("depthwise", 3), ("average", 1), ("average", -1), ("max", 2)])
def test_impossible_variants_are_refused(gather: str, extent: int) -> None:
    """A gate that no extent can mean is refused when built, not silently replaced."""
    with pytest.raises(ValueError, match="gather-excite"):
        GatherExcite(8, gather, extent)
