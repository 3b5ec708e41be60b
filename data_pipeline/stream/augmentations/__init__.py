"""Augmentations: one module each, and a module that lies here is registered.

The graph decodes, resizes to the network's input, lets every active operation change the images by rising `order`,
and normalises. What an operation draws is a function of (seed, its name, position in the global order) alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

# Arrays by name; the first axis counts the samples of a batch.
Parameters = dict[str, npt.NDArray[Any]]


class Augmentation(ABC):
    """One operation: a frozen dataclass of its settings, with its two halves as methods.

    Its fields become keys `data.augment.<field>`, so no two operations share a field name. Their defaults leave
    images alone: a new module then changes no existing run. Values that cannot be are a ValueError.
    DALI is imported inside the methods that build the graph: the settings are read without it.
    """

    name: ClassVar[str]
    order: ClassVar[int]
    bytes_per_value: ClassVar[int] = 0  # memory of intermediate results, per pixel and channel of the network's input

    @property
    @abstractmethod
    def active(self) -> bool:
        """Whether these settings change any image; an inactive operation costs nothing."""

    @abstractmethod
    def draw(self, key: int, positions: npt.NDArray[np.int64], image_size: int) -> Parameters:
        """Random parameters of the samples at these positions, drawn by `data_pipeline.randomness` under `key`.

        Arrays [n, ...]; their names are the same for every batch.
        """

    def resize_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for the graph's `fn.resize`. `given`: a DALI data node for each parameter."""
        return {}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        """The images [S, S, 3], uint8 or float32 in [0, 255], after this operation. `given`: as above."""
        return images

    def normalize_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments for the graph's `fn.crop_mirror_normalize`, which runs last. `given`: as above."""
        return {}


def check_fraction(name: str, value: float) -> None:
    """ValueError unless a setting is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"data.augment.{name}={value}: must be from 0 to 1")


Operation = TypeVar("Operation", bound=type[Augmentation])
_REGISTRY: dict[str, type[Augmentation]] = {}


def register(name: str, order: int) -> Callable[[Operation], Operation]:
    """Class decorator that adds an operation. `name` is part of the key of its random numbers."""

    def add(operation: Operation) -> Operation:
        if name in _REGISTRY:
            raise ValueError(f"augmentation {name!r}: registered by {_REGISTRY[name].__module__} already")
        operation.name, operation.order = name, order
        _REGISTRY[name] = operation
        return operation

    return add


@cache
def registered() -> tuple[type[Augmentation], ...]:
    """All operations, by rising order. Imports no torch and no DALI."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return tuple(sorted(_REGISTRY.values(), key=lambda operation: (operation.order, operation.name)))
