"""Ids of samples in memory: 32 bytes each, in place of 64 hexadecimal digits."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Ids = npt.NDArray[np.uint8]  # [n, 32], SHA-256
ID_BYTES = 32
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_VALUES = np.full(256, 255, np.uint8)
_VALUES[_DIGITS] = np.arange(16)


def from_hex(ids: pa.Array) -> Ids:
    """Ids of an Arrow array of strings. ValueError for one that is not 64 lower-case hexadecimal digits."""
    if not len(ids):
        return np.empty((0, ID_BYTES), np.uint8)
    if ids.null_count or pc.any(pc.not_equal(pc.binary_length(ids), 2 * ID_BYTES)).as_py():
        raise ValueError("an id is not 64 hexadecimal digits")
    ids = pa.concat_arrays([ids.cast(pa.large_string())])
    letters = np.frombuffer(ids.buffers()[2], np.uint8)[ids.offset * 2 * ID_BYTES :][: len(ids) * 2 * ID_BYTES]
    values = _VALUES[letters]
    if (values > 15).any():
        raise ValueError("an id is not 64 hexadecimal digits")
    return np.asarray(values[::2] << 4 | values[1::2]).reshape(-1, ID_BYTES)


def to_hex(ids: Ids) -> pa.Array:
    """The ids as an Arrow array of strings; at most 33 million at once."""
    letters = np.stack([_DIGITS[ids >> 4], _DIGITS[ids & 15]], axis=-1)
    offsets = np.arange(len(ids) + 1, dtype=np.int32) * (2 * ID_BYTES)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(offsets), pa.py_buffer(letters.tobytes()))


def sort_order(ids: Ids) -> npt.NDArray[np.int64]:
    """Row numbers that sort the ids."""
    words = np.ascontiguousarray(ids).view(">u8")
    first = words[:, 0].astype(np.uint64)
    order = np.argsort(first, kind="stable")
    first = first[order]
    if (first[1:] == first[:-1]).any():
        order = np.lexsort(words.T[::-1])
    return np.asarray(order, np.int64)
