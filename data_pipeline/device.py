"""Numbers that were made on the host, on the way to where they are needed."""

from typing import Any

import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor of its shape and type on the device; the host does not wait for it to arrive.

    A copy from ordinary memory would first wait for all that the GPU has been given to do.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
