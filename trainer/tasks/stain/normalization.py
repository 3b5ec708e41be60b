"""From a data set to one in which the images of one stain have the look of another (contracts C1, C4)."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from data_pipeline.banks.derive import derive_dataset
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import temporary_folder
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE as LEARNED
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.shards.store import folder_of
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from trainer.runs.provenance import learned_by_run
from trainer.tasks.stain.load import load_stain_model
from trainer.tasks.stain.normalization_config import NormalizeConfig, Policy
from trainer.tasks.stain.normalizers.base import StainNormalizer
from trainer.tasks.stain.normalizers.bundle import FILE, NormalizerBundle, normalized_domain, save_bundle
from trainer.tasks.stain.normalizers.classical import CLASSICAL
from trainer.tasks.stain.normalizers.learned import LearnedNormalizer


@dataclass(frozen=True)
class _Restaining:
    """Both directions of one normaliser, at one size and crop."""

    a: str
    b: str
    to: dict[str, StainNormalizer]  # by target domain
    image_size: int
    crop: dict[str, float]
    learned: dict[str, dict[str, Any]]  # by source domain, as NormalizerBundle.learned
    images: LearnedImages


def normalize_dataset(config: NormalizeConfig, topology: Topology) -> dict[str, Any]:
    """Write the data set of `config.out`; the report (as of build_shards.py) comes back.

    Data-parallel over the processes, taken up where it was killed. UserError for what the user can mend.
    """
    parent, out = config.open_dataset(), folder_of(str(config.out), "out")
    restaining = _of_run(parent, config) if config.run else _of_method(parent, config, topology)
    learned = LearnedImages.joined([restaining.images, learned_by_makers(parent)])
    samples = from_table(parent.table)
    target_of = _targets(samples, restaining, config.policy)
    made_by = {
        "tool": "normalize_stains",
        "policy": config.policy,
        "image_size": restaining.image_size,
        "crop": restaining.crop,
        "normalizers": {target: normalizer.describe() for target, normalizer in sorted(restaining.to.items())},
    }
    recipe = json.dumps([parent.content_hash, made_by], sort_keys=True)
    kept = [row for row in samples if row.id not in target_of or not row.kept]
    made = [_template(row, target_of[row.id], recipe) for row in samples if row.kept and row.id in target_of]
    if not made:
        raise UserError(f"{parent.root}: no image to normalise with policy={config.policy}: see build_report.json")
    settings = ShardSettings(**{**parent.metadata["settings"], "stored_size": restaining.image_size})
    with temporary_folder() as folder:
        learned.save(Path(folder))
        attachments = {LEARNED: Path(folder) / LEARNED}
        if config.policy != "thesis":
            source, target = (restaining.b, restaining.a) if config.policy == "to_a" else (restaining.a, restaining.b)
            bundle = NormalizerBundle(
                restaining.to[target],
                source,
                target,
                restaining.image_size,
                restaining.crop.get(source, 1.0),
                restaining.learned[source],
            )
            attachments[FILE] = folder / FILE
            save_bundle(attachments[FILE], bundle)
        return derive_dataset(
            out,
            parent,
            kept=kept,
            made=made,
            render=_Renderer(parent, restaining, config.batch, topology),
            made_by=made_by,
            settings=settings,
            attachments=attachments,
            rank=topology.rank,
            world_size=topology.world_size,
            barrier=_wait_for_all,
        )


def _wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def _of_run(parent: Dataset, config: NormalizeConfig) -> _Restaining:
    for name in ("method", "a", "b", "image_size"):
        if getattr(config, name) is not None:
            raise UserError(f"run= and {name}= together: a run has its own; leave {name}= out")
    trained = load_stain_model(Path(str(config.run)))
    to: dict[str, StainNormalizer] = {
        domain: LearnedNormalizer.of_run(trained, domain) for domain in (trained.a, trained.b)
    }
    here = parent.samples(columns=["domain"])["domain"]
    refuse_unknown_domains((trained.a, trained.b), here, f"run={config.run} in {parent.root}")
    learned = {}
    for domain in to:
        folds = trained.config.folds.get(domain)
        splits = ["train"] if folds is None else None
        learned[domain] = {"dataset_hash": trained.dataset_hash, "splits": splits, "folds": folds}
    data = trained.config.data
    images = learned_by_run(Path(str(config.run))).through(f"{Path(str(config.run)).resolve().name} (normaliser)")
    return _Restaining(trained.a, trained.b, to, data.image_size, dict(data.crop), learned, images)


def _of_method(parent: Dataset, config: NormalizeConfig, topology: Topology) -> _Restaining:
    if config.method is None or config.a is None or config.b is None or config.a == config.b:
        raise UserError(
            "normalize_stains.py needs run=RUN, or method=reinhard|reinhard_domain|macenko with two domains a= and b="
        )
    here = parent.samples(columns=["domain"])["domain"]
    refuse_unknown_domains((config.a, config.b), here, f"a= and b= in {parent.root}")
    size = config.image_size or 256
    images, fitted_on = {}, []
    for domain in (config.a, config.b):
        rows = parent.samples(splits=["train"], domains=[domain], columns=["id"])
        if len(rows) == 0:
            raise UserError(f"{parent.root}: no training image of domain {domain} to fit method={config.method} on")
        # Ids are hashes: the first ones by id are a random sample, the same every time.
        chosen = rows["id"].iloc[: config.fit_images].tolist()
        fitted_on += chosen
        parts = _read(parent, chosen, size, config.crop, config.batch, topology)
        images[domain] = torch.cat([part for _, part in parts])
    kind = CLASSICAL[config.method]
    to: dict[str, StainNormalizer] = {
        config.a: kind.fit(images[config.a], images[config.b]),
        config.b: kind.fit(images[config.b], images[config.a]),
    }
    fitted = {"dataset_hash": parent.content_hash, "splits": ["train"], "folds": None}
    learned = LearnedImages.of(parent, {"trained": fitted_on}).through(f"{config.method} (normaliser)")
    return _Restaining(config.a, config.b, to, size, dict(config.crop), {config.a: fitted, config.b: fitted}, learned)


def _targets(samples: Sequence[Sample], restaining: _Restaining, policy: Policy) -> dict[str, str]:
    """Id of every image that is normalised -> the domain whose stain it takes."""
    a, b = restaining.a, restaining.b
    here = [row for row in samples if row.kept and row.domain in (a, b) and row.origin == "real"]
    if policy != "thesis":
        source, target = (b, a) if policy == "to_a" else (a, b)
        return {row.id: target for row in here if row.domain == source}
    training = [row for row in here if row.split == "train"]
    targets: dict[str, str] = {}
    for cell_type in CELL_TYPES:
        of_type = [row for row in training if row.cell_type == cell_type]
        counts = {domain: sum(row.domain == domain for row in of_type) for domain in (a, b)}
        if min(counts.values()) == 0:
            continue
        smaller, larger = sorted(counts, key=lambda domain: counts[domain])
        targets |= {row.id: larger for row in of_type if row.domain == smaller}
    return targets


def _template(row: Sample, target: str, recipe: str) -> Sample:
    """The normalised image's row, before there is an image: its id is that of the recipe."""
    return dataclasses.replace(
        row,
        id=hashlib.sha256(f"{row.id} {target} {recipe}".encode()).hexdigest(),
        domain=normalized_domain(row.domain, target),
        origin="normalized",
        parent=row.id,
        shard="",
        key="",
        offset=None,
        size=None,
        crc32=None,
    )


