"""Scores of a stain run on held-out images (thesis tables 14-16), and against the truth where it is known."""

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import SeenImages
from data_pipeline.stream.stream import Topology
from trainer.metrics import image_distance
from trainer.metrics.evaluation import ScoredCheckpoint, ScoredData, SeenRecord
from trainer.metrics.feature_space import FeatureSpace
from trainer.metrics.generation import Floats, ImageFeatures, compare, extract_features
from trainer.runs.normalizers.bundle import normalized_domain
from trainer.tasks.stain.images import read_images
from trainer.tasks.stain.load import TrainedStainModel

FORMAT_VERSION = 1
_BATCH = 64
_TRUTH_MEASURES = {"psnr": image_distance.psnr, "ssim": image_distance.ssim, "ciede2000": image_distance.ciede2000}


@dataclass
class _Translated:
    """A domain's images, in the other stain and brought back: features, colours and measures of each batch."""

    count: int = 0
    real: list[ImageFeatures] = field(default_factory=list)
    made: list[ImageFeatures] = field(default_factory=list)
    back: list[ImageFeatures] = field(default_factory=list)
    colours_real: list[Floats] = field(default_factory=list)
    colours_made: list[Floats] = field(default_factory=list)
    values: dict[str, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))


def evaluate_stain_model(
    trained: TrainedStainModel,
    dataset: Dataset,
    space: FeatureSpace,
    *,
    split: str,
    topology: Topology,
    seen: SeenImages,
) -> dict[str, Any]:
    """Scores of both directions on one split, as a JSON record; distances of image sets are taken in `space`.

    seen: result of the comparison with the images that the networks were trained on; seen images are left out.
    The truth measures exist where the data set holds the same cells in both stains (see `_same_cells`).
    """
    a, b = trained.a, trained.b
    data = dataclasses.replace(trained.config.data, domains=None, cell_types=None)
    read = functools.partial(read_images, dataset, config=data, device=topology.device)
    directions = ((b, a, trained.to_a, trained.to_b), (a, b, trained.to_b, trained.to_a))
    found = {}
    for source, target, there, back in directions:
        rows = dataset.samples(splits=[split], domains=[source], columns=["id"])
        ids = [name for name in rows["id"] if name not in seen.through]
        if len(ids) < 2:
            raise UserError(
                f"{dataset.root}: {len(ids)} images of {source} in split {split}, a score needs two at least"
            )
        same_cells = _same_cells(dataset, split, source, target)
        found[source] = _translate(read, ids, same_cells, space, there.to(topology.device), back.to(topology.device))
    count = sum(each.count for each in found.values())
    scored = ScoredData(dataset.address, dataset.content_hash, split, sorted((a, b)), count)
    return {
        "format_version": FORMAT_VERSION,
        "dataset": dataclasses.asdict(scored),
        "checkpoint": dataclasses.asdict(ScoredCheckpoint.of(trained.checkpoint)),
        "normalizer": {"name": trained.config.model.algorithm, "image_size": trained.config.data.image_size},
        "feature_space": space.name,
        "seen_images": dataclasses.asdict(SeenRecord.of(seen)),
        "directions": {
            normalized_domain(source, target): _score(space, found[source], found[target])
            for source, target, _, _ in directions
        },
    }


@torch.no_grad()
def _translate(
    read: Callable[..., Iterator[tuple[list[str], torch.Tensor]]],
    ids: Sequence[str],
    same_cells: Mapping[str, str],
    space: FeatureSpace,
    there: nn.Module,
    back: nn.Module,
) -> _Translated:
    """Translate images by `there` and bring them back by `back`.

    read: read_images without dataset, config and device. same_cells: see `_same_cells`.
    """
    result = _Translated()
    for names, real in read(ids=ids, batch=_BATCH):
        made = there(real)
        again = back(made)
        result.count += len(names)
        for parts, images in ((result.real, real), (result.made, made), (result.back, again)):
            parts.append(extract_features(space, [images]))
        result.colours_real.append(image_distance.colour_statistics(real))
        result.colours_made.append(image_distance.colour_statistics(made))
        values = {
            "reconstruction_ssim": image_distance.ssim(real, again),
            "structure": image_distance.density_structure(real, made),
        }
        if same_cells:
            wanted = [same_cells[name] for name in names]
            ((order, true),) = read(ids=wanted, batch=len(wanted))
            true = true[[order.index(name) for name in wanted]]
            for name, measure in _TRUTH_MEASURES.items():
                values[f"truth_{name}_before"] = measure(real, true)
                values[f"truth_{name}_after"] = measure(made, true)
        for name, value in values.items():
            result.values[name].append(value.double().cpu())
    return result


def _score(space: FeatureSpace, source: _Translated, target: _Translated) -> dict[str, Any]:
    """Scores of one direction: of `source`, given the stain of `target`.

    reconstruction_ssim: of image and reconstruction. structure: SSIM of the grey optical densities of image and
    normalised image. truth_*: image, before and after normalisation, against the same cell in the target's stain.
    """
    real, target_real = _join(source.real), _join(target.real)
    before, after, there = (np.concatenate(p) for p in (source.colours_real, source.colours_made, target.colours_real))
    return {
        "count": source.count,
        "target_count": target.count,
        "before": compare(space, target_real, real).as_record(),
        "generated": compare(space, target_real, _join(source.made)).as_record(),
        "reconstructed": compare(space, real, _join(source.back)).as_record(),
        "colour_distance": {
            "before": image_distance.statistics_distance(before, there),
            "after": image_distance.statistics_distance(after, there),
        },
        **{name: _summary(torch.cat(parts)) for name, parts in source.values.items()},
    }


def _summary(values: torch.Tensor) -> dict[str, float | int]:
    """Mean and standard deviation of finite values (equal images have an infinite PSNR), and the number of images."""
    finite = values[torch.isfinite(values)]
    return {
        "mean": float(finite.mean()) if len(finite) else 0.0,
        "deviation": float(finite.std()) if len(finite) > 1 else 0.0,
        "images": len(values),
    }


def _join(parts: list[ImageFeatures]) -> ImageFeatures:
    return ImageFeatures(
        np.concatenate([part.features for part in parts]), np.concatenate([part.probabilities for part in parts])
    )


def _same_cells(dataset: Dataset, split: str, source: str, target: str) -> dict[str, str]:
    """Id of each image -> id of the same cell in the other stain; empty unless every image has one.

    The same cell is an image of the same source whose path differs only in a folder named for the domain, as phantoms
    are written.
    """
    rows = dataset.samples(splits=[split], domains=[source, target], columns=["id", "source", "domain", "path"])
    ids: dict[str, dict[tuple[str, ...], str]] = {source: {}, target: {}}
    for row in rows.itertuples(index=False):
        parts = str(row.path).split("/")
        ids[str(row.domain)][str(row.source), *("" if part == row.domain else part for part in parts)] = str(row.id)
    if not ids[source] or ids[source].keys() - ids[target].keys():
        return {}
    return {name: ids[target][cell] for cell, name in ids[source].items()}
