"""The stream of batches that the trainer iterates: a pure function of (data set, seed, position).

Its only state is the number of the next global batch. A rank reads its slice of every global batch
from memory-mapped shards and gives the bytes, with each sample's augmentation parameters, to the DALI graph.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.device import to_device
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.ids import to_hex
from data_pipeline.ingest.split_check import way_out
from data_pipeline.shards.reader import ShardBytes
from data_pipeline.stream.augment import draw_parameters
from data_pipeline.stream.augmentations import Augmentation
from data_pipeline.stream.config import StreamConfig, default_order
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, run_graph
from data_pipeline.stream.read_ahead import ReadAhead
from data_pipeline.stream.sampling import (
    ClassBalancedOrder,
    DomainBalancedOrder,
    GeneratedUse,
    GlobalBatches,
    Order,
    OrderAmong,
    ReplacingOrder,
    Rows,
    SequentialOrder,
    UniformOrder,
    WindowedOrder,
    rank_slice,
)
from data_pipeline.stream.selection import Selection, select

_COLUMNS = [
    *("id", "domain", "cell_type", "group", "source", "path", "origin", "parent"),
    *("shard", "offset", "size", "crc32"),
]


@dataclass(frozen=True)
class Topology:
    """This process's rank, the world size, and the device for its batches."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def gpu(self) -> int | None:
        """The GPU's index, or None on the CPU (where the device may have an index too)."""
        return self.device.index if self.device.type == "cuda" else None


@dataclass(frozen=True)
class MicroBatch:
    """A part of one rank's slice of one global batch."""

    images: torch.Tensor  # float32 [n, 3, S, S] in [-1, 1], on the device
    labels: torch.Tensor  # int64 [n], indices into the stream's cell types, on the device
    rows: Rows  # [n], rows of the stream's sample table
    positions: Rows  # [n], batch * global_batch + index; the key of everything random about an image
    batch: int  # number of the global batch, counted from the start of training
    parts: int  # micro-batches in this rank's slice
    generated: npt.NDArray[np.bool_] | None = None  # [n], which are generated images; None: all are real