class _Renderer:
    """Normalised pixels of the parents of some rows."""

    def __init__(self, parent: Dataset, restaining: _Restaining, batch: int, topology: Topology) -> None:
        self._parent, self._restaining, self._batch, self._topology = parent, restaining, batch, topology

    def __call__(self, rows: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
        """uint8 [S, S, 3] RGB of each row, in their order."""
        target_of = {row.parent: row.domain.rpartition("_as_")[2] for row in rows}
        pixels: dict[str, npt.NDArray[np.uint8]] = {}
        restaining = self._restaining
        for ids, images in _read(
            self._parent, list(target_of), restaining.image_size, restaining.crop, self._batch, self._topology
        ):
            for target in sorted({target_of[name] for name in ids}):
                chosen = [number for number, name in enumerate(ids) if target_of[name] == target]
                normalized = restaining.to[target](images[chosen])
                levels = ((normalized + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
                for number, image in zip(chosen, levels.permute(0, 2, 3, 1).cpu().numpy(), strict=True):
                    pixels[ids[number]] = image
        for row in rows:
            yield pixels[row.parent]


def _read(
    dataset: Dataset, ids: Sequence[str], size: int, crop: dict[str, float], batch: int, topology: Topology
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Images float32 [n, 3, size, size] of these samples and their ids, in batches, on this process's device."""
    stream = Stream(
        dataset,
        StreamConfig(image_size=size, crop=crop),
        splits=None,
        cell_types=("", *CELL_TYPES),
        ids=ids,
        global_batch=batch,
        training=False,
        topology=Topology(device=topology.device),  # each process reads for itself
    )
    for part in stream.read():
        yield stream.samples["id"].iloc[part.rows].tolist(), part.images
