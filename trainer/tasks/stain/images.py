"""Images of chosen samples, read as a stain run reads them."""

from collections.abc import Iterator, Sequence

import torch

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology


def read_images(
    dataset: Dataset, ids: Sequence[str], config: StreamConfig, batch: int, device: torch.device
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Batches of ids and images float32 [n, 3, S, S] in [-1, 1], ordered by id; unlabelled images too.

    Every rank reads all of them.
    """
    stream = Stream(
        dataset,
        config,
        splits=None,
        cell_types=("", *CELL_TYPES),
        ids=ids,
        global_batch=batch,
        training=False,
        topology=Topology(device=device),
    )
    for part in stream.read():
        yield stream.samples["id"].iloc[part.rows].tolist(), part.images
