"""The running average of a network's weights."""

import copy

import torch
from torch import nn


class RunningAverage:
    """Exponential moving average of a network's weights and buffers, for scoring. Integer buffers are copied.

    The same as timm's ModelEmaV3 with warm-up; reimplemented because importing timm is slow.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Update the average with the network's weights after optimizer step `step`, counted from 1."""
        # Warm-up: a smaller decay at first, so that the initial weights do not dominate the average.
        decay = min(self._decay, 1 - step ** (-2 / 3))
        averages, values = [], []
        for average, value in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight=1 - decay)
