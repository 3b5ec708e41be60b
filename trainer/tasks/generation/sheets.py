"""What a person looks at to judge a bank: samples of each type, and generated images beside the nearest real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.metrics.copies import Nearest, nearest_images
from trainer.reports.sheets import draw_sheet
from trainer.tasks.generation.images import to_intensity

_COLUMNS = 9
_REAL_ROWS, _GENERATED_ROWS = 1, 3
_PAIRS = 4  # of each type


@dataclass(frozen=True)
class Pairs:
    """The generated images of one type that lie nearest to training images, uint8 [k, 3, S, S], and those images."""

    cell_type: str
    generated: torch.Tensor
    training: torch.Tensor
    distances: tuple[float, ...]

    @classmethod
    def nearest(cls, cell_type: str, generated: torch.Tensor, training: torch.Tensor, found: Nearest) -> "Pairs":
        """The nearest few of all, nearest first; training images as they were turned."""
        order = np.argsort(found.distance, kind="stable")[:_PAIRS]
        few = Nearest(found.distance[order], found.row[order], found.turn[order])
        return cls(
            cell_type, generated[torch.from_numpy(order)], nearest_images(training, few), tuple(few.distance.tolist())
        )


def draw_samples(folder: Path, cell_type: str, real: torch.Tensor, generated: torch.Tensor) -> None:
    """Write `samples-<type>.png`: a row of real images over rows of generated ones, uint8 [n, 3, S, S], the first."""
    size, rows, names = generated.shape[-1], [], []
    for name, images, count in (("real", real, _REAL_ROWS), ("generated", generated, _GENERATED_ROWS)):
        for row in images[: count * _COLUMNS].split(_COLUMNS):
            blank = torch.full((_COLUMNS - len(row), 3, size, size), 255, dtype=torch.uint8)
            rows.append(torch.cat([row, blank]))
            names.append(name)
    columns = [to_intensity(column) for column in torch.stack(rows, dim=1)]
    draw_sheet(folder / f"samples-{cell_type.replace(' ', '_')}.png", [""] * _COLUMNS, columns, names)


def draw_nearest(path: Path, pairs: Sequence[Pairs]) -> None:
    """Write a sheet of generated images, each beside its nearest training image: a row of pairs for each type."""
    columns = []
    for number in range(_PAIRS):
        columns += [
            torch.stack([_image_or_blank(each.generated, number) for each in pairs]),
            torch.stack([_image_or_blank(each.training, number) for each in pairs]),
        ]
    labels = [f"{each.cell_type}\n{_two_lines(each.distances)}" for each in pairs]
    draw_sheet(path, ["generated", "nearest real"] * _PAIRS, [to_intensity(column) for column in columns], labels)


def _two_lines(distances: Sequence[float]) -> str:
    """The distances in the pairs' order, in as little room as a row of small images leaves."""
    words, half = [f"{distance:.3g}" for distance in distances], _PAIRS // 2
    return f"{'  '.join(words[:half])}\n{'  '.join(words[half:])}"


def _image_or_blank(images: torch.Tensor, number: int) -> torch.Tensor:
    return images[number] if number < len(images) else torch.full_like(images[0], 255)
