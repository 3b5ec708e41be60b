"""The configuration group `data.augment`: the settings of every registered augmentation, side by side."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import derive_key
from data_pipeline.stream.augmentations import Augmentation, Parameters, registered


def setting_fields() -> Iterator[tuple[str, Any, Any]]:
    """Name, type and dataclass field of every operation's settings. ValueError for a name that two share."""
    owner: dict[str, str] = {}
    for operation in registered():
        hints = inspect.get_annotations(operation, eval_str=True)
        for field in dataclasses.fields(operation):  # type: ignore[arg-type]
            if field.name in owner:
                raise ValueError(f"data.augment.{field.name}: a setting of {owner[field.name]} and {operation.name}")
            owner[field.name] = operation.name
            copy = {name: getattr(field, name) for name in ("default", "default_factory", "metadata")}
            yield field.name, hints[field.name], dataclasses.field(**copy)


if TYPE_CHECKING:

    class _Settings:
        def __init__(self, **settings: Any) -> None: ...
else:
    _Settings = dataclasses.make_dataclass("_Settings", setting_fields(), frozen=True)


@dataclass(frozen=True)
class AugmentConfig(_Settings):
    """How training images are augmented; the fields are those of the operations in `augmentations/`."""

    def __post_init__(self) -> None:
        _ = self.operations  # each operation checks its own settings

    @cached_property
    def operations(self) -> tuple[Augmentation, ...]:
        """The active operations, in the order in which they change an image."""
        made = [
            operation(**{field.name: getattr(self, field.name) for field in dataclasses.fields(operation)})  # type: ignore[arg-type]
            for operation in registered()
        ]
        return tuple(operation for operation in made if operation.active)


def draw_parameters(
    operations: Sequence[Augmentation], seed: int, positions: npt.NDArray[np.int64], image_size: int
) -> Parameters:
    """Parameters `<operation>.<name>` for the samples at these positions of the global order (not of the rank)."""
    return {
        f"{operation.name}.{name}": values
        for operation in operations
        for name, values in operation.draw(derive_key(seed, operation.name), positions, image_size).items()
    }


# No operation changes an image.
UNCHANGED = AugmentConfig(flip=False, rotation=0.0, scale=1.0, shift=0.0)


def augmentation_help() -> str:
    """The registered augmentations with their keys and defaults, for a launcher's --help."""
    entries = []
    for operation in registered():
        defaults = [f"{field.name}={str(field.default).lower()}" for field in dataclasses.fields(operation)]  # type: ignore[arg-type]
        summary = (operation.__doc__ or "").splitlines()[0].rstrip(".")
        entries.append(f"{operation.name} ({summary}): {' '.join(defaults)}")
    return "; ".join(entries)
