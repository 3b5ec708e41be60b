"""Gather-excite: a gate for every feature from the context around it (Hu et al., NeurIPS 2018; thesis, figure 39)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class AverageGather(nn.Module):
    """Mean over each position's neighbourhood; no parameters (paper, section 3.1, "GE-theta-minus").

    float [n, C, H, W] -> [n, C, ceil(H/e), ceil(W/e)]; extent e = 0 is global: [n, C, 1, 1]. Output position u covers
    the input positions e*u - (e-1) .. e*u + (e-1) inside the map (section 2, extent ratio e).
    """

    def __init__(self, extent: int) -> None:
        super().__init__()
        self.extent = extent

    def forward(self, features: Tensor) -> Tensor:
        if self.extent == 0:
            return features.mean((2, 3), keepdim=True)
        e = self.extent
        return F.avg_pool2d(features, 2 * e - 1, stride=e, padding=e - 1, count_include_pad=False)


class StridedGather(nn.Sequential):
    """log2(e) depth-wise 3x3 convolutions of stride 2 with batch norm (paper, section 3.2, "GE-theta").

    float [n, C, H, W] -> [n, C, ceil(H/e), ceil(W/e)] for an extent e of 2, 4, 8, ...; ReLU in between.
    """

    def __init__(self, channels: int, extent: int) -> None:
        layers: list[nn.Module] = []
        for step in range(int(math.log2(extent))):
            if step > 0:
                layers.append(nn.ReLU(inplace=True))
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False))
            layers.append(nn.BatchNorm2d(channels))
        super().__init__(*layers)


class GlobalGather(nn.Module):
    """One depth-wise convolution as large as the map, with batch norm (paper, section 3.2, global extent).

    float [n, C, H, W] -> [n, C, 1, 1]. The kernel is stored as [C, 1, k, k]. At H = W = k this is the paper's operator.
    At another size the kernel is resampled linearly to H x W and scaled by k*k / (H*W), so that one set of weights
    serves every image size. Resampling is a product with fixed matrices: the backward pass of torch's interpolation is
    not deterministic on CUDA. Training needs a batch of two or more: batch norm sees one value per image and channel.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel, kernel))
        self.norm = nn.BatchNorm2d(channels)
        # A mean and a little noise: the gate starts like that of squeeze-and-excitation.
        nn.init.normal_(self.weight, mean=kernel**-2, std=0.5 * kernel**-2)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        kernel: Tensor = self.weight
        if (height, width) != tuple(kernel.shape[2:]):
            rows = linear_resampling(kernel.shape[2], height, kernel.device)
            columns = linear_resampling(kernel.shape[3], width, kernel.device)
            kernel = rows @ kernel.float() @ columns.T
            kernel = kernel * (self.weight.shape[2] * self.weight.shape[3] / (height * width))
        gathered = (features * kernel.squeeze(1).to(features.dtype)).sum((2, 3), keepdim=True)
        return self.norm(gathered)


def linear_resampling(source: int, target: int, device: torch.device) -> Tensor:
    """Matrix float32 [target, source] that resamples a line linearly, pixel centres aligned; each row sums to 1."""
    position = (torch.arange(target, device=device, dtype=torch.float32) + 0.5) * (source / target) - 0.5
    position = position.clamp(0, source - 1)
    centres = torch.arange(source, device=device, dtype=torch.float32)
    return (1 - (position[:, None] - centres[None, :]).abs()).clamp(min=0)


class GatherExcite(nn.Module):
    """Multiplies a feature map by a gate in (0, 1): x * sigmoid(interpolate(G(x))) with gather G (paper, section 2).

    float [n, C, H, W] -> the same shape, any H and W. The gate is enlarged to H x W by nearest neighbour as in the
    paper, which is deterministic on CUDA. gather: "average" (parameter-free) or "depthwise" (learned). extent: 0 for
    the whole map, else the extent ratio e, a power of two for "depthwise". kernel: side of a global depth-wise
    gather's kernel. ValueError for an unknown gather or an impossible extent.
    """

    def __init__(self, channels: int, gather: str = "depthwise", extent: int = 0, kernel: int = 7) -> None:
        super().__init__()
        if gather not in ("average", "depthwise"):
            raise ValueError(f"gather-excite: gather {gather!r} is neither 'average' nor 'depthwise'")
        if extent < 0 or extent == 1:
            raise ValueError(f"gather-excite: extent {extent} must be 0 (the whole map) or at least 2")
        self.gather: nn.Module
        if gather == "average":
            self.gather = AverageGather(extent)
        elif extent == 0:
            self.gather = GlobalGather(channels, kernel)
        elif extent & (extent - 1) == 0:
            self.gather = StridedGather(channels, extent)
        else:
            raise ValueError(f"gather-excite: a depth-wise gather needs an extent of 2, 4, 8, ..., not {extent}")

    def forward(self, features: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gather(features))
        if gate.shape[2:] != (1, 1):  # a global gate broadcasts
            gate = F.interpolate(gate, size=features.shape[2:], mode="nearest")
        return features * gate
