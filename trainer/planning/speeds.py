"""How fast a device trains: measured and published speeds, and what follows from them for other networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from data_pipeline.errors import UserError
from trainer.runs.configuration import typed


@dataclass(frozen=True)
class Speed:
    """One speed of one device. image_size: pixels; images_per_second: all streams of a step together.

    max_memory_allocated: bytes, or null. source: who measured it, and where it stands.
    """

    launcher: str = ""
    model: str = ""
    image_size: int = 0
    precision: str = ""
    micro_batch: int | None = None
    device: str = ""
    images_per_second: float = 0.0
    max_memory_allocated: int | None = None
    source: str = "measured"

    def __post_init__(self) -> None:
        if self.images_per_second < 0:
            raise ValueError(f"images_per_second={self.images_per_second}: must be above 0")

    @property
    def is_gpu(self) -> bool:
        return not self.device.startswith("CPU")


@dataclass(frozen=True)
class Estimate:
    """Images per second of a device, and how they are known."""

    device: str
    images_per_second: float
    how: str


def read_speeds(path: Path) -> list[Speed]:
    """The table. UserError where it cannot be read."""
    try:
        rows = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: no table of speeds can be read from it: {str(error).splitlines()[0]}") from error
    return [typed(Speed, row, f"{path}, row {number}") for number, row in enumerate(rows, start=1)]


def estimates(speeds: Sequence[Speed], run: Speed, count: Callable[[Speed], float]) -> list[Estimate]:
    """What each device of the table makes of a run. run: what is to be trained, without device and speed.

    A measured speed of the same training stands as it is. Else that of the training that is most like it is scaled by
    multiply-accumulates per image, which `count` gives of any row; it leaves aside that some layers wait for memory.
    """
    found = []
    for device in dict.fromkeys(speed.device for speed in speeds):
        best = max((speed for speed in speeds if speed.device == device), key=lambda speed: _likeness(speed, run))
        same = (best.launcher, best.model, best.image_size) == (run.launcher, run.model, run.image_size)
        told = (
            f"{best.model}, {best.image_size} px, {best.precision}: {best.images_per_second:g} images/s, {best.source}"
        )
        if same and best.precision == run.precision:
            found.append(Estimate(device, best.images_per_second, told))
            continue
        scale = 1.0 if same else count(best) / count(run)
        how = f"as in {told}" if same else f"scaled by multiply-accumulates from {told}"
        found.append(Estimate(device, best.images_per_second * scale, how))
    return found


def _likeness(speed: Speed, run: Speed) -> tuple[float, ...]:
    return (
        speed.launcher == run.launcher,
        speed.model == run.model,
        speed.precision == run.precision,
        -abs(speed.image_size - run.image_size),
    )
