"""What a conditional generator, its critic and its classifier are (groups `generator`, `critic`, `classifier`)."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from models.checks import check_at_least_one, check_choices
from models.errors import ModelError

Norm = Literal["batch", "none"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator of table 10. norm: "batch" joins the statistics of all images of a call."""

    width: int = 64  # channels of every layer but the last
    latent_size: int = 128  # normal numbers that an image follows from, beside its type
    blocks: list[int] = field(default_factory=lambda: [2, 4, 2])  # residual blocks at S/4, at S/2 and at S
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_choices(self, "generator")
        for name in ("width", "latent_size"):
            check_at_least_one(self, "generator", name)
        _check_blocks(self, "generator")


@dataclass(frozen=True)
class CriticConfig:
    """The discriminator of table 11. Its penalty is defined for each image by itself: no batch norm under it."""

    group: ClassVar[str] = "critic"

    width: int = 64  # channels of every convolution
    hidden: int = 128  # of the first fully connected layer
    blocks: list[int] = field(default_factory=lambda: [2, 4, 4])  # residual blocks at S/2, at S/4 and at S/8
    norm: Norm = "none"

    def __post_init__(self) -> None:
        check_choices(self, self.group)
        for name in ("width", "hidden"):
            check_at_least_one(self, self.group, name)
        _check_blocks(self, self.group)


@dataclass(frozen=True)
class ClassifierConfig(CriticConfig):
    """The classifier of table 12: the discriminator's layers, with one output for each type."""

    group: ClassVar[str] = "classifier"


def _check_blocks(config: Any, group: str) -> None:
    """ModelError unless `blocks` counts the residual blocks of three sizes, some of them at least."""
    blocks = list(config.blocks)
    if len(blocks) != 3 or min(blocks) < 0 or not any(blocks):
        raise ModelError(f"{group}.blocks={blocks}: give three counts that are not all 0, [2, 4, 2] say")
