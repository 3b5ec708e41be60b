"""A balanced data set: all images of another one, and generated ones for cell types with few images."""

from __future__ import annotations

import hashlib
import io
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from data_pipeline.banks.asked import Verdict
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.banks.derive import derive_dataset
from data_pipeline.banks.image_bank import NAME, ImageBank
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import fold_of, group_name
from data_pipeline.learned_images import (
    FILE,
    LearnedImages,
    learned_by_bank,
    learned_by_bank_judge,
    learned_by_makers,
)
from data_pipeline.lineage import lineage
from data_pipeline.shards.store import folder_of
from data_pipeline.shards.writer import ShardSettings

# Real images whose stored size is measured; ids are hashes, so the first ones are a random sample.
_MEASURED = 200
_READ_AT_ONCE = 128  # generated images in memory


@dataclass(frozen=True)
class UsedBank:
    """A bank in use."""

    name: str  # source of its images
    images: ImageBank
    side: int  # pixels, of the stored images

    @property
    def crop(self) -> float:
        """Fraction of the sides of its domain's images that its generator was shown."""
        data = self.images.made_by.get("config", {}).get("data", {})
        return float(data.get("crop", {}).get(self.images.domain, 1.0))

    def as_record(self) -> dict[str, Any]:
        """The bank's entry in dataset.json."""
        made_by, content_hash = self.images.facts.generator, self.images.content_hash
        return {"name": self.name, "content_hash": content_hash, "made_by": made_by, "crop": self.crop}


