"""A k-nearest-neighbour classifier of features, as a network like any other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class NearestNeighbours(nn.Module):
    """Votes of the k nearest stored features, each weighted by exp(cosine / temperature) (DINO, Caron et al. 2021).

    Features float32 [n, d] -> logits float32 [n, types]: the logarithm of each type's share of the votes.
    `stored` [m, d], of unit length, `labels` int64 [m] and the number of neighbours are in the state dict; one of
    another m fits too.
    """

    stored: Tensor
    labels: Tensor

    def __init__(
        self, features: Tensor, labels: Tensor, types: int, neighbours: int, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.types, self.neighbours, self.temperature = types, neighbours, temperature
        self.register_buffer("stored", functional.normalize(features.float(), dim=1))
        self.register_buffer("labels", labels.long())

    def forward(self, features: Tensor) -> Tensor:
        similarity = functional.normalize(features.float(), dim=1) @ self.stored.T
        nearest, rows = similarity.topk(min(self.neighbours, len(self.labels)), dim=1)
        # A softmax: the largest exponent is subtracted, so that no vote overflows.
        votes = (nearest / self.temperature).softmax(dim=1)[:, None]
        of_type = self.labels[rows][..., None] == torch.arange(self.types, device=rows.device)
        shares = (votes @ of_type.to(votes.dtype))[:, 0]
        return shares.clamp_min(1e-6).log()  # a type without a vote keeps a finite logit

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.neighbours)

    def set_extra_state(self, state: Tensor) -> None:
        self.neighbours = int(state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in ("stored", "labels"):
            if f"{prefix}{name}" in state_dict:
                own, given = getattr(self, name), state_dict[f"{prefix}{name}"]
                setattr(self, name, own.new_empty((len(given), *own.shape[1:])))
        super()._load_from_state_dict(state_dict, prefix, *arguments)
