"""If these fail, a network on a GPU sees other images, or other pixels, than one on the CPU."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import MicroBatch, Stream, Topology

pytestmark = pytest.mark.gpu

BATCHES = 5
FLIP = AugmentConfig(rotation=0.0, scale=1.0, shift=0.0)
STAIN = replace(FLIP, dye_amount=0.2, channel_gain=0.2, channel_mixing=0.1, density_offset=0.06)


def batches_of(
    dataset: Dataset, topology: Topology, augment: AugmentConfig, *, threads: int, first: int = 0
) -> Iterator[MicroBatch]:
    config = StreamConfig(image_size=32, threads=threads, deterministic=True, augment=augment)
    stream = Stream(
        dataset,
        config,
        splits=["train"],
        cell_types=["basophil", "eosinophil", "lymphocyte"],
        global_batch=12,
        training=True,
        topology=topology,
    )
    return itertools.islice(stream.read(first), BATCHES)


def read(*arguments: Any, **settings: Any) -> list[MicroBatch]:
    return list(batches_of(*arguments, **settings))


def grey_levels(batches: list[MicroBatch]) -> torch.Tensor:
    return torch.cat([batch.images.cpu() for batch in batches]) * 127.5


@pytest.mark.parametrize(("augment", "mean", "most"), [(FLIP, 0.1, 3.0), (STAIN, 0.1, 6.0)], ids=["flip", "stain"])
def test_the_graph_gives_on_the_device_what_it_gives_on_the_cpu(
    cells: Dataset, topology: Topology, augment: AugmentConfig, mean: float, most: float
) -> None:
    """In grey levels: the mean, and of 99.9 % of values; decoders differ in the last bits."""
    here = read(cells, topology, augment, threads=2)
    there = read(cells, Topology(), augment, threads=1)
    assert all(batch.images.device == topology.device for batch in here)
    difference = (grey_levels(here) - grey_levels(there)).abs().flatten()
    assert difference.mean() < mean
    assert np.quantile(difference.numpy(), 0.999) <= most


def test_the_ids_and_labels_of_a_stream_do_not_depend_on_the_device(cells: Dataset, topology: Topology) -> None:
    """Nor on where it is taken up again, nor on how many processes share a batch."""
    whole = read(cells, topology, FLIP, threads=2)
    for batch, other in zip(whole, read(cells, Topology(), FLIP, threads=1), strict=True):
        np.testing.assert_array_equal(batch.rows, other.rows)
        assert batch.labels.tolist() == other.labels.tolist()
    later = read(cells, topology, FLIP, threads=1, first=2)
    for batch, other in zip(whole[2:], later, strict=False):
        np.testing.assert_array_equal(batch.positions, other.positions)
        assert torch.equal(batch.images, other.images)
    halves = [read(cells, replace(topology, rank=rank, world_size=2), FLIP, threads=1) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(batch.rows, np.concatenate([first.rows, second.rows]))


def test_images_last_while_the_device_is_busy(cells: Dataset, topology: Topology) -> None:
    """What the device is to do with a batch comes late, when later batches were made ready; it finds its own images."""
    side = 4096 if topology.device.type == "cuda" else 64
    weights = torch.eye(side, device=topology.device)

    def sums(busy: int) -> list[float]:
        """Of each batch's images; `busy`: matrix products that come before."""
        nonlocal weights
        found = []
        for batch in batches_of(cells, topology, FLIP, threads=2):
            for _ in range(busy):
                weights = weights @ weights
            found.append(batch.images.double().sum() + 0 * weights[0, 0])
        return [value.item() for value in found]

    assert sums(busy=8) == sums(busy=0)
