"""Stain normalisers without a network: Reinhard's statistics and Macenko's stain vectors."""

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torchstain.torch.normalizers import TorchMacenkoNormalizer

from data_pipeline.errors import UserError
from models.stain.colour_statistics import ColourStatistics, restain


class Reinhard:
    """Each image's mean and deviation of L*, a*, b* become the target's (Reinhard et al. 2001, in CIELAB).

    The target's are the averages over its images. Differences between cells in how dark or how colourful the
    whole image is are lost; ReinhardDomain keeps them. Colours that sRGB lacks are clipped.
    """

    name = "reinhard"

    def __init__(self, target: ColourStatistics) -> None:
        self._target = target

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """From a sample of images of the target stain, float32 [n, 3, H, W] in [-1, 1]; no source is needed."""
        return cls(ColourStatistics.typical(target_images))

    def __call__(self, images: Tensor) -> Tensor:
        return restain(images, None, self._target)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "target": self._target.as_lists()}

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "target_mean": self._target.mean, "target_deviation": self._target.deviation}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(ColourStatistics(state["target_mean"], state["target_deviation"]))


class ReinhardDomain:
    """One map in L*, a*, b* for all images: the source stain's average mean and deviation become the target's."""

    name = "reinhard_domain"

    def __init__(self, source: ColourStatistics, target: ColourStatistics) -> None:
        self._source = source
        self._target = target

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """From samples of images of both stains, float32 [n, 3, H, W] in [-1, 1]."""
        if source_images is None:
            raise ValueError(f"{cls.name} is fitted on images of the source stain too")
        return cls(ColourStatistics.typical(source_images), ColourStatistics.typical(target_images))

    def __call__(self, images: Tensor) -> Tensor:
        return restain(images, self._source, self._target)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "source": self._source.as_lists(), "target": self._target.as_lists()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "source_mean": self._source.mean,
            "source_deviation": self._source.deviation,
            "target_mean": self._target.mean,
            "target_deviation": self._target.deviation,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            ColourStatistics(state["source_mean"], state["source_deviation"]),
            ColourStatistics(state["target_mean"], state["target_deviation"]),
        )


class Macenko:
    """Two stains' optical densities are found in each image and exchanged for the target's (Macenko et al. 2009).

    Stain vectors and strengths are torchstain's estimates at its defaults: light 240, pixels of a density below
    0.15 in any channel are glass, percentiles 1 and 99. The target's are the medians over its images. The denser
    stain, that of the nuclei, takes the place of the denser one: the library's own rule for which is which, the
    redder density first, was made for haematoxylin and changes from image to image in Romanowsky stains.
    The colour of the glass stays: the method takes the light for known and white. What two stains cannot explain
    of a pixel's colour is lost.

    failures: images so far that came out unchanged, because no two stains could be told apart in them.
    """

    name = "macenko"

    def __init__(self, stains: Tensor, strengths: Tensor) -> None:
        """stains: float32 [3, 2], unit columns of densities R, G, B, denser first. strengths: float32 [2]."""
        self._stains = stains
        self._strengths = strengths
        self.failures = 0

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """From a sample of images of the target stain, float32 [n, 3, H, W] in [-1, 1]; no source is needed.

        UserError when no two stains can be told apart in more than half of them.
        """
        found = [pair for pair in map(_stains_of, target_images) if pair is not None]
        if 2 * len(found) < len(target_images):
            raise UserError(
                f"macenko: two stains can be told apart in {len(found)} of {len(target_images)} images of the target "
                "stain: take another normaliser"
            )
        stains = torch.stack([pair[0] for pair in found]).median(dim=0).values
        strengths = torch.stack([pair[1] for pair in found]).median(dim=0).values
        return cls(stains / stains.norm(dim=0), strengths)

    def __call__(self, images: Tensor) -> Tensor:
        found = [_stains_of(image) for image in images]
        self.failures += found.count(None)
        restained = [pair is not None for pair in found]
        if not any(restained):
            return images.clone()
        target = self._stains * self._strengths
        maps = [target @ torch.linalg.pinv(pair[0] * pair[1]) for pair in found if pair is not None]
        chosen = torch.tensor(restained, device=images.device)
        density = torch.einsum("nij,njhw->nihw", torch.stack(maps).to(images), _density(images[chosen]))
        result = images.clone()
        result[chosen] = _image_of(density)
        return result

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "stains": self._stains.T.tolist(), "strengths": self._strengths.tolist()}

    def state_dict(self) -> dict[str, Any]:
        return {"name": self.name, "stains": self._stains, "strengths": self._strengths}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["stains"], state["strengths"])


CLASSICAL: dict[str, type[Reinhard] | type[ReinhardDomain] | type[Macenko]] = {
    kind.name: kind for kind in (Reinhard, ReinhardDomain, Macenko)
}


# torchstain's defaults, after the authors' own code.
_LIGHT = 240.0
_GLASS = 0.15
# Percentiles 1 and 99 of fewer pixels than this are single pixels.
_FEWEST_PIXELS = 100
# Vectors nearer to each other than this are one stain and noise.
_LEAST_ANGLE = math.radians(5)


def _density(images: Tensor) -> Tensor:
    return -(((images.clamp(-1, 1) + 1) * 127.5 + 1) / _LIGHT).log()


def _image_of(density: Tensor) -> Tensor:
    return ((_LIGHT * (-density).exp() - 1) / 127.5 - 1).clamp(-1, 1)


def _stains_of(image: Tensor) -> tuple[Tensor, Tensor] | None:
    """Stain vectors float32 [3, 2] and strengths float32 [2] of an image [3, H, W], the denser stain first.

    Strengths are 99th percentiles of the stains' densities over the pixels. On the CPU. None where there are not two.
    """
    pixels = image.detach().float().cpu().clamp(-1, 1)
    stained = (_density(pixels) >= _GLASS).all(dim=0).sum()
    if stained < _FEWEST_PIXELS:
        return None
    estimate = TorchMacenkoNormalizer()
    estimate.fit((pixels + 1) * 127.5, Io=_LIGHT, beta=_GLASS)
    denser_first = estimate.maxCRef.argsort(descending=True)
    stains, strengths = estimate.HERef[:, denser_first], estimate.maxCRef[denser_first]
    if not (stains.isfinite().all() and strengths.isfinite().all() and (strengths > 0).all()):
        return None
    apart = torch.linalg.cross(stains[:, 0], stains[:, 1]).norm().clamp(max=1).asin()
    return (stains, strengths) if apart >= _LEAST_ANGLE else None
