"""Configurations of the networks of section 3.5 (groups `generator`, `critic`, `classifier`)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.checks import check_at_least_one, check_choices
from models.errors import ModelError
from models.layer_choices import Upsampling

Norm = Literal["batch", "pixel", "none"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator (thesis, table 10)."""

    width: int = 64  # channels of every layer but the last
    latent_size: int = 128  # normal numbers of one image, beside its type
    blocks: list[int] = field(default_factory=lambda: [2, 4, 2])  # residual blocks at S/4, at S/2 and at S
    norm: Norm = "none"  # "batch" takes statistics over all images of a call
    upsample: Upsampling = "transposed"  # "nearest": repeated pixels and a 3x3 convolution, without a checkerboard

    def __post_init__(self) -> None:
        _check(self, "generator", "width", "latent_size")


@dataclass(frozen=True)
class CriticConfig:
    """The critic (thesis, table 11). Its gradient penalty is defined per image: no batch norm with it."""

    group: ClassVar[str] = "critic"

    width: int = 64  # channels of every convolution
    hidden: int = 128  # of the first fully connected layer
    blocks: list[int] = field(default_factory=lambda: [2, 4, 4])  # residual blocks at S/2, at S/4 and at S/8
    norm: Norm = "none"

    def __post_init__(self) -> None:
        _check(self, self.group, "width", "hidden")


@dataclass(frozen=True)
class ClassifierConfig(CriticConfig):
    """The classifier (thesis, table 12): the critic's layers, with one output for each type."""

    group: ClassVar[str] = "classifier"


def _check(config: Any, group: str, *counts: str) -> None:
    """ModelError for an unknown choice, a count below 1, or blocks that are not three counts, at least one above 0."""
    check_choices(config, group)
    for name in counts:
        check_at_least_one(config, group, name)
    blocks = list(config.blocks)
    if len(blocks) != 3 or min(blocks) < 0 or not any(blocks):
        raise ModelError(f"{group}.blocks={blocks}: give three counts that are not all 0, [2, 4, 2] for example")
