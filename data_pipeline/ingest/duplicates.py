"""Near duplicates: images whose perceptual hashes differ in few bits, found without comparing all pairs."""

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

_ROWS_AT_ONCE = 65_536
# From here on, sorting by more keys is faster than comparing all rows that share one of few.
_MANY_ROWS = 500_000
_MANY_PAIRS = 50_000_000_000
_PAIRS_AT_ONCE = 1_000_000

# Of 256 bits, for pictures that may be mirrored or turned: 16 bits for resizing, saving and contrast, and the error of
# a turned hash, which is computed from bits alone (mean 5). Of 400 turned, resized and saved copies in the two public
# sets the furthest differs in 20 bits; of 3.7 million pairs of different cells under all eight symmetries the nearest
# differs in 68.
SAME_PICTURE_BITS = 24


def near_pairs(
    hashes: npt.NDArray[np.uint8], max_distance: int, agreeing: int | None = None
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield all pairs of rows within a Hamming distance, as two arrays of row numbers; some pairs several times.

    hashes: uint8 [n, bytes]. Exact: the bits are dealt to max_distance + agreeing bands, so that two rows within the
    distance are equal in at least `agreeing` bands (pigeonhole); only such rows are compared. None: the faster number.
    """
    if agreeing is None:
        agreeing = 1 if len(hashes) < _MANY_ROWS else 2
    bands, bits = max_distance + agreeing, hashes.shape[1] * 8
    if agreeing * -(-bits // bands) > 64:
        raise ValueError(f"{agreeing} of {bands} bands of {bits} bits are more than 64 bits")
    for chosen in combinations(range(bands), agreeing):
        # A band takes every bands-th bit, as neighbouring bits are correlated.
        keys = _band_keys(hashes, [bit for band in chosen for bit in range(band, bits, bands)])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        # left: positions whose neighbour `step` further on has the same key.
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
    """The chosen bits, at most 64, as one integer per row."""
    keys = np.zeros((len(hashes), 8), np.uint8)
    for start in range(0, len(hashes), _ROWS_AT_ONCE):
        packed = np.packbits(np.unpackbits(hashes[start : start + _ROWS_AT_ONCE], axis=1)[:, bits], axis=1)
        keys[start : start + _ROWS_AT_ONCE, : packed.shape[1]] = packed
    return keys.view(np.uint64).ravel()


def near_components(hashes: npt.NDArray[np.uint8], max_distance: int) -> npt.NDArray[np.int64]:
    """Component number of every row, int64 [n]: equal for rows joined by a chain of near pairs.

    hashes: uint8 [n, bytes], bytes a multiple of 8.
    """
    # Here: a training need not wait for SciPy.
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(hashes):
        return np.empty(0, np.int64)
    # Equal rows become one: a thousand blank images would make half a million pairs.
    words = np.ascontiguousarray(hashes).view(np.uint64)
    order = np.lexsort(words.T)
    first = np.zeros(len(hashes), bool)
    for place in range(words.shape[1]):  # one word of each at a time takes less memory
        word = words[:, place][order]
        first |= np.append(True, word[1:] != word[:-1])
    distinct = hashes[order[first]]
    row_of = np.empty(len(hashes), np.int64)
    row_of[order] = np.cumsum(first) - 1
    del order, first, word
    pairs = list(near_pairs(distinct, max_distance))
    one = np.concatenate([pair[0] for pair in pairs]) if pairs else np.empty(0, np.int64)
    other = np.concatenate([pair[1] for pair in pairs]) if pairs else np.empty(0, np.int64)
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(distinct), len(distinct)))
    _, component = connected_components(graph, directed=False)
    components: npt.NDArray[np.int64] = component.astype(np.int64)[row_of]
    return components


def nearest_learned(
    hashes: npt.NDArray[np.uint8], known: npt.NDArray[np.uint8], max_distance: int = SAME_PICTURE_BITS
) -> npt.NDArray[np.int64]:
    """For each hash the row of a known hash of the same picture, mirrored and turned ones too; int64 [n], -1 for none.

    Both uint8 [n, 32], perceptual hashes. The hash of a mirrored or quarter-turned picture follows from the original's
    bits: in a cosine transform odd frequencies change sign, or rows and columns are swapped.
    """
    found = np.full(len(hashes), -1, np.int64)
    if not len(hashes) or not len(known):
        return found
    # Equal rows become one.
    here, place = np.unique(hashes, axis=0, return_inverse=True)
    there, first = np.unique(known, axis=0, return_index=True)
    few, many = sorted((here, there), key=len)
    turned = _turned(few)
    nearest = np.full(len(here), -1, np.int64)
    for one, other in _near_pairs_between(turned, many, max_distance):
        one %= len(few)
        if few is here:
            nearest[one] = other
        else:
            nearest[other] = one
    return np.where(nearest >= 0, first[nearest], -1)[place.ravel()]


def same_pictures(hashes: npt.NDArray[np.uint8], max_distance: int = SAME_PICTURE_BITS) -> list[tuple[int, int]]:
    """Rows (earlier, later) of hashes, uint8 [n, 32], of one picture, mirrored and turned ones too.

    Of many copies each later one is named once, with the first that it is near to.
    """
    first: dict[int, int] = {}
    for one, other in _near_pairs_between(_turned(hashes), hashes, max_distance) if len(hashes) else ():
        for pair in zip(one % len(hashes), other, strict=True):
            earlier, later = int(min(pair)), int(max(pair))
            if earlier < later:
                first[later] = min(earlier, first.get(later, earlier))
    return [(earlier, later) for later, earlier in sorted(first.items())]


def _turned(hashes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Hashes, uint8 [8 n, 32], of the mirrored and turned versions of n pictures, each right within a few bits."""
    side = int((hashes.shape[1] * 8) ** 0.5)
    bits = np.unpackbits(hashes, axis=1).reshape(-1, side, side)
    odd = np.arange(side, dtype=np.uint8) % 2
    turns = [
        plane ^ (odd * across)[None, None, :] ^ (odd * down)[None, :, None]
        for plane in (bits, bits.transpose(0, 2, 1))
        for across in (0, 1)
        for down in (0, 1)
    ]
    return np.packbits(np.concatenate(turns).reshape(-1, side * side), axis=1)


def _near_pairs_between(
    few: npt.NDArray[np.uint8], many: npt.NDArray[np.uint8], max_distance: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """All pairs (row of few, row of many) within a Hamming distance, some several times; by bands, as `near_pairs`."""
    agreeing = 1 if len(few) * len(many) < _MANY_PAIRS else 2
    bands, bits = max_distance + agreeing, few.shape[1] * 8
    width = 8 * -(-bits // (8 * bands))  # of a band's key, whole bytes
    keys_of = [[_band_keys(hashes, list(range(band, bits, bands))) for band in range(bands)] for hashes in (few, many)]
    first = [np.ascontiguousarray(hashes[:, :8]).view(np.uint64).ravel() for hashes in (few, many)]
    for chosen in combinations(range(bands), agreeing):
        sought, keys = (_joined_keys([of[band] for band in chosen], width) for of in keys_of)
        order = np.argsort(keys, kind="stable")
        start = np.searchsorted(keys[order], sought)
        count = np.searchsorted(keys[order], sought, side="right") - start
        parts = np.arange(_PAIRS_AT_ONCE, int(count.sum()), _PAIRS_AT_ONCE)
        for rows in np.split(np.arange(len(few)), np.searchsorted(count.cumsum(), parts)):
            one = np.repeat(rows, count[rows])
            within = np.arange(len(one)) - np.repeat(count[rows].cumsum() - count[rows], count[rows])
            other = order[np.repeat(start[rows], count[rows]) + within]
            # The first 64 bits rule out most pairs.
            close = np.bitwise_count(first[0][one] ^ first[1][other]) <= max_distance
            one, other = one[close], other[close]
            close = np.bitwise_count(few[one] ^ many[other]).sum(axis=1, dtype=np.int64) <= max_distance
            if close.any():
                yield one[close], other[close]


def _joined_keys(keys: list[npt.NDArray[np.uint64]], width: int) -> npt.NDArray[np.uint64]:
    """Keys of `width` bits each, concatenated."""
    joined = keys[0]
    for place, key in enumerate(keys[1:], 1):
        joined = joined | key << np.uint64(width * place)
    return joined
