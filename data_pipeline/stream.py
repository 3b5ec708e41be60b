"""The stream of batches that the trainer iterates: a pure function of (data set, seed, position).

Its whole state is the number of the next global batch (contract C6). A process reads its
slice of every global batch from memory-mapped shards and hands the bytes, together with
the augmentation parameters of each sample, to the DALI graph.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from data_pipeline.augment import AugmentConfig, draw_parameters
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.pipeline import GraphConfig, GraphInputs, build_graph
from data_pipeline.sampling import (
    ClassBalancedOrder,
    Order,
    SequentialOrder,
    UniformOrder,
    WindowedOrder,
    rank_slice,
)
from data_pipeline.shard_bytes import ShardBytes

# Orders are computed for this many positions at a time: numpy's cost per call then vanishes.
_ORDER_BLOCK = 4096


@dataclass(frozen=True)
class StreamConfig:
    """How images are read and prepared.

    image_size: side in pixels of the square the network sees.
    domains, cell_types: restrict the data set; null takes all.
    order: `global` reads any sample anywhere (local disks); `windowed` reads shards in sequence
    and shuffles `window` samples at a time (network stores).
    sampling: `uniform` shows every image once an epoch; `class_balanced` every type equally often.
    threads: DALI's CPU threads of each process; null takes the process's share of the cores.
    prefetch: batches prepared ahead. deterministic: the same pixels on every run of one GPU kind.
    """

    image_size: int = 224
    domains: list[str] | None = None
    cell_types: list[str] | None = None
    order: Literal["global", "windowed"] = "global"
    window: int = 4096
    sampling: Literal["uniform", "class_balanced"] = "uniform"
    threads: int | None = None
    prefetch: int = 2
    deterministic: bool = False
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        for name in ("image_size", "window", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"data.threads={self.threads}: must be at least 1, or null")

    @property
    def usable_threads(self) -> int:
        """DALI's threads of this process."""
        processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return self.threads or max(1, len(os.sched_getaffinity(0)) // processes_here)


@dataclass(frozen=True)
class Topology:
    """Which of how many processes this is, and where its batches go."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def gpu(self) -> int | None:
        """The GPU's index, or None on the CPU (whose processes carry an index too)."""
        return self.device.index if self.device.type == "cuda" else None


@dataclass(frozen=True)
class MicroBatch:
    """A part of one process's slice of one global batch.

    images: float32 [n, 3, S, S] in [-1, 1] on the device. labels: int64 [n] on the device, index
    into the stream's cell types. rows: int64 [n], rows of the stream's sample table.
    batch: number of the global batch, counted from the start of training. parts: how many
    micro-batches make this process's slice.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: npt.NDArray[np.int64]
    batch: int
    parts: int


class Stream:
    """Batches of one split of a data set, the same whatever the topology."""

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        *,
        splits: Sequence[str],
        cell_types: Sequence[str],
        global_batch: int,
        micro_batch: int | None = None,
        seed: int = 0,
        training: bool,
        topology: Topology = Topology(),
    ) -> None:
        """A stream over the images of `cell_types` in `splits`.

        training=True draws them in random order with augmentation, epoch after epoch, and drops
        each epoch's tail shorter than a global batch; training=False shows each exactly once.
        `micro_batch`: most images handed over at a time; null hands over the whole slice.
        Raises UserError when nothing is selected or the batch does not fit.
        """
        self.config = config
        self.cell_types = tuple(cell_types)
        self.training = training
        self.global_batch = global_batch
        self._seed = seed
        self._topology = topology
        self._dataset = dataset
        self.samples = dataset.samples(
            splits=splits,
            domains=config.domains,
            cell_types=list(cell_types),
            columns=["id", "domain", "cell_type", "group", "source", "path", "shard", "offset", "size", "crc32"],
        )
        if len(self.samples) == 0:
            raise UserError(
                f"no image in {dataset.root} for split {'/'.join(splits)}, "
                f"domains {config.domains or 'all'}, cell types {', '.join(cell_types) or 'none'}: "
                "see its counts in build_report.json"
            )
        numbers = {name: number for number, name in enumerate(cell_types)}
        self.labels = self.samples["cell_type"].map(numbers).to_numpy(np.int64)
        self._order = self._make_order()
        self._order_block: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        self.parts = self._count_parts(micro_batch)
        self._source = ShardBytes(dataset, self.samples)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in one epoch."""
        whole, tail = divmod(self._order.epoch_size, self.global_batch)
        return whole if self.training or tail == 0 else whole + 1

    def rows(self, batch: int) -> npt.NDArray[np.int64]:
        """Rows of the sample table that form global batch number `batch`, all processes together."""
        epoch, number = divmod(batch, self.batches_per_epoch)
        start = number * self.global_batch
        stop = min(start + self.global_batch, self._order.epoch_size)
        pieces = [self._block(epoch, start // _ORDER_BLOCK)]
        first = start // _ORDER_BLOCK * _ORDER_BLOCK
        while first + sum(map(len, pieces)) < stop:
            pieces.append(self._block(epoch, start // _ORDER_BLOCK + len(pieces)))
        return np.concatenate(pieces)[start - first : stop - first]

    def ids(self, batch: int) -> list[str]:
        """Ids of the samples of global batch number `batch`, all processes together."""
        return self.samples["id"].iloc[self.rows(batch)].tolist()

    def read(self, first_batch: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches of this process from global batch `first_batch` on; endless in training.

        Raises UserError when a shard's bytes are not those that were catalogued.
        """
        read = _Reading(self, first_batch)
        pipeline = build_graph(self._graph_config(), read.next_inputs, self._topology.gpu)
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                return
            batch, rows = read.handed_over.popleft()
            images = from_dlpack(output.as_tensor())
            labels = torch.from_numpy(self.labels[rows])
            yield MicroBatch(images, labels.to(images.device, non_blocking=True), rows, batch, self.parts)

    def parts_of(self, batch: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """This process's micro-batches of a global batch: (rows, positions in the global order)."""
        rows = self.rows(batch)
        positions = batch * self.global_batch + np.arange(len(rows))
        mine = rank_slice(len(rows), self._topology.rank, self._topology.world_size)
        cuts = [rank_slice(mine.stop - mine.start, part, self.parts) for part in range(self.parts)]
        return [(rows[mine][cut], positions[mine][cut]) for cut in cuts if cut.stop > cut.start]

    def _make_order(self) -> Order:
        count = len(self.samples)
        if not self.training:
            return SequentialOrder(count)
        if self.config.sampling == "class_balanced":
            if self.config.order == "windowed":
                raise UserError(
                    "data.sampling=class_balanced draws from all shards at once and needs data.order=global"
                )
            return ClassBalancedOrder(self.labels, self._seed)
        if self.config.order == "windowed":
            return WindowedOrder(self.samples["shard"].tolist(), self._seed, self.config.window)
        return UniformOrder(count, self._seed)

    def _count_parts(self, micro_batch: int | None) -> int:
        """How many micro-batches each process makes of its slice: the same number on every process."""
        world = self._topology.world_size
        if not self.training:
            return -(-self.global_batch // (world * (micro_batch or self.global_batch)))
        if self.global_batch > self._order.epoch_size:
            raise UserError(
                f"train.global_batch={self.global_batch} is more than the {self._order.epoch_size} "
                "training images: lower it or add images"
            )
        smallest, largest = self.global_batch // world, -(-self.global_batch // world)
        parts = -(-largest // (micro_batch or largest))
        if parts > smallest:
            raise UserError(
                f"train.global_batch={self.global_batch} over {world} processes cannot be cut into {parts} "
                f"micro-batches with an image in each: raise train.global_batch or train.micro_batch"
            )
        return parts

    def _block(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """The order at positions [number, number + 1) * _ORDER_BLOCK of an epoch; the last one is kept."""
        tag = epoch * (self._order.epoch_size // _ORDER_BLOCK + 1) + number
        if self._order_block[0] != tag:
            first = number * _ORDER_BLOCK
            positions = np.arange(first, min(first + _ORDER_BLOCK, self._order.epoch_size))
            self._order_block = (tag, self._order.rows(epoch, positions))
        return self._order_block[1]

    def _graph_config(self) -> GraphConfig:
        augment = self.config.augment
        slice_size = -(-self.global_batch // self._topology.world_size)
        return GraphConfig(
            image_size=self.config.image_size,
            move_geometry=self.training,
            move_stain=self.training and augment.moves_stain,
            batch_size=-(-slice_size // self.parts),
            threads=self.config.usable_threads,
            prefetch=self.config.prefetch,
            deterministic=self.config.deterministic,
        )


class _Reading:
    """One pass over a stream: what DALI asks for, and which rows it was given and not yet gave back."""

    def __init__(self, stream: Stream, first_batch: int) -> None:
        self.handed_over: deque[tuple[int, npt.NDArray[np.int64]]] = deque()
        self._stream = stream
        self._batch = first_batch
        self._pending: deque[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = deque()

    def next_inputs(self) -> GraphInputs:
        """Bytes and parameters of the next micro-batch, as the graph's source."""
        stream = self._stream
        while not self._pending:
            if not stream.training and self._batch >= stream.batches_per_epoch:
                raise StopIteration
            self._pending.extend((self._batch, *part) for part in stream.parts_of(self._batch))
            self._batch += 1
        batch, rows, positions = self._pending.popleft()
        encoded = stream._source.read(rows)
        self.handed_over.append((batch, rows))
        if not stream.training:
            return GraphInputs(encoded)
        config = stream.config
        return GraphInputs(encoded, draw_parameters(config.augment, stream._seed, positions, config.image_size))
