"""The DALI graph: encoded bytes -> decode -> resize -> augmentations -> normalised tensor.

One graph for every device: with a GPU, decoding is `mixed` and the rest runs there; without, the same operators run
on the CPU.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.pipeline import Pipeline, do_not_convert
from torch.utils.dlpack import from_dlpack

from data_pipeline.stream.augment import draw_parameters
from data_pipeline.stream.augmentations import Augmentation, Parameters
from data_pipeline.stream.config import StreamConfig
from data_pipeline.threads import divide, thread_share

_CROP = "crop"
Tag = TypeVar("Tag")


@dataclass(frozen=True)
class GraphConfig:
    """What the graph does to an image."""

    data: StreamConfig  # only image_size, threads, prefetch and deterministic are used
    batch_size: int  # most images of one batch
    operations: tuple[Augmentation, ...] = ()  # active augmentations, in their order
    crop: bool = False  # whether images get a central crop before they are resized
    pad: bool = False  # whether images that are not square get white margins, evenly, before they are resized


@dataclass(frozen=True)
class GraphInputs:
    """One batch for the graph, of at most `batch_size` images."""

    encoded: list[npt.NDArray[np.uint8]]  # uint8 [bytes] of each image
    parameters: Parameters = field(default_factory=dict)  # as of `draw_parameters` for the graph's operations
    crop: npt.NDArray[np.float32] | None = None  # [n], share of each side that is kept, (0, 1]; if the graph crops


def run_graph(
    config: GraphConfig, batches: Iterator[tuple[Tag, GraphInputs]], device_id: int | None
) -> Iterator[tuple[Tag, torch.Tensor]]:
    """Images of every batch, as `build_graph` says, with the tag that its inputs came with."""
    in_work: deque[Tag] = deque()

    def source() -> GraphInputs:
        tag, inputs = next(batches)
        in_work.append(tag)
        return inputs

    pipeline = build_graph(config, source, device_id)
    # DALI's work is ordered before what torch does next on this stream: the host does not wait for it.
    compute_stream = None if device_id is None else torch.cuda.current_stream(device_id)
    while True:
        try:
            (output,) = pipeline.run(compute_stream)
        except StopIteration:
            return
        yield in_work.popleft(), from_dlpack(output.as_tensor())


def build_graph(config: GraphConfig, source: Callable[[], GraphInputs], device_id: int | None) -> Pipeline:
    """A built pipeline whose only output is float32 [n, 3, image_size, image_size] in [-1, 1].

    `source` gives the next batch and raises StopIteration at the end.
    `device_id`: the GPU to work on, or None for the CPU.
    """
    # A draw is a pure function, so one that is thrown away tells the names of the parameters.
    names = list(draw_parameters(config.operations, 0, np.zeros(1, np.int64), config.data.image_size))
    names += [_CROP] if config.crop else []
    division = divide(thread_share().threads, device_id is not None)

    def columns() -> list[list[Any]]:
        inputs = source()
        values: dict[str, npt.NDArray[Any]] = dict(inputs.parameters)
        if config.crop and inputs.crop is not None:
            values[_CROP] = np.repeat(inputs.crop[:, None], 2, axis=1)  # of width and height
        return [inputs.encoded, *(list(values[name]) for name in names)]

    @pipeline_def(
        batch_size=config.batch_size,
        num_threads=min(config.data.threads or division.decode, division.decode),
        device_id=device_id,
        # Depth 1 is no prefetching: a batch is made when it is asked for.
        prefetch_queue_depth=config.data.prefetch if division.overlap else 1,
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def graph() -> Any:
        encoded, *rest = fn.external_source(source=columns, num_outputs=1 + len(names), batch=True)
        given = _by_operation(names, rest)
        images = _decode(config, encoded, given[""].get(_CROP), device_id)
        images = _padded(images) if config.pad else images
        size = [config.data.image_size] * 2
        resize = _options([each.resize_options(given[each.name]) for each in config.operations])
        images = fn.resize(images, size=size, antialias=True, **resize)
        for operation in config.operations:
            images = operation.apply(images, given[operation.name])
        normalize = _options([each.normalize_options(given[each.name]) for each in config.operations])
        return fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="CHW", mean=[127.5] * 3, std=[127.5] * 3, **normalize
        )

    pipeline = graph()
    pipeline.build()
    return pipeline


@do_not_convert  # DALI rewrites what a graph calls for its conditionals, and knows no strict zip
def _by_operation(names: Sequence[str], values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Data nodes by operation and parameter; those of no operation under the empty name."""
    found: dict[str, dict[str, Any]] = {"": {}}
    for name, value in zip(names, values, strict=True):
        operation, _, parameter = name.rpartition(".")
        found.setdefault(operation, {})[parameter] = value
    return found


@do_not_convert
def _options(each: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of all operations. ValueError where two give the same one."""
    counts = Counter(name for options in each for name in options)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"two augmentations set {', '.join(twice)}; only one can")
    return {name: value for options in each for name, value in options.items()}


@do_not_convert
def _padded(images: Any) -> Any:
    """The images in the middle of white squares."""
    shape = images.shape(dtype=types.FLOAT)
    side = math.max(shape[0], shape[1])
    return fn.crop(images, crop_w=side, crop_h=side, out_of_bounds_policy="pad", fill_values=[255.0] * 3)


def _decode(config: GraphConfig, encoded: Any, crop: Any, device_id: int | None) -> Any:
    """RGB images uint8 [H, W, 3]; with `crop` only the middle of each, which spares decoding the rest."""
    options = {
        "device": "cpu" if device_id is None else "mixed",
        "output_type": types.RGB,
        # The hardware JPEG decoder's last bits differ from nvJPEG's, and which images it gets varies.
        "hw_decoder_load": 0.0 if config.data.deterministic else 0.65,  # DALI's default share
    }
    if crop is None:
        return fn.decoders.image(encoded, **options)
    return fn.decoders.image_slice(encoded, rel_start=(1 - crop) / 2, rel_shape=crop, **options)
