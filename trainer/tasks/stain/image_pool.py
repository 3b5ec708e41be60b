"""A pool of generated images, so that discriminators see older ones too (Shrivastava et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.randomness import derive_key, uniform
from trainer.learners.topology import gather_images


class ImagePool:
    """Holds up to `size` images, the same ones on every rank.

    Its content depends on the seed and the images' positions in the global order only, not on the world size or the
    micro-batch.
    """

    def __init__(self, size: int, seed: int, purpose: str) -> None:
        self._size = size
        self._key = derive_key(seed, "image pool", purpose)
        self._images: list[torch.Tensor] = []

    def exchange(self, parts: Sequence[torch.Tensor], positions: Sequence[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
        """The images to show instead of the given ones, in parts of the same sizes.

        parts: this rank's images of one global batch [n, 3, H, W]; positions: their positions in the global order.
        Until the pool is full, each image is stored and shown. Then each is, with probability 1/2, shown itself, or
        stored in place of a pooled image, which is shown.
        """
        if self._size == 0:
            return list(parts)
        mine = np.concatenate(positions)
        images, places = gather_images(torch.cat(list(parts)), mine)
        draws = uniform(self._key, places, 2)
        shown: dict[int, torch.Tensor] = {}
        for image, place, (coin, slot) in zip(images, places.tolist(), draws, strict=True):
            if len(self._images) < self._size:
                self._images.append(image)
                shown[place] = image
            elif coin < 0.5:
                taken = int(slot * self._size)
                shown[place], self._images[taken] = self._images[taken].to(image.device), image
            else:
                shown[place] = image
        return [torch.stack([shown[place] for place in part.tolist()]) for part in positions]

    def state_dict(self) -> dict[str, Any]:
        """The pooled images."""
        return {"images": [image.clone() for image in self._images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved images."""
        self._images = list(state["images"])
