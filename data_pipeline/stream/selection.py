"""The samples that a stream draws from, as columns: what a training process keeps in memory of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import Dataset
from data_pipeline.ids import sort_order
from data_pipeline.shards.reader import PLACE_COLUMNS, ImagePlaces, places_of

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Selection:
    """n samples, sorted by id: 63 bytes each."""

    labels: npt.NDArray[np.int64]  # [n], numbers of the cell types
    domains: npt.NDArray[np.int16]  # [n], numbers of `domain_names`
    generated: npt.NDArray[np.bool_]  # [n]
    places: ImagePlaces
    domain_names: Sequence[str]  # sorted

    def __len__(self) -> int:
        return len(self.labels)


def select(
    dataset: Dataset,
    cell_types: Sequence[str],
    *,
    splits: Sequence[str] | None,
    domains: Sequence[str] | None,
    folds: Sequence[int] | None,
    ids: Sequence[str] | None,
) -> Selection:
    """The kept samples of these cell types, restricted to `ids`; None takes all. Raises as `Dataset.samples`."""
    dataset.refuse_unknown(splits=splits, domains=domains, cell_types=cell_types, folds=folds)
    domain_names, shards = dataset.domains(), sorted(dataset.metadata["shards"])
    wanted = None if ids is None else pa.array(list(ids), pa.string())
    found = []
    for part in dataset.selected(
        [*PLACE_COLUMNS, "cell_type", "domain", "origin"],
        splits=splits,
        domains=domains,
        cell_types=cell_types,
        folds=folds,
    ):
        rows = part if wanted is None else part.filter(pc.is_in(part["id"], wanted))
        found.append(
            Selection(
                _numbers(rows["cell_type"], cell_types).astype(np.int64),
                _numbers(rows["domain"], domain_names).astype(np.int16),
                pc.equal(rows["origin"], "synthetic").to_numpy(zero_copy_only=False),
                places_of(rows, shards),
                domain_names,
            )
        )
    return _joined(found)


def _numbers(names: pa.Array, known: Sequence[str]) -> Array:
    return np.asarray(pc.index_in(names, pa.array(known, pa.string())).to_numpy(zero_copy_only=False))


def _joined(parts: list[Selection]) -> Selection:
    """All parts, sorted by id. Column by column: no second copy of the whole."""
    places = [part.places for part in parts]
    order = sort_order(np.concatenate([place.ids for place in places]))

    def column(values: Callable[[Selection], Array]) -> Array:
        return np.concatenate([values(part) for part in parts])[order]

    joined = ImagePlaces(
        column(lambda part: part.places.ids),
        column(lambda part: part.places.shards),
        column(lambda part: part.places.offsets),
        column(lambda part: part.places.sizes),
        column(lambda part: part.places.crc32),
        places[0].names,
    )
    return dataclasses.replace(
        parts[0],
        labels=column(lambda part: part.labels),
        domains=column(lambda part: part.domains),
        generated=column(lambda part: part.generated),
        places=joined,
    )
