"""Mixup and cutmix: pairs of training images are mixed, and so are their labels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.device import to_device
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, uniform
from data_pipeline.stream.stream import MicroBatch


@dataclass(frozen=True)
class Mixed:
    """The images of a micro-batch after mixing.

    images: float32 [n, 3, S, S]. partners: int64 [n], index of the image that each was mixed with (without one: its
    own). shares: float32 [n] in [0.5, 1], share of the image and of its label; the rest is the partner's.
    """

    images: torch.Tensor
    partners: torch.Tensor
    shares: torch.Tensor


@dataclass(frozen=True)
class Mixing:
    """Mixes the images 2k and 2k + 1 of every global batch with each other.

    So the pairs, and what is drawn for each by its key, do not depend on the number of processes. With
    both kinds, a pair is mixed by one of them, each for half of the pairs.
    """

    mixup: float  # alpha of Beta(alpha, alpha), the share's distribution (Zhang et al. 2018); 0: no mixup
    cutmix: float  # the same for cutmix (Yun et al. 2019)
    seed: int
    global_batch: int

    def __call__(self, part: MicroBatch) -> Mixed:
        """The micro-batch, mixed. UserError where its boundary separates a pair."""
        index = part.positions - part.batch * self.global_batch
        partners = self._partners(index)
        draws = uniform(derive_key(self.seed, "mixing", part.batch), index // 2, 4)
        paired = partners != np.arange(len(index))
        cut = paired & (draws[:, 0] < (0.5 if self.mixup else 1.0)) if self.cutmix else np.zeros(len(index), bool)
        shares = np.where(cut, _shares(draws[:, 1], self.cutmix), _shares(draws[:, 1], self.mixup))
        shares = np.where(paired, shares, 1.0)
        size = part.images.shape[-1]
        # Of a cutmix image: a square of the partner's, wholly inside, at a random place.
        sides = np.where(cut, np.floor(size * np.sqrt(1 - shares)), 0)
        first = np.floor(draws[:, 2:] * (size - sides + 1)[:, None])
        outside = np.where(cut, 1.0, shares)  # share of the image outside of the square
        numbers = to_device(np.column_stack([outside, first, sides]).astype(np.float32), part.images.device)
        shares = np.where(cut, 1 - (sides / size) ** 2, shares)
        order = to_device(partners, part.images.device)
        own = _own_share(numbers, size)
        images = own * part.images + (1 - own) * part.images[order]
        return Mixed(images, order, to_device(shares.astype(np.float32), part.images.device))

    def _partners(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Place in the micro-batch of each image's partner; its own for the last image of an odd global batch."""
        places = (index ^ 1) - index[0]
        alone = (index ^ 1) >= self.global_batch
        places[alone] = np.flatnonzero(alone)
        if places.min() < 0 or places.max() >= len(index):
            raise UserError(
                f"train.mixup and train.cutmix mix neighbours of a global batch, and a micro-batch of {len(index)} "
                "images separates two: choose train.global_batch and train.micro_batch so that every micro-batch "
                "has an even number of images"
            )
        return places


def _shares(draws: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """Shares [n] in [0.5, 1] from uniform draws [n]: max(b, 1 - b) for b of Beta(alpha, alpha).

    A pair mixed by b and by 1 - b is the same two images, so the smaller share is never needed.
    """
    from scipy.special import betaincinv  # here: few runs need it

    share = betaincinv(alpha, alpha, draws) if alpha else np.ones_like(draws)
    return np.maximum(share, 1 - share)


def _own_share(numbers: torch.Tensor, size: int) -> torch.Tensor:
    """Share of the image in each pixel: float32 [n, 1, size, size].

    numbers: float32 [n, 4]: share outside of the square, first row, first column, side of the square.
    """
    outside, top, left, side = numbers.view(-1, 4, 1, 1).unbind(1)
    place = torch.arange(size, device=numbers.device)
    rows = (place[:, None] >= top) & (place[:, None] < top + side)
    columns = (place >= left) & (place < left + side)
    return (outside * ~(rows & columns)).unsqueeze(1)
