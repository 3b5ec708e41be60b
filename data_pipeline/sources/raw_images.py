"""Raw images as columns: a source of a million is not a million Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.parts import PART, in_parts, release_memory
from data_pipeline.sources.declaration import RawImage

_FEW = pa.dictionary(pa.int32(), pa.string())  # few different texts
_SCHEMA = pa.schema(
    {
        "path": pa.large_string(),
        "source_label": _FEW,
        "cell_type": _FEW,
        "group": _FEW,
        "domain": _FEW,
        "microns_per_pixel": pa.float64(),
        "listed": pa.bool_(),
    }
)


class RawImages(Sequence[RawImage]):
    """Images of a source, in an Arrow table whose columns are the fields of `RawImage`."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def of(cls, images: Iterable[RawImage]) -> RawImages:
        parts: dict[str, list[pa.Array]] = {field.name: [pa.array([], field.type)] for field in _SCHEMA}
        for some in in_parts(images):
            for field in _SCHEMA:
                parts[field.name].append(pa.array([getattr(image, field.name) for image in some], field.type))
        # Column by column: no second copy of the whole.
        table = pa.table({name: _joined(parts.pop(name)) for name in _SCHEMA.names})
        release_memory()
        return cls(table)

    def by_path(self) -> RawImages:
        """The same images, sorted by path and label."""
        keys = pa.table({"path": self.table["path"], "label": self.table["source_label"].cast(pa.string())})
        return RawImages(self.table.take(pc.sort_indices(keys, [("path", "ascending"), ("label", "ascending")])))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[RawImage]:
        for part in self.table.to_batches(PART):
            for values in zip(*(column.to_pylist() for column in part.columns), strict=True):
                yield RawImage(*values)

    @overload
    def __getitem__(self, place: int) -> RawImage: ...
    @overload
    def __getitem__(self, place: slice) -> RawImages: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, _ = place.indices(len(self))
            return RawImages(self.table.slice(start, stop - start))
        return RawImage(**self.table.slice(range(len(self))[place], 1).to_pylist()[0])


def _joined(parts: list[pa.Array]) -> pa.Array:
    return pa.chunked_array(parts).unify_dictionaries().combine_chunks()
