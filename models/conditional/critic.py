"""The discriminator and the classifier (thesis, section 3.5, tables 11 and 12): one body, other outputs."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.conditional.config import CriticConfig
from models.conditional.layers import ResidualBlock, initialise
from models.layers import SLOPE, normalization


class Critic(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> `outputs` numbers for each, float [n, outputs], no sigmoid.

    shown_classes: the network is also shown the type, int64 [n], as that many one-hot planes beside the
    image; 0 shows none. No layer works in place, so that the gradient with respect to the images can be
    differentiated again. At 128 pixels with the defaults, 1.27 million parameters.
    """

    def __init__(self, config: CriticConfig, image_size: int, outputs: int, shown_classes: int) -> None:
        super().__init__()
        self.shown_classes = shown_classes
        self._apart = config.norm == "batch"
        layers: list[nn.Module] = [nn.Conv2d(3 + shown_classes, config.width, 5, 2, 2, bias=config.norm == "none")]
        side = -(-image_size // 2)
        for blocks in config.blocks:
            layers += [ResidualBlock(config.width, config.norm, transposed=False) for _ in range(blocks)]
            # An odd side's last column is a mean of its own: no pixel goes unseen.
            layers.append(nn.AvgPool2d(2, ceil_mode=True))
            side = -(-side // 2)
        layers += [normalization(config.norm, config.width), nn.LeakyReLU(SLOPE), nn.Flatten()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(config.width * side**2, config.hidden), nn.LeakyReLU(SLOPE))
        self.last = nn.Linear(config.hidden, outputs)
        initialise(self)

    def forward(self, images: Tensor, types: Tensor | None = None, *, parts: int = 1) -> Tensor:
        """parts: how many batches of one size are joined in the images; a batch norm sees each by itself."""
        if self.shown_classes:
            if types is None:
                raise TypeError("this critic is shown the types of the images: give them")
            planes = functional.one_hot(types, self.shown_classes).to(images.dtype)[:, :, None, None]
            images = torch.cat([images, planes.expand(-1, -1, *images.shape[2:])], dim=1)
        if self._apart and parts > 1:
            return torch.cat([self._answer(part) for part in images.chunk(parts)])
        return self._answer(images)

    def _answer(self, images: Tensor) -> Tensor:
        answers: Tensor = self.last(self.hidden(self.trunk(images)))
        return answers
