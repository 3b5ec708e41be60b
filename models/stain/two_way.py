"""Two networks as one module, for data-parallel training: DDP reduces gradients once per forward pass.

So all outputs that one step needs of both networks come from one forward pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Translation(NamedTuple):
    """All images made from one pair of batches, float32 in [-1, 1] (thesis, figure 22, equations 18-23)."""

    fake_b: Tensor  # G_AB(A), of real_a's shape, as are cycle_a and same_a
    fake_a: Tensor  # G_BA(B), of real_b's shape, as are cycle_b and same_b
    cycle_a: Tensor  # G_BA(G_AB(A))
    cycle_b: Tensor  # G_AB(G_BA(B))
    same_a: Tensor | None  # G_BA(A); None without identity
    same_b: Tensor | None  # G_AB(B)


class TwoWay(nn.Module):
    """Generators from domain A to B and from B to A: two real batches -> their Translation.

    Batches are joined into three generator calls in all. A generator with batch norm is called once per batch instead,
    as its statistics would mix the stains.
    """

    def __init__(self, a_to_b: nn.Module, b_to_a: nn.Module) -> None:
        super().__init__()
        self.a_to_b = a_to_b
        self.b_to_a = b_to_a

    def forward(self, real_a: Tensor, real_b: Tensor, *, identity: bool = True) -> Translation:
        """real_a, real_b: float [n_a, 3, H, W] and [n_b, 3, H, W] in [-1, 1].

        identity: also compute same_a and same_b (equation 23).
        """
        same_a = same_b = None
        if identity:
            fake_b, same_b = translate(self.a_to_b, real_a, real_b)
            fake_a, cycle_a, same_a = translate(self.b_to_a, real_b, fake_b, real_a)
        else:
            (fake_b,) = translate(self.a_to_b, real_a)
            fake_a, cycle_a = translate(self.b_to_a, real_b, fake_b)
        (cycle_b,) = translate(self.a_to_b, fake_a)
        return Translation(fake_b, fake_a, cycle_a, cycle_b, same_a, same_b)


def translate(generator: nn.Module, *batches: Tensor) -> tuple[Tensor, ...]:
    """The generator's output for each batch, in one call unless it has a batch norm."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in generator.modules()):
        return tuple(generator(batch) for batch in batches)
    joined: Tensor = generator(torch.cat(batches))
    return joined.split([len(batch) for batch in batches])


class DomainPair(nn.Module):
    """One network for each domain: images float [n, C, H, W] of each -> each one's output."""

    def __init__(self, a: nn.Module, b: nn.Module) -> None:
        super().__init__()
        self.a = a
        self.b = b

    def forward(self, images_a: Tensor, images_b: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(images_a), self.b(images_b)
