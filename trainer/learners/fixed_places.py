"""Images from latents such that an image's last bits do not depend on what is made with it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

# Images are made this many at a time, each in the place that its index gives: the shape of a matrix product and the
# row in it decide how it rounds.
_CHUNK = 8


@torch.no_grad()
def make_in_fixed_places(
    make: Callable[[torch.Tensor], torch.Tensor], numbers: torch.Tensor, indices: npt.NDArray[np.int64]
) -> torch.Tensor:
    """Images `make(latents)` of latents [n, z], n >= 1: [n, ...]; bit-identical for the same latent at the same index.

    make: from latents [8, z] to as many images, by networks in evaluation mode. indices: int64 [n].
    """
    made, order = [], []
    for chunk in np.unique(indices // _CHUNK):
        rows = np.flatnonzero(indices // _CHUNK == chunk)
        places = indices[rows] % _CHUNK
        filled = numbers.new_zeros(_CHUNK, numbers.shape[1])
        filled[places] = numbers[rows]
        made.append(make(filled)[places])
        order.append(rows)
    joined = torch.cat(made)
    images = torch.empty_like(joined)
    images[np.concatenate(order)] = joined
    return images
