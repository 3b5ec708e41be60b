"""Networks that make cells of a requested type and judge them (thesis, section 3.5, tables 10-12)."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig, Norm
from models.errors import ModelError
from models.layers import SLOPE, SameSizeDeconvolution, normalization, upsampling

# Of the generator's last layer: below 1, so that no image starts where tanh is flat.
_LAST_GAIN = 0.5


def build_generator(config: GeneratorConfig, image_size: int, classes: int) -> "Generator":
    """The generator (thesis, table 10). classes: number of types, or 0. ModelError unless 4 divides image_size."""
    check_size(image_size)
    return Generator(config, image_size, classes)


def build_critic(config: CriticConfig, image_size: int, *, class_outputs: int = 0, shown_classes: int = 0) -> "Critic":
    """The critic (thesis, table 11), with 1 + class_outputs outputs: the score, then a logit for each type.

    shown_classes: number of types, if the critic receives each image's type. ModelError unless 4 divides image_size.
    """
    check_size(image_size)
    return Critic(config, image_size, 1 + class_outputs, shown_classes)


def build_classifier(config: ClassifierConfig, image_size: int, classes: int) -> "Critic":
    """The classifier (thesis, table 12): images -> logits [n, classes]. ModelError unless 4 divides image_size."""
    check_size(image_size)
    return Critic(config, image_size, classes, 0)


def check_size(image_size: int) -> None:
    """ModelError unless 4 divides the size: the generator starts at a quarter of it."""
    if image_size < 4 or image_size % 4:
        nearest = max(4, 4 * round(image_size / 4))
        raise ModelError(f"images of {image_size} pixels: the side must be a multiple of 4; {nearest} is the nearest")


class ResidualBlock(nn.Module):
    """Two 3x3 layers and a shortcut: float [n, C, H, W] -> the same shape.

    transposed: transposed convolutions (the generator's "two deconvolution layers"), else convolutions. Norm and
    LeakyReLU come before each layer; nothing changes the shortcut.
    """

    def __init__(self, channels: int, norm: Norm, *, transposed: bool) -> None:
        super().__init__()
        bias = norm == "none"  # a norm removes it
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [normalization(norm, channels), nn.LeakyReLU(SLOPE)]
            if transposed:
                layers.append(SameSizeDeconvolution(channels, channels, 3, bias))
            else:
                layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=bias))
        self.branch = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        changed: Tensor = features + self.branch(features)
        return changed


class Generator(nn.Module):
    """Latents float [n, latent_size] and types int64 [n] -> images float32 [n, 3, S, S] in [-1, 1].

    The one-hot type is concatenated to the latents; with classes=0 there is no type. The last row of table 10 says 64
    channels, which is no image: here 3. At 128 pixels, eight types and the defaults, 9.78 million parameters, as in
    table 22.
    """

    def __init__(self, config: GeneratorConfig, image_size: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self._shape = (config.width, image_size // 4, image_size // 4)
        self.linear = nn.Linear(config.latent_size + classes, math.prod(self._shape))
        layers: list[nn.Module] = []
        for number, blocks in enumerate(config.blocks):
            layers += [ResidualBlock(config.width, config.norm, transposed=True) for _ in range(blocks)]
            layers += [normalization(config.norm, config.width), nn.LeakyReLU(SLOPE)]
            if number < 2:
                bias = config.norm == "none"
                layers.append(upsampling(config.upsample, config.width, config.width, kernel=5, bias=bias))
        self.trunk = nn.Sequential(*layers)
        self.last = nn.ConvTranspose2d(config.width, 3, 5, 1, 2)
        initialise(self)
        self.last.weight.data *= _LAST_GAIN

    def forward(self, latents: Tensor, types: Tensor | None = None) -> Tensor:
        inputs = latents
        if self.classes:
            if types is None:
                raise TypeError("this generator needs the types of the images")
            # The one-hot vector gets the mean length of the latents: a 1 beside 128 normal numbers has little effect.
            length = math.sqrt(latents.shape[1])
            inputs = torch.cat([latents, length * functional.one_hot(types, self.classes).to(latents.dtype)], dim=1)
        features = self.linear(inputs).view(-1, *self._shape)
        # float32 in every precision: bfloat16 has steps of half a grey level near 1
        return torch.tanh(self.last(self.trunk(features)).float())


class Critic(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> float [n, outputs], no sigmoid. Critic and classifier share it.

    shown_classes: the network also receives the types, int64 [n], as that many one-hot channels of the image. No layer
    works in place, so the gradient with respect to the images can be differentiated again. At 128 pixels with
    the defaults, 1.27 million parameters.
    """

    def __init__(self, config: CriticConfig, image_size: int, outputs: int, shown_classes: int) -> None:
        super().__init__()
        self.shown_classes = shown_classes
        self._apart = config.norm == "batch"
        layers: list[nn.Module] = [nn.Conv2d(3 + shown_classes, config.width, 5, 2, 2, bias=config.norm == "none")]
        side = -(-image_size // 2)
        for blocks in config.blocks:
            layers += [ResidualBlock(config.width, config.norm, transposed=False) for _ in range(blocks)]
            layers.append(nn.AvgPool2d(2, ceil_mode=True))  # the last column of an odd side is a mean of its own
            side = -(-side // 2)
        layers += [normalization(config.norm, config.width), nn.LeakyReLU(SLOPE), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(config.width * side**2, config.hidden), nn.LeakyReLU(SLOPE))
        self.last = nn.Linear(config.hidden, outputs)
        initialise(self)

    def forward(self, images: Tensor, types: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """parts: number of equal batches that are concatenated in images; batch norm normalises each by itself."""
        if self.shown_classes:
            if types is None:
                raise TypeError("this critic needs the types of the images")
            planes = functional.one_hot(types, self.shown_classes).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, planes.expand(-1, -1, *images.shape[2:])], dim=1)
        batches = images.chunk(parts) if self._apart else (images,)
        return torch.cat([self.last(self.hidden(self.trunk(batch))) for batch in batches])


class OfEachType(nn.Module):
    """One network per cell type, as one module: inputs [n, ...], types int64 [n] -> outputs in the same order.

    If the inputs are `parts` concatenated batches, each must hold the same types, so that every network's share
    divides into the same parts.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor, types: Tensor, **options: Any) -> Tensor:
        order = types.argsort(stable=True)
        counts = torch.bincount(types, minlength=len(self.networks)).tolist()
        outputs, idle = [], inputs.new_zeros(())
        for network, own in zip(self.networks, inputs[order].split(counts), strict=True):
            if len(own):
                outputs.append(network(own, **options))
            else:
                idle = idle + torch.stack([weights.sum() for weights in network.parameters()]).sum()
        # A data-parallel wrapper waits for a gradient of every weight: zero for a type without images.
        joined = torch.cat(outputs) + 0 * idle
        return joined[order.argsort()]


def initialise(network: nn.Module) -> None:
    """Weights that keep the variance of activations in every layer (He et al. 2015, eq. 15); biases 0.

    Each residual block adds 1 / blocks of the variance: without norms, scores would double with every block.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (1 + SLOPE**2) / _fan_in(module)))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    for block in blocks:
        last = cast(nn.Conv2d | nn.ConvTranspose2d, block.branch[-1])
        last.weight.data /= math.sqrt(len(blocks))


def _fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """Number of inputs of one output; of a transposed convolution with a stride, on average."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    area = math.prod(layer.kernel_size) * layer.in_channels
    return area / math.prod(layer.stride) if isinstance(layer, nn.ConvTranspose2d) else area
