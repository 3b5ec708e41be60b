"""The running average of a network's weights."""

import copy

import torch
from torch import nn


class RunningAverage:
    """Exponential moving average of a network's weights and buffers, for scoring. What is no float is copied.

    Step for step it is timm's ModelEmaV3 with its warm-up, without the time that importing timm takes.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network).eval()
        self._decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Average in the network's weights after its step number `step`, counted from 1."""
        # The warm-up: at first the average of few steps, not mostly of the initial weights.
        decay = min(self._decay, 1 - step ** (-2 / 3))
        averages, values = [], []
        for average, value in zip(self.module.state_dict().values(), network.state_dict().values(), strict=True):
            if average.is_floating_point():
                averages.append(average)
                values.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, values, weight=1 - decay)
