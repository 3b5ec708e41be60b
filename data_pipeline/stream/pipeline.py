"""The DALI graph: encoded bytes -> decode -> geometry -> stain in optical density -> normalised tensor.

One graph for every device: with a GPU, decoding is `mixed` and the rest runs there; without,
the same operators run on the CPU. Geometry stands before the stain because it ends in a smaller
image; both act on single pixels' positions and single pixels' colours, so their order matters
only to interpolation. Zooms, shifts and quarter turns are the resize's own doing: it reads the
rectangle that was drawn, so they cost nothing and interpolate nothing twice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.pipeline import Pipeline, do_not_convert

from data_pipeline.stream.augment import AugmentParameters, Geometry, regions_of
from data_pipeline.threads import divide, thread_share

# OD = -log((I + 1) / 256) of an 8-bit intensity lies in [0, log 256] (contract C7).
DENSITY_OF_INTENSITY: npt.NDArray[np.float32] = -np.log((np.arange(256) + 1) / 256).astype(np.float32)
# Augmented densities are held in 16 bits; twice the range of an 8-bit image is kept, and one step
# of 1.7e-4 is finer than the finest step of an 8-bit image (3.9e-3).
_DENSITY_STEPS_PER_UNIT = 65535 / (2 * float(DENSITY_OF_INTENSITY[0]))


@dataclass(frozen=True)
class GraphConfig:
    """What the graph does to an image. `image_size`: side in pixels of the square output.

    `crop`: whether any image is cut to its middle before it is resized. `threads`, `prefetch`: as of StreamConfig.
    """

    image_size: int
    geometry: Geometry
    move_stain: bool
    batch_size: int
    threads: int | None
    prefetch: int
    deterministic: bool
    crop: bool = False


@dataclass(frozen=True)
class GraphInputs:
    """One batch for the graph: a list entry per image, of at most `batch_size` images.

    encoded: uint8 [bytes] each. parameters: those of the images; a graph that moves nothing needs none.
    crop: float32 [n], the share of each image's sides that is kept, in (0, 1]; only for a graph that crops.
    """

    encoded: list[npt.NDArray[np.uint8]]
    parameters: AugmentParameters | None = None
    crop: npt.NDArray[np.float32] | None = None


def build_graph(config: GraphConfig, source: Callable[[], GraphInputs], device_id: int | None) -> Pipeline:
    """A built pipeline whose only output is float32 [n, 3, image_size, image_size] in [-1, 1].

    `source` gives the next batch and raises StopIteration at the end.
    `device_id`: the GPU to work on, or None for the CPU.
    """
    names = _columns_of(config)
    division = divide(thread_share().threads, device_id is not None)

    def columns() -> list[list[Any]]:
        inputs = source()
        values = _columns(config, inputs)
        return [inputs.encoded, *(list(values[name]) for name in names)]

    @pipeline_def(
        batch_size=config.batch_size,
        num_threads=min(config.threads or division.decode, division.decode),
        device_id=device_id,
        # One batch ahead is none: it is asked for when it is needed, and waited for.
        prefetch_queue_depth=config.prefetch if division.overlap else 1,
        exec_dynamic=True,
        enable_conditionals=True,
    )
    def graph() -> Any:
        encoded, *rest = fn.external_source(source=columns, num_outputs=1 + len(names), batch=True)
        given = _by_name(names, rest)
        images = _resize(config, _decode(config, encoded, given.get("crop"), device_id), given)
        if config.geometry == "affine":
            images = fn.warp_affine(images, matrix=given["affine"], fill_value=None, inverse_map=True)
        if config.move_stain:
            images = _move_stain(images, given["density_matrix"], given["density_offset"])
        return fn.crop_mirror_normalize(
            images,
            mirror=given.get("mirror", 0),
            dtype=types.FLOAT,
            output_layout="CHW",
            mean=[127.5] * 3,
            std=[127.5] * 3,
        )

    pipeline = graph()
    pipeline.build()
    return pipeline


_GEOMETRY_COLUMNS: dict[Geometry, tuple[str, ...]] = {
    "none": (),
    "mirror": ("mirror",),
    "region": ("start", "end", "transposed"),
    "affine": ("affine",),
}


def _columns_of(config: GraphConfig) -> list[str]:
    """What the graph is given beside each image's bytes."""
    stain = ("density_matrix", "density_offset") if config.move_stain else ()
    return [*_GEOMETRY_COLUMNS[config.geometry], *stain, *(("crop",) if config.crop else ())]


