"""A derivation that is cheap and real: the negatives of one cell type's images, for the tests of derived data sets."""

import dataclasses
import hashlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.banks.derive import derive_dataset
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.shards.writer import ShardSettings

SETTINGS = ShardSettings(max_samples=12)
MADE_TYPE = "lymphocyte"


class Renderer:
    """Turns the parent's images into their negatives; `calls` are the samples of each call."""

    def __init__(self, parent: Dataset, log: Path | None = None) -> None:
        self.calls: list[tuple[str, ...]] = []
        self._parent = parent
        self._rows = parent.samples().set_index("id", drop=False)
        self._log = log

    def __call__(self, samples: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
        self.calls.append(tuple(row.id for row in samples))
        if self._log is not None:
            with self._log.open("a") as log:
                log.write("called\n")
        for row in samples:
            yield self.image(row.parent)

    def image(self, parent: str) -> npt.NDArray[np.uint8]:
        stored = self._parent.read_encoded(self._rows.loc[parent])
        return 255 - np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"))


def divide(parent: Dataset, generator: str = "g1") -> tuple[list[Sample], list[Sample]]:
    """Kept rows (one of them excluded) and templates of new rows, of one cell type."""
    kept, made = [], []
    for row in from_table(parent.table):
        if row.cell_type == MADE_TYPE:
            recipe = hashlib.sha256(f"{row.id}/{generator}".encode()).hexdigest()
            new = {"id": recipe, "origin": "normalized", "parent": row.id, "domain": "negative"}
            made.append(dataclasses.replace(row, **new, microns_per_pixel=0.07))  # type: ignore[arg-type]
        else:
            kept.append(row)
    nowhere: dict[str, Any] = {"shard": "", "key": "", "offset": None, "size": None, "crc32": None}
    kept[0] = dataclasses.replace(kept[0], status="excluded", reason="expert's list", **nowhere)
    return kept, made


def derive(root: Path, parent: Dataset, generator: str = "g1", **changes: Any) -> dict[str, Any]:
    kept, made = divide(parent, generator)
    options: dict[str, Any] = {
        "kept": kept,
        "made": made,
        "render": Renderer(parent),
        "made_by": {"what": "negatives", "generator": generator},
        "settings": SETTINGS,
        "progress": False,
    }
    return derive_dataset(root, parent, **{**options, **changes})


def own_shards(dataset: Dataset) -> list[str]:
    return [name for name, facts in dataset.metadata["shards"].items() if "folder" not in facts]
