"""If these fail, the network that is scored is not the running average that its checkpoint and report say it is."""

import copy

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from trainer.learners.average import RunningAverage


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_it_is_timms_average_bit_for_bit(decay: float) -> None:
    """Batch norm's buffers too: running statistics are averaged, the count of batches is copied."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    ours, theirs = RunningAverage(network, decay), ModelEmaV3(network, decay=decay, use_warmup=True)
    before = copy.deepcopy(network.state_dict())
    for step in range(1, 30):
        network(torch.randn(2, 3, 8, 8)).square().mean().backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.1 * parameter.grad
        ours.update(network, step)
        theirs.update(network, step)
    for name, average in ours.module.state_dict().items():
        assert torch.equal(average, theirs.module.state_dict()[name]), name
        assert not torch.equal(average, before[name]), name
    assert not ours.module.training
