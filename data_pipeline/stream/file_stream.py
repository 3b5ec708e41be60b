"""Raw image files through the same codec and the same graph as a data set's images, for prediction."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.regions import file_of, region_of
from data_pipeline.ingest.scan import no_file
from data_pipeline.shards.writer import ShardSettings, encode_image
from data_pipeline.stream.config import StreamConfig, check_crop
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, run_graph
from data_pipeline.stream.stream import MicroBatch, Topology


class FileStream:
    """Batches of raw files, or regions of them (`split_region`), in order.

    Files that are no images are left out and named in `unreadable`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        storage: ShardSettings,
        config: StreamConfig,
        batch: int,
        topology: Topology,
        crop: float = 1.0,
    ) -> None:
        """`storage`: the codec of the classifier's training images, so that it sees the same kind of pixels.

        `crop`: fraction of each side that is kept, in the middle; as data.crop for the files' domain. ValueError
        for a crop outside (0, 1].
        """
        check_crop("crop", crop)
        self.unreadable: dict[Path, str] = {}
        self._paths = paths
        self._storage = storage
        self._topology = topology
        self._crop = crop
        self._graph = GraphConfig(config, batch, crop=crop != 1)

    def read(self) -> Iterator[MicroBatch]:
        """Micro-batches whose rows and positions are indices into the paths; labels are -1."""
        for number, (read, images) in enumerate(run_graph(self._graph, self._batches(), self._topology.gpu)):
            rows = np.asarray(read, np.int64)
            labels = torch.full((len(rows),), -1, device=images.device)
            yield MicroBatch(images, labels, rows, rows, number, parts=1)

    def _batches(self) -> Iterator[tuple[list[int], GraphInputs]]:
        readable = self._encoded()
        while batch := list(zip(range(self._graph.batch_size), readable, strict=False)):
            rows = [row for _, (row, _) in batch]
            encoded = [np.frombuffer(data, np.uint8) for _, (_, data) in batch]
            yield rows, GraphInputs(encoded, crop=np.full(len(rows), self._crop, np.float32))

    def _encoded(self) -> Iterator[tuple[int, bytes]]:
        for row, path in enumerate(self._paths):
            try:
                if problem := no_file(path):
                    raise UnreadableImage(problem)
                raw, storage = file_of(path).read_bytes(), self._storage
                encoded = encode_image(raw, storage.codec, storage.stored_size, storage.quality, region_of(path))
            except OSError as error:
                self.unreadable[path] = f"cannot be read ({error.strerror})"
            except UnreadableImage as error:
                self.unreadable[path] = str(error)
            else:
                yield row, encoded