def balance_dataset(
    config: BalanceConfig,
    *,
    verdict: Verdict | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], None] = lambda: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the data set `config.out`; returns the report, as build_shards.py does.

    verdict: the amounts of per_type=auto; it may ask for no image at all. rank, world_size, barrier: as of
    `derive_dataset`. UserError for a user's mistake.
    """
    parent, out = config.open_dataset(), folder_of(str(config.out), "out")
    settings = ShardSettings(**parent.metadata["settings"])
    banks = open_banks(config, parent)
    chosen, warnings = _choose(banks, training_counts(parent, config.domains), config, verdict)
    if not chosen and verdict is None:
        raise UserError(
            f"{parent.root}: no image to add: no type that a bank holds has fewer than per_type={config.per_type} "
            "training images; see build_report.json"
        )
    made_by = {
        "tool": "balance",
        **{name: getattr(config, name) for name in ("per_type", "best", "least", "at_most", "domains")},
        "asked": None if verdict is None else verdict.as_record(),
        "banks": [bank.as_record() for bank in banks],
        "parent": parent.metadata["made_by"],
    }
    relatives = _groups_of_training_images(parent)
    made = [_template(bank, row, relatives) for bank, row in chosen]
    with tempfile.TemporaryDirectory() as folder:
        _learned_from(parent, banks, config, verdict).save(Path(folder))
        # A classifier of the parent's normalised images needs their normaliser.
        attachments = {name: parent.attachment_path(name) for name in parent.metadata.get("attachments", {})}
        return derive_dataset(
            out,
            parent,
            kept=from_table(parent.table),
            made=made,
            render=partial(_render, {template.id: image for template, image in zip(made, chosen, strict=True)}),
            made_by=made_by,
            settings=settings,
            attachments={**attachments, FILE: Path(folder) / FILE},
            warnings=warnings,
            rank=rank,
            world_size=world_size,
            barrier=barrier,
            progress=progress,
        )


def _learned_from(
    parent: Dataset, banks: Sequence[UsedBank], config: BalanceConfig, verdict: Verdict | None
) -> LearnedImages:
    """What the generators, and the judges that chose among their images, learned from."""
    parts = [learned_by_makers(parent), *([] if verdict is None else [verdict.learned])]
    for bank in banks:
        parts.append(learned_by_bank(bank.images.root).through(f"{bank.name} (bank)"))
        if config.scores:
            judge = learned_by_bank_judge(bank.images.root)
            parts.append(judge.through(f"{bank.name} (its images chosen by {', '.join(config.scores)})"))
    return LearnedImages.joined(parts)


def training_counts(dataset: Dataset, domains: Sequence[str] | None = None) -> dict[str, dict[str, int]]:
    """Training images as {cell type: {"real": n, "synthetic": n}}; normalised ones count as real."""
    rows = dataset.samples(splits=["train"], domains=domains, columns=["cell_type", "origin"])
    counts = {name: {"real": 0, "synthetic": 0} for name in CELL_TYPES}
    for cell_type, origin in zip(rows["cell_type"], rows["origin"], strict=True):
        if cell_type:
            counts[cell_type]["synthetic" if origin == "synthetic" else "real"] += 1
    return counts


def format_counts(counts: Mapping[str, Mapping[str, int]]) -> str:
    """The counts as a table, without types that have no image."""
    width = max(map(len, counts))
    lines = [f"{'training images':{width}} {'real':>9} {'synthetic':>9} {'total':>9}"]
    for cell_type, count in counts.items():
        if total := sum(count.values()):
            lines.append(f"{cell_type:{width}} {count['real']:9} {count['synthetic']:9} {total:9}")
    return "\n".join(lines)


def open_banks(config: BalanceConfig, parent: Dataset) -> list[UsedBank]:
    """The banks. UserError for one that does not fit the data set."""
    stored_size = ShardSettings(**parent.metadata["settings"]).stored_size
    sources, ancestors = set(parent.samples(columns=["source"])["source"]), lineage(parent)
    stains = set(parent.samples(splits=["train"], domains=config.domains, columns=["domain"])["domain"])
    banks: list[UsedBank] = []
    for root in map(Path, config.banks):
        images, name = ImageBank.open(root), root.resolve().name
        if not NAME.fullmatch(name):
            raise UserError(f"{root}: a bank's folder names the source: use letters, digits, '_', '.' and '-' only")
        if name in sources:
            raise UserError(f"{root}: {parent.root} or another bank has a source {name!r} already; rename the folder")
        if images.made_by.get("dataset_hash") not in ancestors:
            raise UserError(
                f"{root}: its generator learned from a data set that {parent.root} was not made from, so maybe from "
                "images that are held out here: train a generator on this one"
            )
        if images.domain not in stains:
            raise UserError(
                f"{root}: its images are of domain {images.domain!r}, and no training image that counts here is: they "
                f"are of {', '.join(sorted(stains)) or 'none'}; train a generator on this data set, or see domains="
            )
        for score in config.scores:
            if score not in images.scores:
                known = ", ".join(sorted(images.scores)) or "none"
                raise UserError(
                    f"{root}: no score {score!r} of all images in this bank; it has {known}: choose one of these, or "
                    "have evaluate.py bank= write them"
                )
        sources.add(name)
        banks.append(UsedBank(name, images, stored_size or stored_side(parent, images.domain)))
    return banks


def stored_side(dataset: Dataset, domain: str) -> int:
    """Median of the shorter side, in pixels, of a domain's stored training images."""
    rows = dataset.samples(splits=["train"], domains=[domain]).iloc[:_MEASURED]
    encoded = (dataset.read_encoded(row) for row in rows.itertuples(index=False))
    return statistics.median_low(min(Image.open(io.BytesIO(image)).size) for image in encoded)


def _choose(
    banks: Sequence[UsedBank],
    counts: Mapping[str, Mapping[str, int]],
    config: BalanceConfig,
    verdict: Verdict | None,
) -> tuple[list[tuple[UsedBank, int]], list[str]]:
    """The generated images (bank, row) to add, and warnings."""
    chosen: list[tuple[UsedBank, int]] = []
    warnings = [
        f"{bank.name}: its images of {bank.images.image_size} px are stored at {bank.side} px, as the real ones are"
        for bank in banks
        if bank.images.image_size != bank.side
    ]
    warnings += [
        f"{bank.name}: its generator was shown images cropped to {bank.crop:g}: train with data.crop="
        f"{{{bank.images.domain}: {bank.crop:g}}}, or its cells differ in size from the real ones"
        for bank in banks
        if bank.crop != 1
    ]
    amounts = None if verdict is None else verdict.amounts()
    for cell_type, count in counts.items():
        there, held = sum(count.values()), held_images(banks, cell_type, config, count["real"])
        if amounts is not None:
            chosen += held[: amounts.get(cell_type, 0)]
            continue
        per_type = int(config.per_type or 0)
        chosen += held[: max(0, per_type - there)]
        if there + len(held) < per_type and (there or held):
            warnings.append(f"{cell_type}: {there + len(held)} of {per_type} images: the banks give {len(held)} of it")
    return chosen, warnings


