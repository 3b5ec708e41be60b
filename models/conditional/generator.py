"""The generator (thesis, section 3.5, table 10)."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditional.config import GeneratorConfig
from models.conditional.layers import ResidualBlock, initialise
from models.layers import SLOPE, normalization

# Below 1, so that no image begins where tanh is flat.
_LAST_GAIN = 0.5


class Generator(nn.Module):
    """Latents float [n, latent_size] and types int64 [n] -> images float32 [n, 3, S, S] in [-1, 1].

    The one-hot type is joined to the latents, as long a vector as they are on average; with `classes` 0 the
    network knows no types. The table's last row says 64 channels, which is no image: 3 here. At 128 pixels,
    eight types and the defaults, 9.78 million parameters, as in table 22.
    """

    def __init__(self, config: GeneratorConfig, image_size: int, classes: int) -> None:
        """image_size: a multiple of 4."""
        super().__init__()
        self.classes = classes
        self._shape = (config.width, image_size // 4, image_size // 4)
        self.linear = nn.Linear(config.latent_size + classes, config.width * (image_size // 4) ** 2)
        layers: list[nn.Module] = []
        bias = config.norm == "none"
        for number, blocks in enumerate(config.blocks):
            layers += [ResidualBlock(config.width, config.norm, transposed=True) for _ in range(blocks)]
            layers += [normalization(config.norm, config.width), nn.LeakyReLU(SLOPE)]
            if number < 2:
                layers.append(nn.ConvTranspose2d(config.width, config.width, 5, 2, 2, 1, bias=bias))
        self.trunk = nn.Sequential(*layers)
        self.last = nn.ConvTranspose2d(config.width, 3, 5, 1, 2)
        initialise(self)
        self.last.weight.data *= _LAST_GAIN

    def forward(self, latents: Tensor, types: Tensor | None = None) -> Tensor:
        inputs = latents
        if self.classes:
            if types is None:
                raise TypeError("this generator makes images of types: give them")
            # A 1 beside 128 normal numbers would say as little as one of them.
            length = math.sqrt(latents.shape[1])
            inputs = torch.cat([latents, length * functional.one_hot(types, self.classes).to(latents.dtype)], dim=1)
        features = self.linear(inputs).view(-1, *self._shape)
        # float32 whatever the precision: bfloat16 has steps of half a grey level near 1
        return torch.tanh(self.last(self.trunk(features)).float())
