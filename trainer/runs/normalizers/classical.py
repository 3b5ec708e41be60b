"""Stain normalisers without a network: Reinhard's colour statistics and Macenko's stain vectors."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from models.stain.colour_statistics import ColourStatistics, restain


@dataclass(frozen=True)
class Reinhard:
    """Each image's mean and deviation of L*, a*, b* become the target's (Reinhard et al. 2001, in CIELAB).

    The target's statistics are averages over its images. Cells lose their differences in overall lightness and
    colour; ReinhardDomain keeps these. Colours outside sRGB are clipped.
    """

    target: ColourStatistics
    source: ColourStatistics | None = None  # what is mapped to the target's; None: each image's own
    name: ClassVar[str] = "reinhard"

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """Fit to images of the target stain, float32 [n, 3, H, W] in [-1, 1]; images of the source are not used."""
        return cls(ColourStatistics.typical(target_images))

    def __call__(self, images: Tensor) -> Tensor:
        return restain(images, self.source, self.target)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name} | {domain: each.as_lists() for domain, each in self._statistics().items()}

    def state_dict(self) -> dict[str, Any]:
        return {domain: dataclasses.asdict(each) for domain, each in self._statistics().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(**{domain: ColourStatistics(**each) for domain, each in state.items()})

    def _statistics(self) -> dict[str, ColourStatistics]:
        return {"target": self.target} | ({} if self.source is None else {"source": self.source})


class ReinhardDomain(Reinhard):
    """One map in L*, a*, b* for all images: the source stain's average mean and deviation become the target's."""

    name: ClassVar[str] = "reinhard_domain"

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """Fit to images of both stains, float32 [n, 3, H, W] in [-1, 1]. ValueError without images of the source."""
        if source_images is None:
            raise ValueError(f"{cls.name} is fitted on images of the source stain too")
        return cls(ColourStatistics.typical(target_images), ColourStatistics.typical(source_images))


class Macenko:
    """Finds the optical densities of two stains in each image and replaces them by the target's (Macenko et al. 2009).

    Stain vectors and strengths are torchstain's estimates with its defaults: light 240, percentiles 1 and 99, pixels
    with a density below 0.15 in any channel are background. The target's are medians over its images.
    Stains are matched by strength, the denser (nuclear) one first. torchstain's own rule, redder density first, was
    made for haematoxylin; in Romanowsky stains its order changes from image to image.
    The background keeps its colour: the method assumes white light. Colour that two stains cannot explain is lost.
    """

    name = "macenko"

    def __init__(self, stains: Tensor, strengths: Tensor) -> None:
        """stains: float32 [3, 2], unit columns of R, G, B densities, denser stain first. strengths: float32 [2]."""
        self._stains, self._strengths = stains, strengths
        self.failures = 0  # images so far that were returned unchanged, as no two stains were found in them

    @classmethod
    def fit(cls, target_images: Tensor, source_images: Tensor | None = None) -> Self:
        """Fit to images of the target stain, float32 [n, 3, H, W] in [-1, 1]; images of the source are not used.

        UserError when two stains are found in fewer than half of the images.
        """
        found = [pair for pair in map(_find_stains, target_images) if pair is not None]
        if 2 * len(found) < len(target_images):
            raise UserError(
                f"macenko: two stains can be told apart in {len(found)} of {len(target_images)} images of the target "
                "stain: take another normaliser"
            )
        stains, strengths = (torch.stack(each).median(dim=0).values for each in zip(*found, strict=True))
        return cls(stains / stains.norm(dim=0), strengths)

    def __call__(self, images: Tensor) -> Tensor:
        result, target = images.clone(), self._stains * self._strengths
        for number, pair in enumerate(map(_find_stains, images)):
            if pair is None:
                self.failures += 1
                continue
            to_target = (target @ torch.linalg.pinv(pair[0] * pair[1])).to(images)
            density = torch.einsum("ij,jhw->ihw", to_target, _density(images[number]))
            result[number] = ((_LIGHT * (-density).exp() - 1) / 127.5 - 1).clamp(-1, 1)
        return result

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "stains": self._stains.T.tolist(), "strengths": self._strengths.tolist()}

    def state_dict(self) -> dict[str, Any]:
        return {"stains": self._stains, "strengths": self._strengths}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(state["stains"], state["strengths"])


CLASSICAL: dict[str, type[Reinhard] | type[Macenko]] = {kind.name: kind for kind in (Reinhard, ReinhardDomain, Macenko)}

# torchstain's defaults, those of the authors' code.
_LIGHT = 240.0
_BACKGROUND = 0.15
_FEWEST_PIXELS = 100  # with fewer, percentiles 1 and 99 are single pixels
_LEAST_ANGLE = math.radians(5)  # vectors nearer to each other are one stain and noise


def _density(image: Tensor) -> Tensor:
    return -(((image.clamp(-1, 1) + 1) * 127.5 + 1) / _LIGHT).log()


def _find_stains(image: Tensor) -> tuple[Tensor, Tensor] | None:
    """Stain vectors float32 [3, 2] and strengths float32 [2] of an image [3, H, W], denser stain first, on the CPU.

    A strength is the 99th percentile of its stain's density over the pixels. None if there are not two stains.
    """
    from torchstain.torch.normalizers import TorchMacenkoNormalizer  # here: classifiers seldom need it

    pixels = image.detach().float().cpu().clamp(-1, 1)
    if (_density(pixels) >= _BACKGROUND).all(dim=0).sum() < _FEWEST_PIXELS:
        return None
    estimate = TorchMacenkoNormalizer()
    estimate.fit((pixels + 1) * 127.5, Io=_LIGHT, beta=_BACKGROUND)
    denser_first = estimate.maxCRef.argsort(descending=True)
    stains, strengths = estimate.HERef[:, denser_first], estimate.maxCRef[denser_first]
    if not (stains.isfinite().all() and strengths.isfinite().all() and (strengths > 0).all()):
        return None
    angle = torch.linalg.cross(stains[:, 0], stains[:, 1]).norm().clamp(max=1).asin()
    return (stains, strengths) if angle >= _LEAST_ANGLE else None
