"""The scale of a laboratory's images, measured by their nuclei: no label is needed.

Microscopes and cameras differ two-fold in scale. A classifier that is trained with `nucleus_share` sees the images of
each domain, and those of laboratories that it does not know, so that the median nucleus takes that share of the side.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from trainer.tasks.classification.config import ClassifierRunConfig

IMAGES = 200  # of a domain or a folder, at most, in which nuclei are measured
LEAST_IMAGES = 20  # fewer say too little
_SIDE = 128  # pixels; images are reduced to it
_MIDDLE = 0.35  # radius, as a share of the side, in which a part of the nucleus must lie
_LOBE = 0.2  # a smaller part, by area in the middle as a share of the largest, is no lobe of the nucleus
_BATCH = 50
_ALONE = Topology()  # each process measures all images, and finds the same
_LEAST_CROP = 0.3
_Item = TypeVar("_Item")


def crop_to(nucleus_share: float, nucleus: float) -> float:
    """The crop, as a share of the sides, after which a nucleus takes `nucleus_share`: at least 0.3, at most 1.

    nucleus: median diameter as a share of the whole images' side.
    """
    return round(min(1.0, max(_LEAST_CROP, nucleus / nucleus_share)), 3)


def at_one_scale(config: ClassifierRunConfig, dataset: Dataset) -> ClassifierRunConfig:
    """The configuration with the crops of all domains named, measured by their nuclei where `nucleus_share` asks it."""
    if config.nucleus_share is None:
        return config
    domains = config.data.domains or sorted(set(dataset.samples(columns=["domain"])["domain"]))
    measured = [domain for domain in domains if domain not in config.data.crop]
    crop = config.data.crop | crops_of_domains(dataset, measured, config.nucleus_share)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, crop=crop))


def crops_of_domains(dataset: Dataset, domains: Sequence[str], nucleus_share: float) -> dict[str, float]:
    """The crop of each domain; domains with too few images to measure are left out."""
    measured = {domain: nucleus_of_domain(dataset, domain) for domain in domains}
    return {domain: crop_to(nucleus_share, found) for domain, found in measured.items() if found is not None}


def nucleus_of_domain(dataset: Dataset, domain: str, *, by_labels: bool = True) -> float | None:
    """Median diameter of the nuclei in a domain's real images, as a share of the side; None where too few were found.

    by_labels: cells without a nucleus are left out; to score a classifier that is not possible, as to predict.
    """
    rows = dataset.samples(domains=[domain], columns=["id", "origin", "cell_type"])
    without_nucleus = ["platelet", "smudge cell"] if by_labels else []
    rows = rows[(rows["origin"] == "real") & ~rows["cell_type"].isin(without_nucleus)]
    ids = _evenly(rows["id"].tolist())
    if len(ids) < LEAST_IMAGES:
        return None
    stream = Stream(
        dataset,
        StreamConfig(image_size=_SIDE),
        splits=None,
        cell_types=("", *CELL_TYPES),
        ids=ids,
        global_batch=_BATCH,
        training=False,
        topology=_ALONE,
    )
    return _median(stream.read())


def nucleus_of_files(paths: Sequence[Path], storage: ShardSettings) -> float | None:
    """`nucleus_of_domain` of image files; files that cannot be read are passed over."""
    chosen = _evenly(list(paths))
    if len(chosen) < LEAST_IMAGES:
        return None
    return _median(FileStream(chosen, storage, StreamConfig(image_size=_SIDE), _BATCH, _ALONE).read())


def nucleus_diameters(images: torch.Tensor) -> NDArray[np.float64]:
    """Diameter [n] of the circle of each nucleus's area, as a share of the side; NaN where there is none in the middle.

    images: float32 [n, 3, S, S] in [-1, 1]. The lobes of one nucleus count together.
    """
    # Imported here: they take a second, for which a training that measures no nuclei need not wait.
    from scipy import ndimage

    from data_pipeline.nuclei import nuclei_of_cell, optical_density

    pixels = ((images + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
    side = pixels.shape[1]
    places = (np.arange(side) + 0.5) / side - 0.5
    middle = np.hypot(places[:, None], places) < _MIDDLE
    diameters = np.full(len(pixels), np.nan)
    for row, image in enumerate(pixels):
        parts, count = ndimage.label(nuclei_of_cell(optical_density(image)))
        areas = np.bincount(parts[middle], minlength=count + 1)[1:]
        if areas.max(initial=0) > 0:
            lobes = 1 + np.flatnonzero(areas > _LOBE * areas.max())
            diameters[row] = 2 * np.sqrt(np.isin(parts, lobes).sum() / np.pi) / side
    return diameters


def _median(batches: Iterable[MicroBatch]) -> float | None:
    found = np.concatenate([np.empty(0), *(nucleus_diameters(part.images) for part in batches)])
    found = found[np.isfinite(found)]
    return float(np.median(found)) if len(found) >= LEAST_IMAGES else None


def _evenly(items: list[_Item]) -> list[_Item]:
    """At most `IMAGES` of them, at equal distances."""
    return items if len(items) <= IMAGES else [items[len(items) * number // IMAGES] for number in range(IMAGES)]