@do_not_convert  # DALI rewrites what it calls for its conditionals, and knows no strict zip
def _by_name(names: list[str], values: list[Any]) -> dict[str, Any]:
    return dict(zip(names, values, strict=True))


def _columns(config: GraphConfig, inputs: GraphInputs) -> dict[str, npt.NDArray[Any]]:
    """One batch of it, by name: arrays [n, ...]."""
    columns: dict[str, npt.NDArray[Any]] = {}
    if inputs.parameters is not None:
        columns |= vars(inputs.parameters)
        # Densities leave the matrix in the steps of the table that turns them back (`_move_stain`).
        columns["density_matrix"] = inputs.parameters.density_matrix * _DENSITY_STEPS_PER_UNIT
        columns["density_offset"] = inputs.parameters.density_offset * _DENSITY_STEPS_PER_UNIT
        if config.geometry == "region":
            columns |= vars(regions_of(inputs.parameters.affine, config.image_size))
    if inputs.crop is not None:
        columns["crop"] = np.repeat(inputs.crop[:, None], 2, axis=1)  # of width and height
    return columns


def _resize(config: GraphConfig, images: Any, given: dict[str, Any]) -> Any:
    """Images uint8 [S, S, 3]: the whole of each, or the rectangle that was drawn for it."""
    size = [config.image_size, config.image_size]
    if config.geometry != "region":
        return fn.resize(images, size=size, antialias=True)
    # A rectangle that goes past the border repeats the border's pixels.
    images = fn.resize(
        images, size=size, antialias=True, roi_start=given["start"], roi_end=given["end"], roi_relative=True
    )
    if given["transposed"]:
        images = fn.transpose(images, perm=[1, 0, 2], transpose_layout=False)
    return images


def _decode(config: GraphConfig, encoded: Any, crop: Any, device_id: int | None) -> Any:
    """RGB images uint8 [H, W, 3]; with `crop` only the middle of each, which spares decoding the rest."""
    options = {
        "device": "cpu" if device_id is None else "mixed",
        "output_type": types.RGB,
        # The hardware JPEG decoder's last bits differ from nvJPEG's, and which images it gets varies.
        "hw_decoder_load": 0.0 if config.deterministic else 0.65,  # DALI's default share
    }
    if crop is None:
        return fn.decoders.image(encoded, **options)
    return fn.decoders.image_slice(encoded, rel_start=(1 - crop) / 2, rel_shape=crop, **options)


def _move_stain(images: Any, density_matrix: Any, density_offset: Any) -> Any:
    """OD' = matrix @ OD + offset, by table look-ups both ways: exp and log would cost most on a CPU.

    Matrix and offset give the new densities in steps of the second table.
    """
    density_table, intensity_table = _look_up_tables()
    density = fn.lookup_table(images, keys=list(range(256)), values=density_table, dtype=types.FLOAT)
    moved = fn.coord_transform(density, M=density_matrix, T=density_offset)
    steps = fn.cast(moved, dtype=types.UINT16)  # saturates at 0 and 65535
    return fn.lookup_table(steps, keys=list(range(65536)), values=intensity_table, dtype=types.FLOAT)


@cache
def _look_up_tables() -> tuple[list[float], list[float]]:
    """Density of each 8-bit intensity; intensity in [0, 255] of each 16-bit density step."""
    density = np.arange(65536) / _DENSITY_STEPS_PER_UNIT
    return DENSITY_OF_INTENSITY.tolist(), (256 * np.exp(-density) - 1).clip(0, 255).tolist()
