"""A critic on the features of a pretrained classifier (Sauer et al. 2021, "Projected GANs converge faster")."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import register_parametrization

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.features import stages
from models.errors import ModelError
from models.layers import SLOPE

_SMALLEST = 4  # side of a map that is judged place by place
_BLOCK = 2  # side of the block of pixels that is one place of the finest judge


def build_projected_critic(
    timm_name: str, weights: str | None, image_size: int, types: int, width: int
) -> "ProjectedCritic":
    """The critic on timm's network of this name. weights: "pretrained", timm's; a file of them; None: random ones.

    ModelError for a name or a file that cannot be, in the words of `model.options`.
    """
    try:
        classifier = build_classifier(
            ClassifierConfig("features", "timm", timm_name, weights=weights), types, image_size
        )
    except ModelError as error:
        raise ModelError(str(error).replace("model.weights", "model.options.weights")) from error
    return ProjectedCritic(classifier, image_size, types, width)


class ProjectedCritic(nn.Module):
    """Images float [n, 3, S, S] in [-1, 1], types int64 [n] -> scores float [n, scales], one of each map.

    classifier: its weights never change; the maps of its stages, of sides from S/4 down to 4, are mixed over channels
    and, from the coarsest to the finest, over scales by random convolutions that never change either. A small network
    judges each scale: it need not learn from pixels what cells are. One more judges the pixels: at 64 px the classifier
    does not see a pattern of single pixels, and the generator made one. A type is shown by projection (Miyato and
    Koyama 2018). width: channels of the mixed maps and of the judges.
    """

    def __init__(self, classifier: nn.Module, image_size: int, types: int, width: int) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        with torch.no_grad():
            maps = self.maps(torch.zeros(1, 3, image_size, image_size))
        channels = [each.shape[1] for each in maps]
        self.mixed = nn.ModuleList(_random(size, width, 1) for size in channels)
        self.smoothed = nn.ModuleList(_random(width, width, 3) for _ in channels)
        for part in (self.classifier, self.mixed, self.smoothed):
            part.requires_grad_(False)
        self.judges = nn.ModuleList(_Judge(width, width, each.shape[-1], types) for each in maps)
        self.of_pixels = _Judge(3 * _BLOCK**2, width, image_size // _BLOCK, types)

    def train(self, mode: bool = True) -> "ProjectedCritic":
        """The classifier keeps the statistics that it has learned."""
        super().train(mode)
        self.classifier.eval()
        return self

    def forward(self, images: Tensor, types: Tensor, *, parts: int = 1) -> Tensor:
        """parts: number of equal batches that are concatenated in images; no layer tells them apart."""
        mixed = [mix(each) for mix, each in zip(self.mixed, self.maps(images), strict=True)]
        above: Tensor | None = None
        scores = [self.of_pixels(functional.pixel_unshuffle(images, _BLOCK), types)]
        for own, smooth, judge in zip(reversed(mixed), reversed(self.smoothed), reversed(self.judges), strict=True):
            whole = own if above is None else own + functional.interpolate(above, own.shape[2:], mode="bilinear")
            above = smooth(whole)
            scores.append(judge(above, types))
        return torch.stack(scores, dim=1)

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        """What the classifier makes of images, the finest map first: float [n, channels, s, s] each."""
        seen: list[Tensor] = []
        with ExitStack() as hooks:
            for stage in stages(self.classifier):
                hooks.callback(stage.register_forward_hook(lambda _stage, _in, out: seen.append(out)).remove)
            self.classifier(images)
        return [each for each in seen if _SMALLEST <= each.shape[-1] <= images.shape[-1] // 4]


class _Judge(nn.Module):
    """A map float [n, inputs, s, s], types int64 [n] -> score [n]."""

    def __init__(self, inputs: int, channels: int, side: int, types: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while side > _SMALLEST:
            layers += [_bounded(nn.Conv2d(inputs, channels, 4, 2, 1)), nn.LeakyReLU(SLOPE)]
            inputs, side = channels, side // 2
        layers += [_bounded(nn.Conv2d(inputs, channels, 3, 1, 1)), nn.LeakyReLU(SLOPE)]
        self.trunk = nn.Sequential(*layers)
        self.place = _bounded(nn.Conv2d(channels, 1, 1))
        self.of_type = _bounded(nn.Embedding(types, channels))

    def forward(self, features: Tensor, types: Tensor) -> Tensor:
        features = self.trunk(features)
        projected = (features.mean((2, 3)) * self.of_type(types)).sum(1)
        score: Tensor = self.place(features).mean((1, 2, 3)) + projected
        return score


class _SpectralNorm(nn.Module):
    """A weight over its largest singular value (Miyato et al. 2018), that bounds a layer's slope.

    The singular vectors follow from the weight alone: those of torch's power iteration depend on how many forward
    passes there were, and so on micro-batches.
    """

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        with torch.no_grad():
            squared = (matrix @ matrix.T).float()  # bf16 under autocast; an error of the vectors counts by its square
            left = torch.linalg.eigh(squared).eigenvectors[:, -1:]
            right = functional.normalize((left * matrix).sum(0), dim=0)
        return weight / (left * matrix * right).sum()


def _bounded(layer: nn.Module) -> nn.Module:
    register_parametrization(layer, "weight", _SpectralNorm())
    return layer


def _random(inputs: int, outputs: int, side: int) -> Any:
    layer = nn.Conv2d(inputs, outputs, side, 1, side // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    return layer
