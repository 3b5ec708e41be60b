"""Raw image files through the same encoding and the same graph as a data set's images, for prediction."""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from data_pipeline.errors import UnreadableImage
from data_pipeline.ingest.scan import no_file
from data_pipeline.shards.writer import ShardSettings, encode_image
from data_pipeline.stream.config import StreamConfig, check_crop
from data_pipeline.stream.pipeline import GraphConfig, GraphInputs, build_graph
from data_pipeline.stream.stream import MicroBatch, Topology


class FileStream:
    """Batches of raw files, in order; files that are no images are left out and named in `unreadable`.

    Every image goes through the codec of the data set that the classifier was trained on, so that
    it sees the same kind of pixels as in training.
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
        """`crop`: the share of each image's sides that is kept, in the middle; what the files' domain has in data.crop.

        ValueError for a crop outside (0, 1].
        """
        check_crop("crop", crop)
        self.unreadable: dict[Path, str] = {}
        self._paths = paths
        self._storage = storage
        self._topology = topology
        self._crop = crop
        self._graph = GraphConfig(
            image_size=config.image_size,
            batch_size=batch,
            threads=config.threads,
            prefetch=config.prefetch,
            deterministic=config.deterministic,
            crop=crop != 1,
        )

    def read(self) -> Iterator[MicroBatch]:
        """Micro-batches whose rows and positions are indices into the given paths; labels are -1."""
        rows_handed_over: deque[list[int]] = deque()
        readable = self._encoded()

        def source() -> GraphInputs:
            rows, encoded = [], []
            for row, data in readable:
                rows.append(row)
                encoded.append(np.frombuffer(data, np.uint8))
                if len(rows) == self._graph.batch_size:
                    break
            if not rows:
                raise StopIteration
            rows_handed_over.append(rows)
            return GraphInputs(encoded, crop=np.full(len(rows), self._crop, np.float32))

        pipeline = build_graph(self._graph, source, self._topology.gpu)
        number = 0
        while True:
            try:
                (output,) = pipeline.run()
            except StopIteration:
                return
            images = from_dlpack(output.as_tensor())
            rows = np.asarray(rows_handed_over.popleft(), dtype=np.int64)
            labels = torch.full((len(rows),), -1, device=images.device)
            yield MicroBatch(images, labels, rows, rows, number, parts=1)
            number += 1

    def _encoded(self) -> Iterator[tuple[int, bytes]]:
        for row, path in enumerate(self._paths):
            try:
                if problem := no_file(path):
                    raise UnreadableImage(problem)
                encoded = encode_image(
                    path.read_bytes(), self._storage.codec, self._storage.stored_size, self._storage.quality
                )
            except OSError as error:
                self.unreadable[path] = f"cannot be read ({error.strerror})"
            except UnreadableImage as error:
                self.unreadable[path] = str(error)
            else:
                yield row, encoded
