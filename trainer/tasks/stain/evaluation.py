"""Scoring a stain run on held-out images (thesis tables 14-16), and against the truth where it is known."""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.learned_images import SeenImages
from data_pipeline.stream.stream import Stream, Topology
from trainer.metrics import image_distance
from trainer.metrics.feature_space import FeatureSpace
from trainer.metrics.generation import Floats, ImageFeatures, compare, extract_features
from trainer.tasks.stain.load import TrainedStainModel

_BATCH = 64


@dataclass
class _Pass:
    """What one walk over a domain's images leaves behind."""

    ids: list[str] = field(default_factory=list)
    real: list[ImageFeatures] = field(default_factory=list)
    made: list[ImageFeatures] = field(default_factory=list)
    back: list[ImageFeatures] = field(default_factory=list)
    colours_real: list[Floats] = field(default_factory=list)
    colours_made: list[Floats] = field(default_factory=list)
    values: dict[str, list[torch.Tensor]] = field(default_factory=dict)


def evaluate_stain_model(
    trained: TrainedStainModel,
    dataset: Dataset,
    space: FeatureSpace,
    *,
    split: str,
    topology: Topology,
    seen: SeenImages,
) -> dict[str, Any]:
    """Scores of both directions on one split, as they are written to JSON.

    seen: what comparing the images with those that the networks learned from gave; those that were seen are left out.
    Of each direction: real images of the target domain against the generated, and of the source against the
    reconstructed, in `space`; SSIM of image and reconstruction; how much structure is kept (SSIM of the grey
    optical densities); the distance of the colour statistics before and after. Where the data set holds the
    same cells in both stains (see `_truth`): PSNR, SSIM and CIEDE2000 against the true image, before and after.
    """
    a, b = trained.a, trained.b
    walks = {
        a: _walk(trained, dataset, space, a, b, trained.to_b, trained.to_a, split, topology, seen.through),
        b: _walk(trained, dataset, space, b, a, trained.to_a, trained.to_b, split, topology, seen.through),
    }
    directions = {}
    for source, target in ((b, a), (a, b)):
        here, there = walks[source], walks[target]
        colours = np.concatenate(there.colours_real)
        directions[f"{source}_as_{target}"] = {
            "count": len(here.ids),
            "target_count": len(there.ids),
            "generated": compare(space, _join(there.real), _join(here.made)).as_record(),
            "before": compare(space, _join(there.real), _join(here.real)).as_record(),
            "reconstructed": compare(space, _join(here.real), _join(here.back)).as_record(),
            "colour_distance": {
                "before": image_distance.statistics_distance(np.concatenate(here.colours_real), colours),
                "after": image_distance.statistics_distance(np.concatenate(here.colours_made), colours),
            },
            **{name: _summary(torch.cat(parts)) for name, parts in here.values.items()},
        }
    return {
        "dataset": {
            "path": dataset.address,
            "content_hash": dataset.content_hash,
            "split": split,
            "domains": sorted((a, b)),
            "count": sum(len(walk.ids) for walk in walks.values()),
        },
        "checkpoint": {
            "file": trained.checkpoint.path.name,
            "step": trained.checkpoint.step,
            "sha256": trained.checkpoint.digest,
        },
        "normalizer": {"name": trained.config.model.algorithm, "image_size": trained.config.data.image_size},
        "feature_space": space.name,
        "seen_images": seen.as_record(),
        "directions": directions,
    }


