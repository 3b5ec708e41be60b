"""Keyed random numbers: a function of (seed, purpose, counter) and of nothing else.

There is no state: a sample's numbers do not depend on the process, worker or prefetch slot, or on earlier draws.
"""

import hashlib

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]

# Philox4x32-10: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2.
_PHILOX_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
_PHILOX_ROUNDS = 10
_LOW_32 = np.uint64(0xFFFFFFFF)
_SHIFT_32 = np.uint64(32)
_FEISTEL_ROUNDS = 8  # enough for an even mix of domains of only a few bits


def derive_key(seed: int, *purpose: str | int) -> int:
    """The 64-bit key of a stream of random numbers, from the seed and the purpose."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def philox(key: int, counter: UInt64Array, lane: UInt64Array) -> npt.NDArray[np.uint32]:
    """Four random 32-bit words for each 128-bit counter (counter, lane): uint32 [..., 4]."""
    counter, lane = np.broadcast_arrays(counter, lane)
    words = [counter & _LOW_32, counter >> _SHIFT_32, lane & _LOW_32, lane >> _SHIFT_32]
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(_PHILOX_ROUNDS):
        products = (words[0] * _PHILOX_MULTIPLIERS[0], words[2] * _PHILOX_MULTIPLIERS[1])
        words = [
            (products[1] >> _SHIFT_32) ^ words[1] ^ np.uint64(keys[0]),
            products[1] & _LOW_32,
            (products[0] >> _SHIFT_32) ^ words[3] ^ np.uint64(keys[1]),
            products[0] & _LOW_32,
        ]
        keys = [(part + weyl) & 0xFFFFFFFF for part, weyl in zip(keys, _PHILOX_WEYL, strict=True)]
    return np.stack(words, axis=-1).astype(np.uint32)


def uniform(key: int, positions: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) for each position: float64 [n, count]."""
    counters = np.asarray(positions, dtype=np.uint64).reshape(-1, 1)
    lanes = np.arange((count + 3) // 4, dtype=np.uint64)
    words = philox(key, counters, lanes).reshape(len(counters), -1)[:, :count]
    return words.astype(np.float64) * 2.0**-32


def normal(key: int, positions: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """`count` standard normal numbers for each position (Box-Muller): float64 [n, count]."""
    pairs = (count + 1) // 2
    draws = uniform(key, positions, 2 * pairs)
    radius = np.sqrt(-2.0 * np.log(1.0 - draws[:, :pairs]))
    angle = 2.0 * np.pi * draws[:, pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :count]


def permute(key: int, index: npt.ArrayLike, size: int) -> npt.NDArray[np.int64]:
    """The image of each index under a keyed random permutation of range(size): int64, same shape.

    A Feistel network on the next power of two, repeated until the value is in range (Black and Rogaway 2002): an order
    of any length needs no memory, and every position costs the same.
    """
    bits = max(size - 1, 1).bit_length()
    low_bits = np.uint64(bits - bits // 2)
    low_mask = (np.uint64(1) << low_bits) - np.uint64(1)
    high_mask = (np.uint64(1) << np.uint64(bits // 2)) - np.uint64(1)
    round_keys = [np.uint64(derive_key(key, turn)) for turn in range(_FEISTEL_ROUNDS)]

    def encipher(values: UInt64Array) -> UInt64Array:
        low, high = values & low_mask, values >> low_bits
        for turn, round_key in enumerate(round_keys):
            if turn % 2 == 0:
                high = high ^ (_mix(low ^ round_key) & high_mask)
            else:
                low = low ^ (_mix(high ^ round_key) & low_mask)
        return (high << low_bits) | low

    values = np.array(index, dtype=np.uint64, ndmin=1)
    if values.size and int(values.max()) >= size:
        raise IndexError(f"index {int(values.max())} outside a permutation of {size}")
    values = encipher(values)
    outside = values >= size
    while outside.any():
        values[outside] = encipher(values[outside])
        outside = values >= size
    return values.astype(np.int64).reshape(np.shape(index))


def _mix(values: UInt64Array) -> UInt64Array:
    """The finaliser of SplitMix64 (Steele et al. 2014): every input bit affects every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
