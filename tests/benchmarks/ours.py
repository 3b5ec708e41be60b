"""This project's stream, and the ceilings it is held against: the same graph fed from memory, and decoding alone."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def, types

from data_pipeline.catalog import SPLITS, Dataset
from data_pipeline.stream.augment import AugmentConfig, draw_parameters
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.pipeline import GraphInputs, build_graph
from data_pipeline.stream.stream import Stream, Topology
from tests.benchmarks.timing import OUR_PREFETCH, Contender, Setting

_SEED = 0

Encoded = list[npt.NDArray[np.uint8]]
Open = Callable[[Setting], Iterator[int]]


def open_stream(
    dataset: Dataset, image_size: int, augment: AugmentConfig, topology: Topology, setting: Setting
) -> Stream:
    """The stream as training reads it, over all images."""
    return Stream(
        dataset,
        StreamConfig(image_size=image_size, threads=setting.workers, prefetch=OUR_PREFETCH, augment=augment),
        splits=SPLITS,
        cell_types=sorted(set(dataset.samples(columns=["cell_type"])["cell_type"])),
        global_batch=setting.batch,
        seed=_SEED,
        training=True,
        topology=topology,
    )


def from_stream(dataset: Dataset, image_size: int, augment: AugmentConfig, topology: Topology) -> Open:
    """A new stream each time, so that the checksum of every image is computed anew."""

    def open_it(setting: Setting) -> Iterator[int]:
        stream = open_stream(dataset, image_size, augment, topology, setting)
        return (len(batch.images) for batch in stream.read())

    return open_it


def from_memory(
    dataset: Dataset, encoded: Encoded, image_size: int, augment: AugmentConfig, topology: Topology
) -> Open:
    """The stream's own graph on bytes and parameters that lie ready in memory: nothing to look up or draw."""
    parameters = draw_parameters(augment.operations, _SEED, np.arange(len(encoded)), image_size)

    def open_graph(setting: Setting) -> Iterator[int]:
        ready = itertools.cycle(
            [
                GraphInputs(
                    [encoded[index] for index in chosen],
                    {name: values[chosen] for name, values in parameters.items()},
                )
                for chosen in _batches(len(encoded), setting.batch)
            ]
        )
        config = open_stream(dataset, image_size, augment, topology, setting).graph_config()
        return _run(build_graph(config, lambda: next(ready), topology.gpu), setting)

    return open_graph


def decode_only(encoded: Encoded, topology: Topology) -> Open:
    """DALI's decoder alone, as the graph uses it."""

    def open_decoder(setting: Setting) -> Iterator[int]:
        ready = itertools.cycle(
            [[encoded[index] for index in chosen] for chosen in _batches(len(encoded), setting.batch)]
        )

        @pipeline_def(
            batch_size=setting.batch,
            num_threads=setting.workers,
            device_id=topology.gpu,
            prefetch_queue_depth=OUR_PREFETCH,
            exec_dynamic=True,
        )
        def graph() -> Any:
            source = fn.external_source(source=lambda: next(ready), batch=True)
            return fn.decoders.image(source, device="cpu" if topology.gpu is None else "mixed", output_type=types.RGB)

        pipeline = graph()
        pipeline.build()
        return _run(pipeline, setting)

    return open_decoder


def own_contenders(
    dataset: Dataset, image_size: int, augmentations: dict[str, AugmentConfig], topology: Topology
) -> list[Contender]:
    """Decoding alone, then for each augmentation the graph fed from memory and the stream."""
    encoded = read_all(dataset)
    contenders = [Contender("decode only", decode_only(encoded, topology))]
    for name, augment in augmentations.items():
        contenders.append(Contender(f"memory, {name}", from_memory(dataset, encoded, image_size, augment, topology)))
        contenders.append(Contender(f"stream, {name}", from_stream(dataset, image_size, augment, topology)))
    return contenders


def read_all(dataset: Dataset) -> Encoded:
    """The stored bytes of every image, in random order."""
    rows = dataset.samples().sample(frac=1.0, random_state=_SEED)
    return [np.frombuffer(dataset.read_encoded(row), np.uint8) for row in rows.itertuples()]


def _batches(count: int, batch: int) -> Sequence[npt.NDArray[np.int64]]:
    """Whole batches of indices; when there are fewer images than a batch, they are repeated."""
    indices = np.resize(np.arange(count), max(count, batch))
    return [indices[first : first + batch] for first in range(0, len(indices) - batch + 1, batch)]


def _run(pipeline: Any, setting: Setting) -> Iterator[int]:
    while True:
        pipeline.run()
        yield setting.batch