class Stream:
    """Batches of one split of a data set, the same for every topology."""

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
        generated: GeneratedUse = GeneratedUse(),
        operations: Sequence[Augmentation] = (),
        pad: bool = False,
    ) -> None:
        """A stream over the images of `cell_types` in `splits` and `folds`, restricted to `ids`; None takes all.

        training: True draws in random order, augments, and drops an epoch's tail shorter than a global batch;
        endless. False shows each image exactly once. micro_batch: most images at a time; None: the whole slice.
        epoch_size: draws in a class-balanced epoch, in place of the number of images. Two streams of one domain each
        with equal cell types, seed and epoch_size show the same cell type at the same position. Other orders ignore it.
        make_order: from the label of each row to its order, in place of config's.
        generated: of training; not with make_order.
        operations: change the images in place of config's where training is False.
        pad: images that are not square are padded, not squeezed.
        UserError when no image is selected, the batch does not fit, data.crop names a domain that is not in the data
        set, or, with epoch_size, a cell type has no image.
        """
        self.config = dataclasses.replace(config, order=config.order or default_order(config, dataset.in_store))
        self.cell_types = tuple(cell_types)
        self.training = training
        self.global_batch = global_batch
        self._seed = seed
        self._topology = topology
        self._dataset = dataset
        self._pad = pad
        self._operations = config.augment.operations if training else tuple(operations)
        self._place = "/".join(splits or SPLITS) + (f", folds {', '.join(map(str, folds))}" if folds else "")
        self._splits, self._folds = splits, folds
        self._selection = self._select(ids)
        self.labels: Rows = self._selection.labels
        self._is_generated = self._selection.generated
        order = self._make_order(epoch_size, generated) if make_order is None else make_order(self.labels)
        self._batches = GlobalBatches(order, global_batch, keep_tail=not training)
        self._real_from = None
        if training and generated.real_from is not None and self._is_generated.any():
            self._real_from = generated.real_from(self._batches.per_epoch)
            self._real_batches = GlobalBatches(self._real_order(epoch_size), global_batch, keep_tail=False)
            self._real_batches.count_parts(topology.world_size, micro_batch)
        self._crop = self._crop_of_rows()
        self.parts = self._batches.count_parts(topology.world_size, micro_batch)
        self._source = ShardBytes(dataset, self._selection.places)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The sample table, read when it is first asked for; a training does not need its texts."""
        rows = self._dataset.samples(self._splits, self.config.domains, self.cell_types, _COLUMNS, self._folds)
        if len(rows) == len(self._selection):
            return rows
        chosen = rows["id"].isin(to_hex(self._selection.places.ids).to_pylist())
        return rows[chosen].reset_index(drop=True)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in one epoch."""
        return self._batches.per_epoch

    def rows(self, batch: int) -> Rows:
        """Rows of the sample table in global batch number `batch`, over all ranks."""
        if self._real_from is not None and batch >= self._real_from:
            return self._real_batches.rows(batch)
        return self._batches.rows(batch)

    def ids(self, batch: int) -> list[str]:
        """Ids of the samples in global batch number `batch`, over all ranks."""
        found: list[str] = to_hex(self._selection.places.ids[self.rows(batch)]).to_pylist()
        return found

    def parts_of(self, batch: int) -> list[tuple[Rows, Rows]]:
        """This rank's micro-batches of a global batch: (rows, positions)."""
        rows = self.rows(batch)
        positions = batch * self.global_batch + np.arange(len(rows))
        mine = self._slice_of(rows)
        cuts = [rank_slice(mine.stop - mine.start, part, self.parts) for part in range(self.parts)]
        return [(rows[mine][cut], positions[mine][cut]) for cut in cuts if cut.stop > cut.start]

    def read(self, first_batch: int = 0) -> Iterator[MicroBatch]:
        """This rank's micro-batches from global batch `first_batch` on; endless in training.

        Shards in an object store are fetched ahead. UserError when a shard's bytes are not those of the catalogue.
        """
        ahead = self._read_ahead(first_batch) if self._dataset.in_store else None
        try:
            inputs = self._inputs(first_batch, ahead)
            for (batch, rows, positions), images in run_graph(self.graph_config(), inputs, self._topology.gpu):
                labels = to_device(self.labels[rows], images.device)
                yield MicroBatch(images, labels, rows, positions, batch, self.parts, self._is_generated[rows])
        finally:
            if ahead is not None:
                ahead.close()
                self._source.close()  # a file that the cache removes takes space as long as it is mapped

    def graph_config(self) -> GraphConfig:
        """The graph that this stream runs."""
        slice_size = -(-self.global_batch // self._topology.world_size)
        return GraphConfig(
            self.config,
            -(-slice_size // self.parts),
            self._operations,
            crop=bool((self._crop != 1).any()),
            pad=self._pad,
        )

    def _inputs(
        self, first_batch: int, ahead: ReadAhead | None
    ) -> Iterator[tuple[tuple[int, Rows, Rows], GraphInputs]]:
        """(batch, rows, positions) of each micro-batch, and what the graph makes its images of."""
        endless = itertools.count(first_batch)
        for batch in endless if self.training else range(first_batch, self.batches_per_epoch):
            if ahead is not None:
                ahead.advance(batch)
            for rows, positions in self.parts_of(batch):
                encoded = self._source.read(rows)
                parameters = draw_parameters(self._operations, self._seed, positions, self.config.image_size)
                yield (batch, rows, positions), GraphInputs(encoded, parameters, self._crop[rows])

    def _read_ahead(self, first_batch: int) -> ReadAhead:
        """Fetches one window ahead: a windowed order reads the next window from other shards."""

        def shards_of(batch: int) -> list[str]:
            rows = self.rows(batch)
            return self._source.shards_in_store(rows[self._slice_of(rows)])

        end = None if self.training else self.batches_per_epoch
        depth = -(-self.config.window // self.global_batch)
        return ReadAhead(self._dataset, shards_of, first_batch, end, depth)

    def _slice_of(self, rows: Rows) -> slice:
        return rank_slice(len(rows), self._topology.rank, self._topology.world_size)

    def _select(self, ids: Sequence[str] | None) -> Selection:
        """The samples. UserError when there is none."""
        domains, splits, dataset = self.config.domains, self._splits, self._dataset
        found = select(dataset, self.cell_types, splits=splits, domains=domains, folds=self._folds, ids=ids)
        if not len(found):
            remedy = way_out(dataset, splits or SPLITS) or "see its counts in build_report.json"
            raise UserError(
                f"no image in {dataset.root} for split {self._place}, "
                f"domains {domains or 'all'}, cell types {', '.join(self.cell_types) or 'none'}: {remedy}"
            )
        return found

    def _make_order(self, epoch_size: int | None, generated: GeneratedUse) -> Order:
        if not self.training:
            return SequentialOrder(len(self._selection))
        if generated.replace is None or not self._is_generated.any():
            return self._order_among(np.arange(len(self._selection)), epoch_size)
        if self.config.order == "windowed":
            raise UserError(
                "train.synthetic.replace draws generated images from all shards at once and needs data.order=global"
            )
        kinds = self.labels * len(self._selection.domain_names) + self._selection.domains
        made = np.flatnonzero(self._is_generated)
        return ReplacingOrder(self._real_order(epoch_size), kinds, made, generated.replace, self._seed)

    def _real_order(self, epoch_size: int | None) -> Order:
        """The order of real images alone. UserError where a type has none."""
        rows = np.flatnonzero(~self._is_generated)
        if missing := sorted(set(self.labels) - set(self.labels[rows])):
            names = ", ".join(self.cell_types[number] for number in missing)
            raise UserError(
                f"{self._dataset.root}: no real training image of {names}, and train.synthetic.until and replace show "
                "real images of each type: leave it out of data.cell_types, or these settings at their defaults"
            )
        return self._order_among(rows, epoch_size)

    def _order_among(self, rows: Rows, epoch_size: int | None) -> Order:
        """The configuration's order over these rows of the table."""
        if self.config.sampling != "uniform" and self.config.order == "windowed":
            raise UserError(
                f"data.sampling={self.config.sampling} draws from all shards at once and needs data.order=global"
            )
        order: Order
        if self.config.sampling == "domain_balanced":
            domains = self._selection.domains[rows]
            order = DomainBalancedOrder(self.labels[rows], domains, self._seed, self.config.most_repeats)
        elif self.config.sampling == "class_balanced":
            if epoch_size is not None:
                self._require_every_type()
                # Whole batches: no draw is dropped with a tail, so a type's images stay even over epochs too.
                epoch_size = epoch_size - epoch_size % self.global_batch or epoch_size
            order = ClassBalancedOrder(self.labels[rows], self._seed, epoch_size)
        elif self.config.order == "windowed":
            order = WindowedOrder(self._selection.places.shards[rows], self._seed, self.config.window)
        else:
            order = UniformOrder(len(rows), self._seed)
        return order if len(rows) == len(self._selection) else OrderAmong(order, rows)

    def _require_every_type(self) -> None:
        """A missing type would shift the types at all positions against the other stream's."""
        missing = [name for number, name in enumerate(self.cell_types) if number not in self.labels]
        if missing:
            domains = "/".join(self.config.domains or ["any domain"])
            raise UserError(
                f"{self._dataset.root}: no image of {', '.join(missing)} in {domains}, split {self._place}: domains "
                "are matched by types that both have; leave it out of data.cell_types, or add images"
            )

    def _crop_of_rows(self) -> npt.NDArray[np.float32]:
        """The fraction of its sides that each row's image keeps: float32 [rows]."""
        crop, found = self.config.crop, self._selection
        refuse_unknown_domains(sorted(crop), found.domain_names if crop else (), f"data.crop and {self._dataset.root}")
        shares = np.array([crop.get(name, 1.0) for name in found.domain_names], np.float32)[found.domains]
        return np.where(found.generated, np.float32(1), shares)
