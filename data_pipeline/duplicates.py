"""Near duplicates: images whose perceptual hashes differ in a few bits, found without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_ROWS_AT_ONCE = 65_536
# From here on, sorting by more keys costs less than comparing all that share one of few.
_MANY_ROWS = 500_000


def near_pairs(
    hashes: npt.NDArray[np.uint8], max_distance: int, agreeing: int | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield all pairs of rows within a Hamming distance, as two arrays of row numbers, some pairs repeatedly.

    hashes: uint8 [n, bytes]. Exact: the bits are dealt out to max_distance + agreeing bands, so two rows that
    differ in no more bits agree on `agreeing` whole bands (pigeonhole), and only rows equal in so many are compared.
    None takes what is quicker for so many rows.
    """
    if agreeing is None:
        agreeing = 1 if len(hashes) < _MANY_ROWS else 2
    bands, bits = max_distance + agreeing, hashes.shape[1] * 8
    if agreeing * -(-bits // bands) > 64:
        raise ValueError(f"{agreeing} of {bands} bands of {bits} bits are more than 64 bits")
    for chosen in combinations(range(bands), agreeing):
        # A band is every so-manieth bit: neighbouring bits, which are alike, part.
        keys = _band_keys(hashes, [bit for band in chosen for bit in range(band, bits, bands)])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        # `left` holds the positions whose neighbour `step` further on is still in the same run of equal keys.
        left = np.arange(len(keys))
        step = 0
        while len(left):
            step += 1
            left = left[left + step < len(keys)]
            left = left[keys[left] == keys[left + step]]
            one, other = order[left], order[left + step]
            distance = np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1, dtype=np.int64)
            close = distance <= max_distance
            if close.any():
                yield one[close], other[close]


def _band_keys(hashes: npt.NDArray[np.uint8], bits: list[int]) -> npt.NDArray[np.uint64]:
    """These bits, at most 64, as one integer per row."""
    keys = np.zeros((len(hashes), 8), np.uint8)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        packed = np.packbits(np.unpackbits(hashes[start : start + _ROWS_AT_ONCE], axis=1)[:, bits], axis=1)
        keys[start : start + _ROWS_AT_ONCE, : packed.shape[1]] = packed
    return keys.view(np.uint64).ravel()


def near_components(hashes: npt.NDArray[np.uint8], max_distance: int) -> npt.NDArray[np.int64]:
    """The component of every row, int64 [n]: rows joined by a chain of near pairs share a number.

    hashes: uint8 [n, bytes], bytes a multiple of 8.
    """
    if not len(hashes):
        return np.empty(0, np.int64)
    # Equal hashes first: a thousand blank images are one row here, not half a million pairs.
    words = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort(words.T)
    first = np.append(True, np.any(words[order[1:]] != words[order[:-1]], axis=1))
    distinct = hashes[order[first]]
    row_of = np.empty(len(hashes), np.int64)
    row_of[order] = np.cumsum(first) - 1
    pairs = list(near_pairs(distinct, max_distance))
    one = np.concatenate([pair[0] for pair in pairs]) if pairs else np.empty(0, np.int64)
    other = np.concatenate([pair[1] for pair in pairs]) if pairs else np.empty(0, np.int64)
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(distinct), len(distinct)))
    _, component = connected_components(graph, directed=False)
    components: npt.NDArray[np.int64] = component.astype(np.int64)[row_of]
    return components
