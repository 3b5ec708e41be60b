"""Rows of a catalogue as numpy columns, sorted by id, in the least memory."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.ids import sort_order
from data_pipeline.parts import release_memory
from data_pipeline.sample import ids_of

Columns = dict[str, npt.NDArray[Any]]
Readers = Mapping[str, Callable[[pa.RecordBatch], npt.NDArray[Any]]]


def sorted_columns(rows: Iterable[pa.RecordBatch], most: int, read: Readers) -> Columns:
    """Columns of rows, and their `ids`, sorted by id.

    rows: in parts, at most `most`. read: name -> makes that column of a part. The columns are filled and sorted in
    place: no second copy, and no gaps between parts that stay.
    """
    columns: Columns = {}
    count = 0
    for part in rows:
        for name, of in {"ids": ids_of, **read}.items():
            values = of(part)
            if name not in columns:  # takes no memory until it is filled
                columns[name] = np.empty((most, *values.shape[1:]), values.dtype)
            columns[name][count : count + len(values)] = values
        count += part.num_rows
    if not columns:
        return columns
    columns = {name: column[:count] for name, column in columns.items()}
    release_memory()
    order = sort_order(columns["ids"])
    for column in columns.values():
        # 8 bytes of each row at a time.
        words = column.view(np.uint64) if column.ndim > 1 else column[:, None]
        for place in range(words.shape[1]):
            words[:, place] = words[:, place][order]
    del order
    release_memory()
    return columns
