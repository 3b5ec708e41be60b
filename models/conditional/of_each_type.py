"""One network for each cell type, as one module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class OfEachType(nn.Module):
    """Networks that know no types, each given what is of its own: inputs [n, ...], types int64 [n] -> outputs.

    Outputs stand in the order of the inputs. Inputs in `parts` joined batches must hold the same types in
    each, so that every network's share falls into the same parts.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, inputs: Tensor, types: Tensor, **options: Any) -> Tensor:
        order = types.argsort(stable=True)
        counts = torch.bincount(types, minlength=len(self.networks)).tolist()
        outputs, idle = [], inputs.new_zeros(())
        for network, own in zip(self.networks, inputs[order].split(counts), strict=True):
            if len(own):
                outputs.append(network(own, **options))
            else:
                idle = idle + torch.stack([weights.sum() for weights in network.parameters()]).sum()
        # A data-parallel wrapper waits for every weight's gradient: zero for a type that is not here.
        joined = torch.cat(outputs) + 0 * idle
        return joined[order.argsort()]
