"""A small, fast generator, trained on a larger one's output (StainNet: Kang et al. 2021, figure 1)."""

from torch import Tensor, nn

from models.stain.config import GeneratorConfig


class Student(nn.Module):
    """float [n, 3, H, W] -> [n, 3, H, W] before its tanh, any H and W: three 1x1 convolutions with ReLU between.

    Each pixel's new colour depends on that pixel only, so no structure is added or lost.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, config.width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(config.width, config.width, 1),
            nn.ReLU(inplace=True),
        )
        self.last = nn.Conv2d(config.width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.trunk(images))
