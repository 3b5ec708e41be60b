"""Boxes of whole fields in the pixels that a network sees: padded, resized, mirrored and turned with the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.sources.annotations import Box
from data_pipeline.sources.fields import KINDS
from data_pipeline.sources.whole_fields import boxes_from_text
from data_pipeline.stream.augmentations.geometry import Geometry
from data_pipeline.stream.stream import MicroBatch, Stream

Floats = npt.NDArray[np.float64]
Target = dict[str, torch.Tensor]

# A cell of which less of the box is left inside the image is no target.
_LEAST_INSIDE = 0.3


@dataclass(frozen=True)
class Square:
    """The padded square that a field lies in the middle of, resized to `size` pixels."""

    width: int  # of the field, pixels
    height: int
    size: int

    @property
    def scale(self) -> float:
        return self.size / max(self.width, self.height)

    @property
    def _margins(self) -> Floats:
        side = max(self.width, self.height)
        return np.tile([(side - self.width) / 2, (side - self.height) / 2], 2)

    def inside(self, edges: Floats) -> Floats:
        """Boxes [n, 4] of the field, as those of the square."""
        return np.asarray((edges + self._margins) * self.scale)

    def back(self, edges: Floats) -> Floats:
        """Boxes [n, 4] of the square, as those of the field, cut at its border."""
        limits = np.tile([self.width, self.height], 2)
        return np.asarray((edges / self.scale - self._margins).clip(0, limits))


class FieldBoxes:
    """The boxes of the fields of a stream."""

    def __init__(self, stream: Stream, dataset: Dataset, kinds: Sequence[str], seed: int) -> None:
        """kinds: those that are learned; others are background."""
        self._size, self._seed = stream.config.image_size, seed
        augment = stream.config.augment.operations if stream.training else ()
        self._geometry = next((each for each in augment if isinstance(each, Geometry)), None)
        rows = fields_of(dataset).set_index("id").loc[stream.samples["id"]]
        self.squares = [Square(*size, self._size) for size in zip(rows["width"], rows["height"], strict=True)]
        self.boxes = [[box for box in boxes if box.name in kinds] for boxes in rows["boxes"]]
        self._labels = [torch.tensor([kinds.index(box.name) for box in each], dtype=torch.int64) for each in self.boxes]
        self._edges = [square.inside(edges_of(boxes)) for square, boxes in zip(self.squares, self.boxes, strict=True)]

    def of(self, part: MicroBatch) -> list[Target]:
        """Targets of a micro-batch's images on its device: boxes float [m, 4] (x, y, x, y) and labels int64 [m]."""
        maps = None
        if self._geometry is not None:
            key = derive_key(self._seed, self._geometry.name)
            maps, _ = self._geometry.maps(key, part.positions, self._size)
        targets = []
        for number, row in enumerate(part.rows):
            edges, labels = self._edges[row], self._labels[row]
            if maps is not None:
                edges = moved(edges, maps[number])
            inside = edges.clip(0, self._size)
            keep = _areas(inside) >= np.maximum(_LEAST_INSIDE * _areas(edges), 1)
            boxes = torch.from_numpy(inside[keep]).float().to(part.images.device)
            targets.append({"boxes": boxes, "labels": labels[torch.from_numpy(keep)].to(part.images.device)})
        return targets


def moved(edges: Floats, affine: npt.NDArray[np.floating]) -> Floats:
    """Boxes [n, 4] after a map [2, 3] from output pixel to input pixel: the rectangles round their moved corners."""
    inverse = np.linalg.inv(affine[:, :2].astype(np.float64))
    corners = edges[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]  # [n, 4, 2]
    turned = (corners - affine[:, 2]) @ inverse.T
    return np.concatenate([turned.min(axis=1), turned.max(axis=1)], axis=1)


def edges_of(boxes: Sequence[Box]) -> Floats:
    """float64 [n, 4]: left, top, right, bottom."""
    return np.array([[box.left, box.top, box.right, box.bottom] for box in boxes], np.float64).reshape(-1, 4)


def _areas(edges: Floats) -> Floats:
    return np.asarray((edges[:, 2] - edges[:, 0]).clip(0) * (edges[:, 3] - edges[:, 1]).clip(0))


def fields_of(
    dataset: Dataset, splits: Sequence[str] | None = None, domains: Sequence[str] | None = None
) -> pd.DataFrame:
    """The whole fields of a data set: rows of `Dataset.samples` with a further column `boxes`.

    UserError if there is none, or if the data set was built with stored_size=, which cuts fields.
    """
    sources = [each["name"] for each in dataset.metadata.get("sources", ()) if each["kind"] == "whole_fields"]
    rows = dataset.samples(splits=splits, domains=domains)
    rows = rows[rows["source"].isin(sources)].reset_index(drop=True)
    if not len(rows):
        raise UserError(
            f"{dataset.root}: no whole field in split {'/'.join(splits or ['any'])}: add fields with boxes, "
            "build_shards.py whole_fields=RAW"
        )
    if dataset.metadata["settings"]["stored_size"] is not None:
        raise UserError(f"{dataset.root}: stored_size cuts the middle out of fields: build a data set without it")
    return rows.assign(boxes=rows["source_label"].map(boxes_from_text))


def kinds_of(rows: pd.DataFrame) -> tuple[str, ...]:
    """The kinds of cells with a box in these fields, in the order of KINDS."""
    present = {box.name for boxes in rows["boxes"] for box in boxes}
    return tuple(kind for kind in KINDS if kind in present)