@torch.no_grad()
def _walk(
    trained: TrainedStainModel,
    dataset: Dataset,
    space: FeatureSpace,
    source: str,
    target: str,
    there: nn.Module,
    back: nn.Module,
    split: str,
    topology: Topology,
    left_out: Collection[str],
) -> _Pass:
    """Every image of a domain, what it becomes in the other, and back."""
    walk = _Pass()
    there, back = there.to(topology.device), back.to(topology.device)
    truth = _truth(dataset, split, source, target)
    for ids, images in _images(trained, dataset, source, split, topology, left_out):
        made = there(images)
        again = back(made)
        walk.ids += ids
        walk.real.append(extract_features(space, [images]))
        walk.made.append(extract_features(space, [made]))
        walk.back.append(extract_features(space, [again]))
        walk.colours_real.append(image_distance.colour_statistics(images))
        walk.colours_made.append(image_distance.colour_statistics(made))
        values = {
            "reconstruction_ssim": image_distance.ssim(images, again),
            "structure": image_distance.density_structure(images, made),
        }
        if truth:
            true = _images_of(trained, dataset, target, [truth[name] for name in ids], topology)
            for name, distance in _DISTANCES.items():
                values[f"truth_{name}_before"] = distance(images, true)
                values[f"truth_{name}_after"] = distance(made, true)
        for name, value in values.items():
            walk.values.setdefault(name, []).append(value.double().cpu())
    return walk


_DISTANCES = {"psnr": image_distance.psnr, "ssim": image_distance.ssim, "ciede2000": image_distance.ciede2000}


def _images(
    trained: TrainedStainModel,
    dataset: Dataset,
    domain: str,
    split: str,
    topology: Topology,
    left_out: Collection[str],
) -> Iterator[tuple[list[str], torch.Tensor]]:
    ids = dataset.samples(splits=[split], domains=[domain], columns=["id"])["id"]
    stream = Stream(
        dataset,
        dataclasses.replace(trained.config.data, domains=[domain], cell_types=None),
        splits=[split],
        cell_types=("", *CELL_TYPES),
        ids=ids[~ids.isin(list(left_out))].tolist(),
        global_batch=_BATCH,
        training=False,
        topology=Topology(device=topology.device),
    )
    if len(stream.samples) < 2:
        raise UserError(f"{dataset.root}: one image of {domain} in split {split}, a score needs two at least")
    for part in stream.read():
        yield stream.samples["id"].iloc[part.rows].tolist(), part.images


def _images_of(
    trained: TrainedStainModel, dataset: Dataset, domain: str, ids: list[str], topology: Topology
) -> torch.Tensor:
    """These images [n, 3, S, S], in this order."""
    stream = Stream(
        dataset,
        dataclasses.replace(trained.config.data, domains=[domain], cell_types=None),
        splits=None,
        cell_types=("", *CELL_TYPES),
        ids=ids,
        global_batch=len(ids),
        training=False,
        topology=Topology(device=topology.device),
    )
    (part,) = stream.read()
    place = {name: number for number, name in enumerate(stream.samples["id"].iloc[part.rows])}
    return part.images[[place[name] for name in ids]]


def _truth(dataset: Dataset, split: str, source: str, target: str) -> dict[str, str]:
    """Id of each image -> id of the same cell in the other stain; empty unless every image has one.

    The same cells are images of one source whose paths differ in a folder named for the domain only, as
    phantoms are written.
    """
    rows = dataset.samples(splits=[split], domains=[source, target], columns=["id", "source", "domain", "path"])
    keys: dict[str, dict[tuple[str, ...], str]] = {source: {}, target: {}}
    for row in rows.itertuples(index=False):
        parts = str(row.path).split("/")
        keys[str(row.domain)][str(row.source), *("" if part == row.domain else part for part in parts)] = str(row.id)
    if not keys[source] or keys[source].keys() - keys[target].keys():
        return {}
    return {name: keys[target][key] for key, name in keys[source].items()}


def _join(parts: list[ImageFeatures]) -> ImageFeatures:
    return ImageFeatures(
        np.concatenate([part.features for part in parts]), np.concatenate([part.probabilities for part in parts])
    )


def _summary(values: torch.Tensor) -> dict[str, float | int]:
    """Mean and standard deviation over the images; equal images have no finite PSNR and are left out."""
    finite = values[torch.isfinite(values)]
    return {
        "mean": float(finite.mean()) if len(finite) else 0.0,
        "deviation": float(finite.std()) if len(finite) > 1 else 0.0,
        "images": len(values),
    }
