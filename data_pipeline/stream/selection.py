"""The samples that a stream draws from, as columns: what a training process keeps in memory of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.catalog import Dataset
from data_pipeline.shards.reader import PLACE_COLUMNS, ImagePlaces, places_of


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
    domain_names, wanted = dataset.domains(), None if ids is None else pa.array(list(ids), pa.string())
    rows = dataset.selected(
        [*PLACE_COLUMNS, "cell_type", "domain", "origin"],
        splits=splits,
        domains=domains,
        cell_types=cell_types,
        folds=folds,
    )
    if wanted is not None:
        rows = (part.filter(pc.is_in(part["id"], wanted)) for part in rows)
    places, columns = places_of(
        rows,
        dataset.row_count,
        sorted(dataset.metadata["shards"]),
        {
            "domains": lambda part: _numbers(part["domain"], domain_names),
            "labels": lambda part: _numbers(part["cell_type"], cell_types),
            "generated": lambda part: pc.equal(part["origin"], "synthetic").to_numpy(zero_copy_only=False),
        },
    )
    labels = columns["labels"].astype(np.int64)
    return Selection(labels, columns["domains"], columns["generated"].astype(bool), places, domain_names)


def _numbers(names: pa.Array, known: Sequence[str]) -> npt.NDArray[np.int16]:
    return pc.index_in(names, pa.array(known, pa.string())).to_numpy(zero_copy_only=False).astype(np.int16)
