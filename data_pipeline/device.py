"""Arrays from the host to the device."""

from typing import Any

import numpy.typing as npt
import torch


def to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """An array as a tensor of the same shape and dtype on the device, copied asynchronously.

    A copy from pageable memory would first wait for all queued work of the GPU.
    """
    tensor = torch.from_numpy(values)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
