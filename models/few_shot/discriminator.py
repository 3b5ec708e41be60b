"""The discriminator of the few-shot GAN (thesis, section 3.6, figure 34; Miyato et al. 2018, table 3)."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.few_shot.config import DiscriminatorConfig, check_image_size

_SLOPE = 0.1  # of every LeakyReLU, as in Miyato et al.
_HALVINGS = 3


class Discriminator(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1] -> logits float32 [n], no sigmoid.

    Three pairs of a 3x3 convolution and a 4x4 one of stride 2, spectrally normalised, then a 3x3 convolution and
    a fully connected layer. No batch norm and nothing in place: a gradient penalty may be taken through it.
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
        """What the last layers judge by: float [n, feature_channels, S/8, S/8]."""
        features: Tensor = self.trunk(images)
        return features

    def judge(self, features: Tensor) -> Tensor:
        """Logits float32 [n] from `features`."""
        logits: Tensor = self.last(self.head(features))
        return logits.float().squeeze(1)
