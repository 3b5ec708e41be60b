"""SENet with gather-excite on top (thesis, section 3.7, figures 36-39): SENet-154-GE and smaller ones.

The trunk is timm's SENet under timm's names, so that weights of `legacy_senet154` fit; its widths, which timm fixes,
are arguments.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.classifiers.config import ClassifierConfig
from models.classifiers.gather_excite import GatherExcite
from models.classifiers.squeeze_excite import SEBottleneck, SEModule
from models.errors import ModelError


def build(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    try:
        return SENetGE(config, number_of_types)
    except (ValueError, ZeroDivisionError) as error:
        raise ModelError(f"model={config.name} cannot be built: {error}; change model.*") from error


class SEBasicBlock(nn.Module):
    """Two 3x3 convolutions, squeeze-and-excitation, shortcut (ResNet's basic block with SE).

    float [n, in_channels, H, W] -> [n, width, ceil(H/stride), ceil(W/stride)]. Unlike timm's SEResNetBlock, there is
    no ReLU between the last batch norm and SE: a residual may be negative, and may start at zero.
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
        return self.relu(residual + shortcut)


BLOCKS: dict[str, type[SEBottleneck] | type[SEBasicBlock]] = {"bottleneck": SEBottleneck, "basic": SEBasicBlock}


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
    """Projection of a shortcut to a block's output; `kind`: how it downsamples if stride is 2, "conv3" or "average"."""
    norm = nn.BatchNorm2d(out_channels)
    if stride > 1 and kind == "conv3":
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False), norm)
    projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    if stride == 1:
        return nn.Sequential(projection, norm)
    return nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False), projection, norm)


def pool_to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average-pool float [n, C, H, W] to [n, C, *grid].

    Plain pooling where the ratio is whole: the backward pass of adaptive pooling is not deterministic on CUDA.
    """
    height, width = features.shape[2:]
    if height % grid[0] == 0 and width % grid[1] == 0:
        return F.avg_pool2d(features, (height // grid[0], width // grid[1]))
    return F.adaptive_avg_pool2d(features, grid)


class AttentionFusion(nn.Module):
    """The upper half of figure 38: first [n, C_1, H_1, W_1] and last map [n, C, H, W] -> Y, float [n, C, H, W].

    F1 is the output of the stem, before pooling, or of its first convolution (`config.ge_first`). F1' is F1 pooled to
    the size of the last map F_L and projected to C channels. S = SE(F1' * F_L); E = GE(F_L); A = S + E. Y is A + F_L
    (sum), A * F_L (product) or a 1x1 convolution of both with batch norm (concatenate).
    """

    def __init__(self, first_channels: int, channels: int, config: ClassifierConfig) -> None:
        super().__init__()
        self.project = nn.Conv2d(first_channels, channels, 1, bias=False)
        self.project_norm = nn.BatchNorm2d(channels)
        self.squeeze_excite = SEModule(channels, reduction=config.reduction)
        self.gather_excite = GatherExcite(channels, config.ge_gather, config.ge_extent, config.ge_kernel)
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
        return self.merge(torch.cat([attention, last], dim=1))


# The batch norm that closes a branch.
CLOSING_NORMS: dict[type[nn.Module], str] = {SEBottleneck: "bn3", SEBasicBlock: "bn2", AttentionFusion: "project_norm"}


class SENetGE(nn.Module):
    """SENet with (`config.ge`) or without gather-excite: float [n, 3, S, S] -> logits [n, number_of_types].

    With the defaults and without gather-excite it is timm's legacy_senet154, weight for weight. With a global gather,
    training needs a batch of two or more (see GlobalGather).
    """

    def __init__(self, config: ClassifierConfig, number_of_types: int) -> None:
        super().__init__()
        block = BLOCKS[config.block]
        self.layer0 = make_stem(config.stem_widths, config.stem_kernel)
        # ceil_mode as in timm's network, which follows the original one in Caffe
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
        # Layers of the stem up to F1: a convolution, its batch norm and its ReLU, or all.
        self._first_layers = 3 if config.ge_first == "convolution" else len(self.layer0)
        first_channels = config.stem_widths[0 if config.ge_first == "convolution" else -1]
        self.attention = AttentionFusion(first_channels, channels, config) if config.ge else None
        self.dropout = nn.Dropout(config.dropout)
        self.last_linear = nn.Linear(channels, number_of_types)
        self._checkpoints_blocks = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif config.zero_init and type(module) in CLOSING_NORMS:
                nn.init.zeros_(module.get_parameter(f"{CLOSING_NORMS[type(module)]}.weight"))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Whether blocks recompute their activations in the backward pass (timm's name for it)."""
        self._checkpoints_blocks = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of the names of stem and stages in their order (timm's name for it).

        The attention, which no pretrained weights fit, counts with the last layer.
        """
        return {"stem": r"^layer0", "stages": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def features(self, images: Tensor) -> Tensor:
        """Y of figure 38, float [n, C, H, W]; the last layer sees its mean over H and W."""
        if self._first_layers == len(self.layer0):
            first = stem = self.layer0(images)
        else:
            first = stem = images
            for place, layer in enumerate(self.layer0, start=1):
                stem = layer(stem)
                first = stem if place <= self._first_layers else first
        last: Tensor = self.pool0(stem)
        for stage in self.stages:
            blocks = self.get_submodule(stage)
            if self._checkpoints_blocks and torch.is_grad_enabled():
                for block in blocks.children():
                    last = checkpoint(block, last, use_reentrant=False)
            else:
                last = blocks(last)
        return last if self.attention is None else self.attention(first, last)

    def forward(self, images: Tensor) -> Tensor:
        return self.last_linear(self.dropout(self.features(images).mean((2, 3))))