def held_images(
    banks: Sequence[UsedBank], cell_type: str, config: BalanceConfig, real: int
) -> list[tuple[UsedBank, int]]:
    """The images (bank, row) of a type that may be taken, in the order in which they are.

    real: training images of the type. By several scores: the highest mean rank first.
    """
    held = [(bank, row) for bank in banks for row in _rows_of(bank.images, cell_type)]

    def scores(name: str, among: list[tuple[UsedBank, int]]) -> npt.NDArray[np.float64]:
        return np.array([bank.images.scores[name][row] for bank, row in among], np.float64)

    for name, least in config.least.items():
        held = [image for image, value in zip(held, scores(name, held), strict=True) if value >= least]
    if config.best and held:
        ranks = np.mean([_ranks(scores(name, held)) for name in config.best], axis=0)
        held = [held[place] for place in np.argsort(-ranks, kind="stable")]
    return held if config.at_most is None else held[: int(config.at_most * real)]


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rank of each value [n]; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - counts / 2)[places]


def _rows_of(bank: ImageBank, cell_type: str) -> list[int]:
    """Rows of a type's images, in the order of their indices."""
    if cell_type not in bank.cell_types:
        return []
    return np.flatnonzero(bank.labels == bank.cell_types.index(cell_type)).tolist()


def _groups_of_training_images(dataset: Dataset) -> dict[str, str]:
    """Group of each training image by its id and, of a normalised one, by its parent's."""
    rows = dataset.samples(splits=["train"], columns=["id", "parent", "group"])
    return dict(zip(rows["parent"], rows["group"], strict=True)) | dict(zip(rows["id"], rows["group"], strict=True))


def _template(bank: UsedBank, row: int, relatives: Mapping[str, str]) -> Sample:
    """The template of a generated image's row (`derive_dataset`).

    A variation is in the group, and so in the fold, of the image that it was made from. relatives: group of each
    training image by id. UserError for a variation of any other.
    """
    images = bank.images
    relative = images.parent(row)
    if relative and relative not in relatives:
        raise UserError(
            f"{images.root}: holds variations of image {relative[:12]}, which is no training image of this data set: "
            "make the bank from a generator trained on it"
        )
    cell_type = images.cell_types[images.labels[row]]
    recipe = f"{images.facts.identity} {row} {images.digests[row].tobytes().hex()} {bank.side}"
    group = relatives[relative] if relative else group_name(bank.name, images.facts.identity[:16], "")
    return Sample(
        id=hashlib.sha256(recipe.encode()).hexdigest(),
        source=bank.name,
        domain=images.domain,
        path=f"{cell_type}/{row // len(images.cell_types):06}",
        source_label=cell_type,
        cell_type=cell_type,
        group=group,
        split="train",
        fold=fold_of(group),
        origin="synthetic",
        parent=relative,
    )


def _render(image_of: Mapping[str, tuple[UsedBank, int]], rows: Sequence[Sample]) -> Iterator[npt.NDArray[np.uint8]]:
    """uint8 [side, side, 3] RGB of each row, in their order; rows are of one bank, as a shard's are."""
    for first in range(0, len(rows), _READ_AT_ONCE):
        wanted = [image_of[row.id] for row in rows[first : first + _READ_AT_ONCE]]
        bank = wanted[0][0]
        for pixels in bank.images.images([row for _, row in wanted]):
            image = Image.fromarray(pixels)
            if image.width != bank.side:
                # Else an image's size would betray its origin and, for a scarce type, its label.
                image = image.resize((bank.side, bank.side), Image.Resampling.LANCZOS)
            yield np.asarray(image)
