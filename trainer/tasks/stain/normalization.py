"""From a data set to one in which the images of one stain have the look of another."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from data_pipeline.banks.derive import derive_dataset
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.disk import temporary_folder
from data_pipeline.domains import refuse_unknown_domains
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE as LEARNED
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.shards.store import folder_of
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Topology
from trainer.runs import registry
from trainer.runs.normalizers.bundle import FILE, NormalizerBundle, Selection, normalized_domain, save_bundle
from trainer.runs.normalizers.classical import CLASSICAL
from trainer.runs.normalizers.learned import LearnedNormalizer
from trainer.runs.normalizers.type_gate import TypeGate
from trainer.runs.provenance import learned_by_run
from trainer.tasks.stain.images import read_images
from trainer.tasks.stain.load import TrainedStainModel, load_stain_model
from trainer.tasks.stain.normalization_config import TO_A, TO_B, NormalizeConfig, Policy

# Both directions, by target domain, those of a first.
Bundles = dict[str, NormalizerBundle]
_FIT_IMAGES = 500  # most images of each domain that method= is fitted on


def normalize_dataset(config: NormalizeConfig, topology: Topology) -> dict[str, Any]:
    """Write the data set `config.out` and return the build report.

    Data-parallel over the ranks; an interrupted call is resumed by the same command. UserError for a user's mistake.
    """
    parent, out = config.open_dataset(), folder_of(str(config.out), "out")
    bundles, learned = _of_run(parent, config) if config.run else _of_method(parent, config, topology)
    if (config.classifier is not None) != (config.policy == "thesis_predicted"):
        raise UserError("policy=thesis_predicted and classifier=RUN go together: give both, or neither")
    if config.classifier is not None:
        bundles, named = gated(bundles, Path(config.classifier))
        learned = LearnedImages.joined([learned, named])
    samples = from_table(parent.table)
    target_of = _targets(samples, bundles, config.policy)
    if config.policy == "thesis_predicted":
        target_of = _passing(parent, target_of, bundles, config.batch, topology)
    image_size = next(iter(bundles.values())).image_size
    made_by = {
        "tool": "normalize_stains",
        "policy": config.policy,
        "image_size": image_size,
        "crop": {bundle.source: bundle.crop for bundle in bundles.values() if bundle.crop != 1.0},
        "normalizers": {target: bundle.normalizer.describe() for target, bundle in sorted(bundles.items())},
    }
    gates = {target: bundle.gate.describe() for target, bundle in sorted(bundles.items()) if bundle.gate is not None}
    made_by |= {"by_type_of": gates} if gates else {}
    recipe = json.dumps([parent.content_hash, made_by], sort_keys=True)
    kept = [row for row in samples if row.id not in target_of or not row.kept]
    made = [_template(row, target_of[row.id], recipe) for row in samples if row.kept and row.id in target_of]
    if not made:
        raise UserError(f"{parent.root}: no image to normalise with policy={config.policy}: see build_report.json")
    with temporary_folder() as folder:
        LearnedImages.joined([learned, learned_by_makers(parent)]).save(folder)
        attachments = {LEARNED: folder / LEARNED}
        if config.policy != "thesis":
            attachments[FILE] = folder / FILE
            save_bundle(attachments[FILE], _of_policy(bundles, config.policy))
        return derive_dataset(
            out,
            parent,
            kept=kept,
            made=made,
            render=functools.partial(_render, parent, bundles, config.batch, topology.device),
            made_by=made_by,
            settings=ShardSettings(**{**parent.metadata["settings"], "stored_size": image_size}),
            attachments=attachments,
            rank=topology.rank,
            world_size=topology.world_size,
            barrier=_barrier,
        )


def _barrier() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def learned_normalizer(trained: TrainedStainModel, target: str) -> LearnedNormalizer:
    """The generator of a run that gives images the stain of `target`, one of its two domains."""
    return LearnedNormalizer(
        trained.to_a if target == trained.a else trained.to_b,
        trained.config.model.generator,
        name=trained.config.model.algorithm,
        target=target,
        checkpoint=trained.checkpoint.digest,
        dataset_hash=trained.dataset_hash,
        image_size=trained.config.data.image_size,
    )


def _of_run(parent: Dataset, config: NormalizeConfig) -> tuple[Bundles, LearnedImages]:
    """Both directions of a stain run, and the images that it learned from."""
    for name in ("method", "a", "b", "image_size"):
        if getattr(config, name) is not None:
            raise UserError(f"run= and {name}= together: a run has its own; leave {name}= out")
    run = Path(str(config.run))
    trained = load_stain_model(run)
    here = parent.samples(columns=["domain"])["domain"]
    refuse_unknown_domains((trained.a, trained.b), here, f"run={config.run} in {parent.root}")
    bundles = {}
    for target, source in ((trained.a, trained.b), (trained.b, trained.a)):
        data, folds = trained.config.data, trained.config.folds.get(source)
        selection = Selection(trained.dataset_hash, ["train"] if folds is None else None, folds)
        normalizer, crop = learned_normalizer(trained, target), data.crop.get(source, 1.0)
        bundles[target] = NormalizerBundle(normalizer, source, target, data.image_size, crop, selection)
    return bundles, learned_by_run(run).through(f"{run.resolve().name} (normaliser)")


def _of_method(parent: Dataset, config: NormalizeConfig, topology: Topology) -> tuple[Bundles, LearnedImages]:
    """Both directions of a classical normaliser, fitted on training images, and these images."""
    if config.method is None or config.a is None or config.b is None or config.a == config.b:
        raise UserError(
            "normalize_stains.py needs run=RUN, or method=reinhard|reinhard_domain|macenko with two domains a= and b="
        )
    here = parent.samples(columns=["domain"])["domain"]
    refuse_unknown_domains((config.a, config.b), here, f"a= and b= in {parent.root}")
    size = config.image_size or 256
    images, fitted_on = {}, []
    for domain in (config.a, config.b):
        ids = parent.samples(splits=["train"], domains=[domain], columns=["id"])["id"]
        if len(ids) == 0:
            raise UserError(f"{parent.root}: no training image of domain {domain} to fit method={config.method} on")
        # Ids are hashes: the first ones are a random sample, the same every time.
        chosen = ids.iloc[:_FIT_IMAGES].tolist()
        fitted_on += chosen
        stream = StreamConfig(image_size=size, crop=config.crop)
        parts = read_images(parent, chosen, stream, config.batch, topology.device)
        images[domain] = torch.cat([part for _, part in parts])
    bundles = {}
    for target, source in ((config.a, config.b), (config.b, config.a)):
        normalizer = CLASSICAL[config.method].fit(images[target], images[source])
        selection = Selection(parent.content_hash, ["train"], None)
        crop = config.crop.get(source, 1.0)
        bundles[target] = NormalizerBundle(normalizer, source, target, size, crop, selection)
    learned = LearnedImages.of(parent, {"trained": fitted_on})
    return bundles, learned.through(f"{config.method} (normaliser)")


def _of_policy(bundles: Bundles, policy: Policy) -> NormalizerBundle:
    """What a classifier of the normalised images needs for raw ones, of any policy but `thesis`."""
    to_a, to_b = bundles.values()
    return dataclasses.replace(to_a, other=to_b) if policy == "thesis_predicted" else to_b if policy == "to_b" else to_a


def _targets(samples: Sequence[Sample], bundles: Bundles, policy: Policy) -> dict[str, str]:
    """Id of each image to normalise -> the domain whose stain it takes; of thesis_predicted, if its gate lets it."""
    here = [row for row in samples if row.kept and row.domain in bundles and row.origin == "real"]
    directions = {bundle.source: bundle.target for bundle in bundles.values()}
    if policy == "thesis_predicted":
        return {row.id: directions[row.domain] for row in here}
    if policy != "thesis":
        bundle = _of_policy(bundles, policy)
        return {row.id: bundle.target for row in here if row.domain == bundle.source}
    types = dict(zip(bundles, (TO_A, TO_B), strict=True))
    training = ((row, directions[row.domain]) for row in here if row.split == "train")
    return {row.id: target for row, target in training if row.cell_type in types[target]}


def gated(bundles: Bundles, run: Path) -> tuple[Bundles, LearnedImages]:
    """The thesis's rule by the types that a run's classifier names, and the images that the run learned from.

    UserError for a classifier of normalised images, and for one that saw other parts of the images than the normaliser.
    """
    trained, found = registry.task("classification").load(run), {}
    if trained.normalizer is not None:
        raise UserError(f"classifier={run}: learned from normalised images: give a run that learned from raw images")
    for (target, bundle), types in zip(bundles.items(), (TO_A, TO_B), strict=True):
        crop = trained.config.data.crop.get(bundle.source, 1.0)
        if crop != bundle.crop:
            raise UserError(
                f"classifier={run}: saw {crop:g} of the sides of {bundle.source}'s images, the normaliser sees "
                f"{bundle.crop:g}: train both with one data.crop"
            )
        gate = TypeGate(
            trained.network,
            dataclasses.replace(trained.config.model, weights=None),
            trained.config.data.image_size,
            trained.cell_types,
            types,
            trained.checkpoint.digest,
            trained.dataset_hash,
        )
        found[target] = dataclasses.replace(bundle, gate=gate)
    return found, learned_by_run(run).through(f"{run.resolve().name} (names types for the normaliser)")


def _passing(
    parent: Dataset, target_of: dict[str, str], bundles: Bundles, batch: int, topology: Topology
) -> dict[str, str]:
    """Those images that the gate of their direction lets pass; each rank looks at its share."""
    mine: dict[str, str] = {}
    for target, bundle in bundles.items():
        ids = sorted(name for name, each in target_of.items() if each == target)[topology.rank :: topology.world_size]
        stream = StreamConfig(image_size=bundle.image_size, crop={bundle.source: bundle.crop})
        assert bundle.gate is not None
        for names, images in read_images(parent, ids, stream, batch, topology.device) if ids else ():
            passes = bundle.gate.passes(images).tolist()
            mine |= {name: target for name, one in zip(names, passes, strict=True) if one}
    parts: list[Any] = [mine]
    if distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, mine)
    return {name: target for part in parts for name, target in part.items()}


def _template(row: Sample, target: str, recipe: str) -> Sample:
    """The row of a normalised image that is not made yet; its id is a recipe id (see derive_dataset)."""
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


def _render(
    parent: Dataset, bundles: Bundles, batch: int, device: torch.device, rows: Sequence[Sample]
) -> Iterator[npt.NDArray[np.uint8]]:
    """Normalised pixels uint8 [S, S, 3] RGB of each row, in their order."""
    pixels: dict[str, npt.NDArray[np.uint8]] = {}
    for bundle in bundles.values():
        domain = normalized_domain(bundle.source, bundle.target)
        parents = [row.parent for row in rows if row.domain == domain]
        if not parents:
            continue
        stream = StreamConfig(image_size=bundle.image_size, crop={bundle.source: bundle.crop})
        for ids, images in read_images(parent, parents, stream, batch, device):
            levels = ((bundle.normalizer(images) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
            pixels |= zip(ids, levels.permute(0, 2, 3, 1).cpu().numpy(), strict=True)
    for row in rows:
        yield pixels[row.parent]
