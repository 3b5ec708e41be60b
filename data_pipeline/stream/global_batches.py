"""Which rows form global batch number n: arithmetic over an order, the same for every process (contract C6)."""

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UserError
from data_pipeline.stream.sampling import Order

# Orders are computed for this many positions at a time: numpy's cost per call then vanishes.
_ORDER_BLOCK = 4096


class GlobalBatches:
    """An order, epoch after epoch, cut into global batches of `size`."""

    def __init__(self, order: Order, size: int, keep_tail: bool) -> None:
        """`keep_tail`: whether what is left of an epoch becomes a smaller batch (scoring) or is dropped (training)."""
        self.epoch_size = order.epoch_size
        self.size = size
        whole, tail = divmod(order.epoch_size, size)
        self.per_epoch = whole + 1 if keep_tail and tail else whole
        self._keep_tail = keep_tail
        self._order = order
        self._kept_block: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def rows(self, batch: int) -> npt.NDArray[np.int64]:
        """Rows of the sample table that form a global batch, counted from the start of training: int64 [n]."""
        epoch, number = divmod(batch, self.per_epoch)
        start = number * self.size
        stop = min(start + self.size, self.epoch_size)
        pieces = [self._block(epoch, start // _ORDER_BLOCK)]
        first = start // _ORDER_BLOCK * _ORDER_BLOCK
        while first + sum(map(len, pieces)) < stop:
            pieces.append(self._block(epoch, start // _ORDER_BLOCK + len(pieces)))
        return np.concatenate(pieces)[start - first : stop - first]

    def count_parts(self, world_size: int, micro_batch: int | None) -> int:
        """How many micro-batches each process makes of its slice: the same number on every process.

        UserError when an epoch holds no batch, or a batch not an image for each micro-batch; not for
        scoring, whose parts may be empty.
        """
        if self._keep_tail:
            return -(-self.size // (world_size * (micro_batch or self.size)))
        if self.size > self.epoch_size:
            raise UserError(
                f"train.global_batch={self.size} is more than the {self.epoch_size} "
                "training images: lower it or add images"
            )
        smallest, largest = self.size // world_size, -(-self.size // world_size)
        parts = -(-largest // (micro_batch or largest))
        if parts > smallest:
            raise UserError(
                f"train.global_batch={self.size} over {world_size} processes cannot be cut into {parts} "
                f"micro-batches with an image in each: raise train.global_batch or train.micro_batch"
            )
        return parts

    def _block(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """The order at positions [number, number + 1) * _ORDER_BLOCK of an epoch; the last one is kept."""
        tag = epoch * (self.epoch_size // _ORDER_BLOCK + 1) + number
        if self._kept_block[0] != tag:
            first = number * _ORDER_BLOCK
            positions = np.arange(first, min(first + _ORDER_BLOCK, self.epoch_size))
            self._kept_block = (tag, self._order.rows(epoch, positions))
        return self._kept_block[1]
