"""SENet-154-GE and its relatives: a squeeze-and-excitation network with gather-excite on top.

Thesis: section 3.7, figures 36-39. The trunk is timm's SENet under timm's names, so that weights of
`legacy_senet154` fit; its widths, which timm fixes, are arguments.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.classifiers.config import ClassifierConfig
from models.classifiers.gather_excite import GatherExcite
from models.classifiers.squeeze_excite import SEBottleneck, SEModule


class SEBasicBlock(nn.Module):
    """Two 3x3 convolutions, squeeze-and-excitation, shortcut (ResNet's basic block with SE).

    float [n, in_channels, H, W] -> [n, width, ceil(H/stride), ceil(W/stride)]. Unlike timm's SEResNetBlock it
    has no ReLU between the last batch norm and SE: a residual may be negative, and may start at zero.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        groups: int,
        reduction: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SEModule(width, reduction=reduction)
        self.downsample = downsample

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.se_module(self.bn2(self.conv2(residual)))
        out: Tensor = self.relu(residual + shortcut)
        return out


BLOCKS: dict[str, type[SEBottleneck] | type[SEBasicBlock]] = {
    "bottleneck": SEBottleneck,
    "basic": SEBasicBlock,
}


def make_stem(widths: tuple[int, ...], kernel: int) -> nn.Sequential:
    """Convolutions with batch norm and ReLU, the first of stride 2: [n, 3, S, S] -> [n, C, S/2, S/2]."""
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 3
    for index, width in enumerate(widths, start=1):
        stride = 2 if index == 1 else 1
        convolution = nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        modules[f"conv{index}"] = convolution
        modules[f"bn{index}"] = nn.BatchNorm2d(width)
        modules[f"relu{index}"] = nn.ReLU(inplace=True)
        channels = width
    return nn.Sequential(modules)


def make_shortcut(in_channels: int, out_channels: int, stride: int, kind: str) -> nn.Sequential:
    """Projection of a shortcut to a block's output; `kind` says how it downsamples when stride is 2."""
    norm = nn.BatchNorm2d(out_channels)
    if stride == 1 or kind == "conv1":
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm)
    if kind == "conv3":
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False), norm)
    pool = nn.AvgPool2d(stride, stride=stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


def pool_to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average-pool float [n, C, H, W] to [n, C, *grid].

    A whole ratio is taken as plain pooling: adaptive pooling, which serves every other ratio, has a backward
    pass that is not deterministic on CUDA.
    """
    height, width = features.shape[2:]
    if height % grid[0] == 0 and width % grid[1] == 0:
        return F.avg_pool2d(features, (height // grid[0], width // grid[1]))
    return F.adaptive_avg_pool2d(features, grid)


class AttentionFusion(nn.Module):
    """The upper half of figure 38: first and last feature map in, attended last feature map out.

    first: float [n, C_1, H_1, W_1], the stem's output F1 before pooling; last: float [n, C, H, W], F_L.
    Returns Y, float [n, C, H, W]. F1' = F1 pooled to F_L's grid and projected to C channels;
    S = SE(F1' * F_L); E = GE(F_L); A = S + E; Y is A + F_L (sum), A * F_L (product) or a 1x1 convolution of
    both with batch norm (concatenate).
    """

    def __init__(self, first_channels: int, channels: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.project = nn.Conv2d(first_channels, channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels)
        self.squeeze_excite = SEModule(channels, reduction=config.reduction)
        self.gather_excite = GatherExcite(
            channels, config.ge_gather, config.ge_extent, config.ge_mlp, config.reduction, config.ge_kernel
        )
        self.fusion = config.fusion
        if self.fusion == "concatenate":
            self.merge = nn.Sequential(nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, first: Tensor, last: Tensor) -> Tensor:
        projected = self.project_norm(self.project(pool_to_grid(first, (last.shape[2], last.shape[3]))))
        attention: Tensor = self.squeeze_excite(projected * last) + self.gather_excite(last)
        if self.fusion == "sum":
            return attention + last
        if self.fusion == "product":
            return attention * last
        merged: Tensor = self.merge(torch.cat([attention, last], dim=1))
        return merged


class SENetGE(nn.Module):
    """SENet with (`config.ge`) or without gather-excite: float [n, 3, S, S] -> logits [n, number_of_types].

    With the defaults and without gather-excite it is timm's legacy_senet154, weight for weight.
    Training needs a batch of two or more where a gather is global (see GlobalGather).
    """

    def __init__(self, config: ClassifierConfig, number_of_types: int) -> None:
        super().__init__()
        block = BLOCKS[config.block]
        self.layer0 = make_stem(config.stem_widths, config.stem_kernel)
        # timm's pooling: the frame it saves by ceil_mode was the original Caffe network's
        self.pool0 = nn.MaxPool2d(3, stride=2, ceil_mode=True) if config.stem_pool else nn.Identity()
        channels = config.stem_widths[-1]
        self.stages: list[str] = []
        for index, (blocks, width) in enumerate(zip(config.layers, config.widths, strict=True), start=1):
            stride = 1 if index == 1 else 2
            stage: list[nn.Module] = []
            for position in range(blocks):
                step = stride if position == 0 else 1
                out_channels = width * block.expansion
                projected = step != 1 or channels != out_channels
                shortcut = make_shortcut(channels, out_channels, step, config.shortcut) if projected else None
                stage.append(block(channels, width, config.groups, config.reduction, step, shortcut))
                channels = out_channels
            self.stages.append(f"layer{index}")
            self.add_module(self.stages[-1], nn.Sequential(*stage))
        self.attention = AttentionFusion(config.stem_widths[-1], channels, config) if config.ge else None
        self.dropout = nn.Dropout(config.dropout)
        self.last_linear = nn.Linear(channels, number_of_types)
        self._checkpoints_blocks = False
        self._initialise(config.zero_init)

    def _initialise(self, zero_init: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init:
            for module in self.modules():
                if isinstance(module, SEBottleneck):
                    nn.init.zeros_(module.bn3.weight)
                elif isinstance(module, SEBasicBlock):
                    nn.init.zeros_(module.bn2.weight)
                elif isinstance(module, AttentionFusion):
                    nn.init.zeros_(module.project_norm.weight)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks keep no activations and compute them again in the backward pass; timm's name for it."""
        self._checkpoints_blocks = enable

    def features(self, images: Tensor) -> Tensor:
        """What the classifier's mean is taken of: Y of figure 38, float [n, C, H, W]."""
        first = self.layer0(images)
        last: Tensor = self.pool0(first)
        for stage in self.stages:
            blocks = self.get_submodule(stage)
            if self._checkpoints_blocks and torch.is_grad_enabled():
                for block in blocks.children():
                    last = checkpoint(block, last, use_reentrant=False)
            else:
                last = blocks(last)
        return last if self.attention is None else self.attention(first, last)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.last_linear(self.dropout(self.features(images).mean((2, 3))))
        return logits
