"""The stream of batches that the trainer iterates: a pure function of (data set, seed, position).

Its whole state is the number of the next global batch (contract C6). A process reads its
slice of every global batch from memory-mapped shards and hands the bytes, together with
the augmentation parameters of each sample, to the DALI graph.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.dlpack import from_dlpack

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.device import to_device
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.ingest.split_check import way_out
from data_pipeline.shards.reader import ShardBytes
from data_pipeline.stream.augment import draw_parameters
from data_pipeline.stream.config import StreamConfig, default_order
from data_pipeline.stream.global_batches import GlobalBatches
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, build_graph
from data_pipeline.stream.read_ahead import ReadAhead
from data_pipeline.stream.sampling import (
    ClassBalancedOrder,
    Order,
    SequentialOrder,
    UniformOrder,
    WindowedOrder,
    rank_slice,
)


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
    positions: int64 [n], where the images stand in the order of all global batches, all processes
    together: batch * global_batch + index. What is random about an image is keyed by it.
    batch: number of the global batch, counted from the start of training. parts: how many
    micro-batches make this process's slice.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    batch: int
    parts: int


class Stream:
    """Batches of one split of a data set, the same whatever the topology."""

    def __init__(
        self,
        dataset: Dataset,
        config: StreamConfig,
        *,
        splits: Sequence[str] | None,
        cell_types: Sequence[str],
        folds: Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
        global_batch: int,
        micro_batch: int | None = None,
        seed: int = 0,
        training: bool,
        topology: Topology = Topology(),
        epoch_size: int | None = None,
        make_order: Callable[[npt.ArrayLike], Order] | None = None,
    ) -> None:
        """A stream over the images of `cell_types` in `splits` and `folds`, of `ids` alone where given; None takes all.

        training=True draws them in random order with augmentation, epoch after epoch, and drops
        each epoch's tail shorter than a global batch; training=False shows each exactly once.
        `micro_batch`: most images handed over at a time; null hands over the whole slice.
        `epoch_size`: draws of a class-balanced epoch in place of the number of images. Two streams,
        of one domain each, with the same cell types, seed and epoch_size show the same cell type at
        the same position: they are matched. Other orders leave it aside.
        `make_order`: from the label of each row to the order they are drawn in, in place of config's.
        Raises UserError when nothing is selected, the batch does not fit, data.crop names a domain
        that is not in the data set, or a type that is to be matched has no image.
        """
        self.config = dataclasses.replace(config, order=config.order or default_order(config, dataset.in_store))
        self.cell_types = tuple(cell_types)
        self.training = training
        self._operations = config.augment.operations if training else ()
        self.global_batch = global_batch
        self._seed = seed
        self._topology = topology
        self._dataset = dataset
        self._place = "/".join(splits or SPLITS) + (f", folds {', '.join(map(str, folds))}" if folds else "")
        self.samples = dataset.samples(
            splits=splits,
            domains=config.domains,
            cell_types=list(cell_types),
            folds=folds,
            columns=[
                *("id", "domain", "cell_type", "group", "source", "path", "origin", "parent"),
                *("shard", "offset", "size", "crc32"),
            ],
        )
        if ids is not None:
            self.samples = self.samples[self.samples["id"].isin(list(ids))].reset_index(drop=True)
        if len(self.samples) == 0:
            remedy = way_out(dataset, splits or SPLITS) or "see its counts in build_report.json"
            raise UserError(
                f"no image in {dataset.root} for split {self._place}, "
                f"domains {config.domains or 'all'}, cell types {', '.join(cell_types) or 'none'}: {remedy}"
            )
        numbers = {name: number for number, name in enumerate(cell_types)}
        self.labels = self.samples["cell_type"].map(numbers).to_numpy(np.int64)
        self._order = self._make_order(epoch_size) if make_order is None else make_order(self.labels)
        self._batches = GlobalBatches(self._order, global_batch, keep_tail=not training)
        self._crop = self._crop_of_rows()
        self.parts = self._batches.count_parts(topology.world_size, micro_batch)
        self._source = ShardBytes(dataset, self.samples)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return self._batches.per_epoch

    def rows(self, batch: int) -> npt.NDArray[np.int64]:
        """Rows of the sample table that form global batch number `batch`, all processes together."""
        return self._batches.rows(batch)

    def ids(self, batch: int) -> list[str]:
        """Ids of the samples of global batch number `batch`, all processes together."""
        return self.samples["id"].iloc[self.rows(batch)].tolist()

    def read(self, first_batch: int = 0) -> Iterator[MicroBatch]:
        """Micro-batches of this process from global batch `first_batch` on; endless in training.

        Shards in a store are fetched before they are needed. Raises UserError when a shard's bytes are not those
        that were catalogued.
        """
        ahead = self._read_ahead(first_batch) if self._dataset.in_store else None
        read = _Reading(self, first_batch, ahead)
        try:
            pipeline = build_graph(self._graph_config(), read.next_inputs, self._topology.gpu)
            # Images come in the order of torch's own work: the host does not wait for them.
            on_gpu = self._topology.gpu is not None
            compute_stream = torch.cuda.current_stream(self._topology.device) if on_gpu else None
            while True:
                try:
                    (output,) = pipeline.run(compute_stream)
                except StopIteration:
                    return
                batch, rows, positions = read.handed_over.popleft()
                images = from_dlpack(output.as_tensor())
                labels = to_device(self.labels[rows], images.device)
                yield MicroBatch(images, labels, rows, positions, batch, self.parts)
        finally:
            if ahead is not None:
                ahead.close()
                self._source.close()  # what the cache removes meanwhile takes room as long as it is mapped

    def _read_ahead(self, first_batch: int) -> ReadAhead:
        """Of the next window, which a windowed order reads from other shards than this one."""
        batches = GlobalBatches(self._order, self.global_batch, keep_tail=not self.training)  # the threads' own

        def shards_of(batch: int) -> list[str]:
            rows = batches.rows(batch)
            return self._source.shards_in_store(rows[self._slice_of(rows)])

        end = None if self.training else self.batches_per_epoch
        depth = -(-self.config.window // self.global_batch)
        return ReadAhead(self._dataset, shards_of, first_batch, end, depth)

    def parts_of(self, batch: int) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """This process's micro-batches of a global batch: (rows, positions in the global order)."""
        rows = self.rows(batch)
        positions = batch * self.global_batch + np.arange(len(rows))
        mine = self._slice_of(rows)
        cuts = [rank_slice(mine.stop - mine.start, part, self.parts) for part in range(self.parts)]
        return [(rows[mine][cut], positions[mine][cut]) for cut in cuts if cut.stop > cut.start]

    def _slice_of(self, rows: npt.NDArray[np.int64]) -> slice:
        return rank_slice(len(rows), self._topology.rank, self._topology.world_size)

    def _make_order(self, epoch_size: int | None) -> Order:
        count = len(self.samples)
        if not self.training:
            return SequentialOrder(count)
        if self.config.sampling == "class_balanced":
            if self.config.order == "windowed":
                raise UserError(
                    "data.sampling=class_balanced draws from all shards at once and needs data.order=global"
                )
            if epoch_size is not None:
                self._require_every_type()
                # Whole batches: no draw goes with a tail, so a type's images come round evenly over epochs too.
                epoch_size = epoch_size - epoch_size % self.global_batch or epoch_size
            return ClassBalancedOrder(self.labels, self._seed, epoch_size)
        if self.config.order == "windowed":
            return WindowedOrder(self.samples["shard"], self._seed, self.config.window)
        return UniformOrder(count, self._seed)

    def _require_every_type(self) -> None:
        """A type that is missing here would shift the types at every position against the other stream's."""
        missing = [name for number, name in enumerate(self.cell_types) if number not in self.labels]
        if missing:
            domains = "/".join(self.config.domains or ["any domain"])
            raise UserError(
                f"{self._dataset.root}: no image of {', '.join(missing)} in {domains}, split {self._place}: domains "
                "are matched by types that both have; leave it out of data.cell_types, or add images"
            )

    def _crop_of_rows(self) -> npt.NDArray[np.float32]:
        """The share of its sides that each row's image keeps: float32 [rows]."""
        crop = self.config.crop
        here = self._dataset.samples(columns=["domain"])["domain"] if crop else ()
        refuse_unknown_domains(sorted(crop), here, f"data.crop and {self._dataset.root}")
        shares = self.samples["domain"].map(lambda domain: crop.get(domain, 1.0))
        return shares.mask(self.samples["origin"] == "synthetic", 1.0).to_numpy(np.float32)

    def _graph_config(self) -> GraphConfig:
        slice_size = -(-self.global_batch // self._topology.world_size)
        return GraphConfig(
            image_size=self.config.image_size,
            batch_size=-(-slice_size // self.parts),
            threads=self.config.threads,
            prefetch=self.config.prefetch,
            deterministic=self.config.deterministic,
            operations=self._operations,
            crop=bool((self._crop != 1).any()),
        )


class _Reading:
    """One pass over a stream: what DALI asks for, and which rows it was given and not yet gave back."""

    def __init__(self, stream: Stream, first_batch: int, ahead: ReadAhead | None) -> None:
        self.handed_over: deque[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = deque()
        self._stream, self._ahead = stream, ahead
        self._batch = first_batch
        self._pending: deque[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]] = deque()

    def next_inputs(self) -> GraphInputs:
        """Bytes and parameters of the next micro-batch, as the graph's source."""
        stream = self._stream
        while not self._pending:
            if not stream.training and self._batch >= stream.batches_per_epoch:
                raise StopIteration
            if self._ahead is not None:
                self._ahead.advance(self._batch)
            self._pending.extend((self._batch, *part) for part in stream.parts_of(self._batch))
            self._batch += 1
        batch, rows, positions = self._pending.popleft()
        encoded = stream._source.read(rows)
        self.handed_over.append((batch, rows, positions))
        parameters = draw_parameters(stream._operations, stream._seed, positions, stream.config.image_size)
        return GraphInputs(encoded, parameters, stream._crop[rows])
