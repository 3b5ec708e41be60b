"""A pool of generated images: discriminators are shown older ones too (Shrivastava et al. 2017)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data_pipeline.randomness import derive_key, uniform
from trainer.learners.topology import gather_images


class ImagePool:
    """Keeps up to `size` images; every process holds the same ones.

    What enters and leaves follows from the seed and the images' positions in the global order alone, so it
    depends neither on the number of processes nor on the micro-batches (contract C11).
    """

    def __init__(self, size: int, seed: int, purpose: str) -> None:
        self._size = size
        self._key = derive_key(seed, "image pool", purpose)
        self._images: list[torch.Tensor] = []

    def exchange(self, parts: Sequence[torch.Tensor], positions: Sequence[npt.NDArray[np.int64]]) -> list[torch.Tensor]:
        """Images to show in place of the given ones, in parts of the same sizes.

        parts: this process's images of one global batch [n, 3, H, W]; positions: theirs in the global order.
        Until the pool is full it keeps every image and shows it; then each image is, with even chance, shown
        itself, or kept while the one whose place it takes is shown.
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
        """The images."""
        return {"images": [image.clone() for image in self._images]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved images."""
        self._images = list(state["images"])
