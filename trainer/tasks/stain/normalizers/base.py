"""What every stain normaliser can do, learned or classical."""

from collections.abc import Mapping
from typing import Any, Protocol, Self

from torch import Tensor


class StainNormalizer(Protocol):
    """Gives images the look of its target stain, each on its own, without their labels.

    name: what it is called in scores and file names.
    """

    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 [n, 3, H, W] in [-1, 1] -> the same images restained, same shape, range and device."""
        ...

    def describe(self) -> dict[str, Any]:
        """Its name and what tells it from others of that name, as plain JSON values."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All it needs, as tensors and plain values that torch.load reads with weights_only=True."""
        ...

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The normaliser whose state_dict this is."""
        ...
