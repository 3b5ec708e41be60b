"""Configurations of the networks of section 3.5 (groups `generator`, `critic`, `classifier`)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.checks import check_at_least_one, check_choices
from models.errors import ModelError

Norm = Literal["batch", "none"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator of table 10."""

    width: int = 64  # channels of every layer but the last
    latent_size: int = 128  # normal numbers of one image, beside its type
    # Residual blocks at S/4, at S/2 and at S. With more counts it starts smaller, five at S/16: parts of an image that
    # belong together, such as a red cell's rim, are then made together.
    blocks: list[int] = field(default_factory=lambda: [2, 4, 2])
    norm: Norm = "none"  # "batch" takes statistics over all images of a call

    def __post_init__(self) -> None:
        _check(self, "generator", "width", "latent_size", most=6)


@dataclass(frozen=True)
class CriticConfig:
    """The critic of table 11. Its gradient penalty is defined per image: no batch norm with it."""

    group: ClassVar[str] = "critic"

    width: int = 64  # channels of every convolution
    hidden: int = 128  # of the first fully connected layer
    blocks: list[int] = field(default_factory=lambda: [2, 4, 4])  # residual blocks at S/2, at S/4 and at S/8
    norm: Norm = "none"

    def __post_init__(self) -> None:
        _check(self, self.group, "width", "hidden")


@dataclass(frozen=True)
class ClassifierConfig(CriticConfig):
    """The classifier of table 12: the critic's layers, with one output for each type."""

    group: ClassVar[str] = "classifier"


def _check(config: Any, group: str, *counts: str, most: int = 3) -> None:
    """ModelError for an unknown choice, a count below 1, or blocks that are not three to `most` counts, one above 0."""
    check_choices(config, group)
    for name in counts:
        check_at_least_one(config, group, name)
    blocks = list(config.blocks)
    if not 3 <= len(blocks) <= most or min(blocks) < 0 or not any(blocks):
        many = "three" if most == 3 else f"three to {most}"
        raise ModelError(f"{group}.blocks={blocks}: give {many} counts that are not all 0, [2, 4, 2] for example")
