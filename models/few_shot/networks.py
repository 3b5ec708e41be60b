"""Networks of few-shot generation (thesis, section 3.6, figures 31-34), and those that its rivals add."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig, check_image_size
from models.layers import upsampling

_GRID = 4  # side of the generator's first map, and of the encoder's last
_SLOPE = 0.1  # of every LeakyReLU, as in FastGAN and in Miyato et al. 2018
# A skip joins a level to one 16 times its size: 8 to 128, 16 to 256.
_SKIP_RATIO = 16
_SKIP_FROM = 8
_ENCODER_BLOCKS = 4
_HALVINGS = 3  # of the image, in the discriminator


class Generator(nn.Module):
    """Latents float [n, in_size] -> images float32 [n, 3, S, S] in [-1, 1] (figure 31; FastGAN, Liu et al. 2021).

    A fully connected layer to a 4x4 map, then levels that double the size up to S: transposed convolution, batch
    norm, gated linear unit. Skips of channel attention join distant levels (equation 45).
    """

    def __init__(self, config: GeneratorConfig, in_size: int, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        channels = config.channels_at(_GRID)
        self.in_size = in_size
        self.first = nn.Sequential(
            nn.Linear(in_size, 2 * channels * _GRID**2),
            nn.Unflatten(1, (2 * channels, _GRID, _GRID)),
            nn.BatchNorm2d(2 * channels),
            nn.GLU(dim=1),
        )
        self.levels = nn.ModuleDict()
        size = _GRID
        while size < image_size:
            size *= 2
            self.levels[str(size)] = glu_level(config, channels, config.channels_at(size))
            channels = config.channels_at(size)
        self.skips = nn.ModuleDict()  # by the size of the level that is excited
        if config.skip_excitation:
            for low, high in skips(image_size):
                self.skips[str(high)] = SkipLayerExcitation(low, config.channels_at(low), config.channels_at(high))
        self.last = nn.Conv2d(channels, 3, 3, padding=1)
        self._low_of = {str(high): str(low) for low, high in skips(image_size)}

    def forward(self, latents: Tensor) -> Tensor:
        features = self.first(latents)
        kept: dict[str, Tensor] = {}
        for size, level in self.levels.items():
            features = level(features)
            if size in self.skips:
                features = self.skips[size](kept[self._low_of[size]], features)
            kept[size] = features
        return torch.tanh(self.last(features).float())


class SkipLayerExcitation(nn.Module):
    """Low-resolution features weigh the channels of high-resolution ones (equation 45, figure 32).

    float [n, low_channels, s, s] and [n, high_channels, S, S] -> [n, high_channels, S, S].
    """

    def __init__(self, low_size: int, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            nn.AvgPool2d(low_size // 4),  # adaptive pooling to 4x4, in the form with a deterministic gradient
            nn.Conv2d(low_channels, high_channels, 4),
            nn.LeakyReLU(_SLOPE),
            nn.Conv2d(high_channels, high_channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        return high * self.excitation(low)


def skips(image_size: int) -> list[tuple[int, int]]:
    """Sizes (low, high) of the levels that skips join: 8 to 128, 16 to 256, ...; in smaller images 8 to the last."""
    found = []
    low = _SKIP_FROM
    while low * _SKIP_RATIO <= image_size:
        found.append((low, low * _SKIP_RATIO))
        low *= 2
    return found or [(_SKIP_FROM, image_size)]


def glu_level(config: GeneratorConfig, in_channels: int, out_channels: int) -> nn.Sequential:
    """Upsampling, batch norm, gated linear unit: float [n, in_channels, s, s] -> [n, out_channels, 2s, 2s]."""
    return nn.Sequential(
        upsampling(config.upsample, in_channels, 2 * out_channels, kernel=4, bias=False),
        nn.BatchNorm2d(2 * out_channels),
        nn.GLU(dim=1),
    )


class Encoder(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> feature vectors float32 [n, feature_size] (figure 33).

    Four residual blocks, max pooling after the first three, a fully connected layer. The last map, of S/8 pixels, is
    averaged to 4x4: at 128 pixels, a layer over the whole map would hold twice the generator's weights.
    """

    def __init__(self, config: EncoderConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        layers: list[nn.Module] = []
        channels = 3
        for number in range(_ENCODER_BLOCKS):
            width = config.width * 2**number
            layers.append(ResidualBlock(channels, width))
            if number < _ENCODER_BLOCKS - 1:
                layers.append(nn.MaxPool2d(2))
            channels = width
        left = image_size // 2 ** (_ENCODER_BLOCKS - 1)
        self.blocks = nn.Sequential(*layers, nn.AvgPool2d(left // _GRID))
        self.last = nn.Linear(channels * _GRID**2, config.feature_size)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.last(self.blocks(images).flatten(1))
        return features.float()


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a 1x1 shortcut: float [n, in, H, W] -> [n, out, H, W]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        return functional.relu(self.branch(images) + self.shortcut(images))


class Discriminator(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> logits float32 [n] (figure 34; Miyato et al. 2018, table 3).

    Three pairs of a 3x3 and a strided 4x4 convolution, spectrally normalised, then a 3x3 convolution and a fully
    connected layer. No batch norm, nothing in place: a gradient penalty may be taken through it.
    """

    def __init__(self, config: DiscriminatorConfig, image_size: int) -> None:
        super().__init__()
        check_image_size(image_size)
        layers: list[nn.Module] = []
        channels = 3
        for number in range(_HALVINGS):
            width = config.width * 2**number
            pair = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
            for convolution in pair:
                layers += [spectral_norm(convolution) if config.spectral_norm else convolution, nn.LeakyReLU(_SLOPE)]
            channels = 2 * width
        self.feature_channels = channels
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(_SLOPE), nn.Flatten())
        self.last = nn.Linear(channels * (image_size // 2**_HALVINGS) ** 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.judge(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Input of the last layers: float [n, feature_channels, S/8, S/8]."""
        return self.trunk(images)

    def judge(self, features: Tensor) -> Tensor:
        """Logits float32 [n] from `features`."""
        logits: Tensor = self.last(self.head(features))
        return logits.float().squeeze(1)


class FeatureDecoder(nn.Module):
    """FastGAN's decoder (Liu et al. 2021, section 3.2): float [n, C, s, s] -> images [n, 3, 4s, 4s] in [-1, 1].

    Its input is the discriminator's features of images of 8s pixels; it decodes half their size, as FastGAN's does.
    """

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        config = GeneratorConfig(width=width, upsample="nearest")
        self.levels = nn.Sequential(glu_level(config, in_channels, 2 * width), glu_level(config, 2 * width, width))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(self.last(self.levels(features)).float())


class Miner(nn.Module):
    """MineGAN's miner (Wang et al. 2020, section 4.1): noise float [n, latent_size] -> latents of the same shape.

    A small multilayer perceptron in front of a trained generator.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent_size, latent_size)
        self.last = nn.Linear(latent_size, latent_size)

    def forward(self, noise: Tensor) -> Tensor:
        return self.last(functional.leaky_relu(self.first(noise), _SLOPE))
