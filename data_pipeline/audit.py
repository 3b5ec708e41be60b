"""Looks for leaks from held-out images into training, by the images that a data set holds."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.audit_check import Check, named
from data_pipeline.catalog import SPLITS, Dataset, Sample, content_hash, from_table
from data_pipeline.ingest.build_report import UNLABELLED
from data_pipeline.ingest.curate import NEAR_DUPLICATE_BITS, check_ratio, fold_of, group_name, split_of
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.lineage import banks_of, family, lineage, normalization_needs_label
from data_pipeline.shards.build_files import DATASET_FILE, mirror_of
from data_pipeline.shards.store import Store
from data_pipeline.shards.stored_images import StoredImages, inspect_stored, near_pairs_across
from data_pipeline.sources import layouts


@dataclass(frozen=True)
class _Ground:
    """What all checks look at."""

    dataset: Dataset
    rows: list[Sample]  # kept
    family: list[Dataset]  # the data set and its ancestors

    @property
    def lost(self) -> str:
        """Which ancestors are no longer in their place, in words; '' for none."""
        gone = lineage(self.dataset) - {member.content_hash for member in self.family}
        names = ", ".join(sorted(name[:12] for name in gone))
        return f"the data set {names} that it was made from is not where it was; bring it back" if gone else ""

    def declared(self, name: str) -> Any:
        """An entry in the metadata of the data set built from raw images; None if that is lost."""
        return next((member.metadata[name] for member in self.family if name in member.metadata), None)


def audit_dataset(dataset: Dataset, *, workers: int = 1, progress: bool = True) -> tuple[list[Check], dict[str, Any]]:
    """Look for leaks between the splits of a data set; returns the checks, and how its images are stored.

    Kept images are read from the shards; facts in the catalogue are not trusted. UserError when a shard cannot be read.
    """
    rows = [row for row in from_table(dataset.table) if row.kept]
    ground = _Ground(dataset, rows, family(dataset))
    images = inspect_stored(dataset, rows, workers, progress)
    checks = [
        _check_catalogue(ground),
        _check_groups(ground),
        _check_near_duplicates(ground, images),
        _check_parents(ground),
        _check_synthetic(ground),
        _check_generators(ground),
        _check_label_normalized(ground),
        _check_splits(ground),
        _check_storage(ground, images),
    ]
    return checks, _storage_facts(rows, images)


def _check_catalogue(ground: _Ground) -> Check:
    dataset, found = ground.dataset, []
    if content_hash(from_table(dataset.table)) != dataset.content_hash:
        found.append("the rows' content hash is not the one that was committed")
    root = dataset.root
    try:
        mirror = root.read(DATASET_FILE) if isinstance(root, Store) else (root / DATASET_FILE).read_bytes()
    except FileNotFoundError:
        mirror = b""
    if mirror != mirror_of(dataset.metadata):
        found.append(f"{DATASET_FILE} does not say what the catalogue says")
    remedy = "build or derive the data set again: somebody has changed it by hand"
    return Check("catalogue", "rows, as they were committed", dataset.table.num_rows, tuple(found), remedy)


def _check_groups(ground: _Ground) -> Check:
    """Each patient, slide or original is in one split; groups that file names tell are read again."""
    # A generated image's group is its bank: `_check_synthetic` checks its split.
    rows = [row for row in ground.rows if row.origin != "synthetic"]
    firsts: dict[str, dict[str, Sample]] = defaultdict(dict)
    for row in rows:
        firsts[row.group].setdefault(row.split, row)
    found = [
        f"group {group} is in {len(parts)} splits: {', '.join(map(named, parts.values()))}"
        for group, parts in firsts.items()
        if len(parts) > 1
    ]
    declared = ground.declared("sources") or []
    known = {source["name"]: layouts()[source["kind"]] for source in declared if source["kind"] in layouts()}
    group_of = {name: layout.group_of for name, layout in known.items() if layout.group_of}
    for row in rows:
        by_name = group_of[row.source](row.path) if row.source in group_of else ""
        if by_name and row.group != group_name(row.source, by_name, ""):
            found.append(f"{named(row)} is of group {row.group}, its name says {group_name(row.source, by_name, '')}")
    remedy = "name patient or slide in the source (a table's columns) and build the data set again"
    alone = sum(row.group in (row.id, row.parent) for row in rows)
    checked = f"groups of {len(rows)} images, each in one split"
    if alone:
        checked += f"; {alone} images name no patient or slide, so whether they share one is unknown"
    return Check("groups", checked, len(firsts), tuple(found), remedy)


def _check_near_duplicates(ground: _Ground, images: StoredImages) -> Check:
    rows = ground.rows
    split = np.array([SPLITS.index(row.split) for row in rows], np.int64)
    pairs = near_pairs_across(images.hashes, split, NEAR_DUPLICATE_BITS)
    found = [f"{named(rows[pair.one])} and {named(rows[pair.other])}, {pair.distance} bits" for pair in pairs]
    remedy = "look at both; exclude one (build_shards.py exclude=FILE), or name their common group and build again"
    checked = (
        f"images, none within {NEAR_DUPLICATE_BITS} of 256 bits of one in another split, mirrored and quarter-turned "
        "ones too"
    )
    return Check("near duplicates", checked, len(rows), tuple(found), remedy)


def _check_parents(ground: _Ground) -> Check:
    """Every image made from another has the split and group of all its ancestors."""
    made = [row for row in ground.rows if row.parent]
    known: dict[str, tuple[str, str, str]] = {}
    for member in reversed(ground.family if made else []):
        for part in member.batches(["id", "split", "group", "parent"]):
            columns = (column.to_pylist() for column in part.columns)
            known |= {identity: (split, group, parent) for identity, split, group, parent in zip(*columns, strict=True)}
    found, orphans = [], 0
    for row in made:
        ancestor, seen = row.parent, {row.id}
        while ancestor and ancestor not in seen:
            seen.add(ancestor)
            if ancestor not in known:
                orphans += 1
                break
            split, group, above = known[ancestor]
            if (split, group) != (row.split, row.group):
                found.append(f"{named(row)} was made from {ancestor[:16]} of group {group} in {split}")
            ancestor = above
    unknown = f"{orphans} of them were made from images that are in no catalogue here" if orphans else ""
    if orphans and not ground.lost:
        found.append(unknown)
    remedy = "derive the data set again from the one that its images come from"
    checked = "images made from others, each in the split and group of every image that it was made from"
    return Check("parents", checked, len(made), tuple(found), remedy, unknown and ground.lost)


def _check_synthetic(ground: _Ground) -> Check:
    made = [row for row in ground.rows if row.origin == "synthetic"]
    found = tuple(f"{named(row)} is synthetic" for row in made if row.split != "train")
    remedy = "score nothing on this data set; derive it again with balance.py"
    return Check("synthetic images", "synthetic images, each a training image", len(made), found, remedy)


def _check_generators(ground: _Ground) -> Check:
    """No generator of a bank was trained on a held-out image or chosen by a test image; validation is for choices."""
    sources = {row.source for row in ground.rows if row.origin == "synthetic"}
    held_out = [row for row in ground.rows if row.split != "train"]
    shown = {member.content_hash: member for member in ground.family}
    makers = learned_by_makers(ground.dataset)
    banks = {bank["name"]: bank for member in ground.family for bank in banks_of(member) if bank["name"] in sources}
    found = [f"no bank is recorded for the synthetic images of {name}" for name in sorted(sources - set(banks))]
    ancestors, unknown = lineage(ground.dataset), ""
    for name, bank in sorted(banks.items()):
        learned, leaks = str(bank["made_by"].get("dataset_hash")), []
        if learned not in ancestors:
            found.append(f"the generator of {name} learned from data set {learned[:12]}, which this was not made from")
        elif generator := _told_by_bank(makers, name):
            for taught, split in ((generator.of_role("trained"), "validation"), (generator, "test")):
                seen = taught.seen_among(ground.dataset, [row.id for row in held_out if row.split == split])
                leaks += [row for row in held_out if row.id in seen.through]
                unknown = unknown or "; ".join(seen.unchecked)
        elif learned not in shown:
            unknown = ground.lost
        else:
            rows = shown[learned].samples(splits=["train"], columns=["id", "parent", "group"])
            ids, groups = set(rows["id"]) | set(rows["parent"]) - {""}, set(rows["group"])
            leaks = [row for row in held_out if row.id in ids or row.parent in ids or row.group in groups]
        found += [f"{named(row)} or its group taught the generator of {name}" for row in leaks]
    remedy = "leave the bank out, or train its generator on this data set's training images"
    checked = (
        "banks of synthetic images, of generators that trained on no held-out image and were chosen by no test image"
    )
    return Check("generators", checked, len(sources), tuple(found), remedy, unknown)


def _told_by_bank(makers: LearnedImages, name: str) -> LearnedImages | None:
    """What the generator of a bank learned from; None if the bank did not say so when its images were added."""
    generator = makers.only_through(f"{name} (bank)")
    return None if generator.unknown or not len(generator) else generator


def _check_label_normalized(ground: _Ground) -> Check:
    rows = [row for row in ground.rows if row.origin == "normalized"]
    by_label: set[str] = set()
    for member in filter(normalization_needs_label, ground.family):
        made = member.samples(columns=["id", "origin"])
        by_label |= set(made["id"][made["origin"] == "normalized"])
    leaks = [row for row in rows if row.id in by_label and row.split != "train"]
    found = tuple(f"{named(row)} was normalised by its label" for row in leaks)
    remedy = "normalise with policy=to_a or to_b, which ask for no label"
    checked = "normalised images, none held out whose normalisation needed its label"
    return Check("normalised images", checked, len(rows), found, remedy)


def _check_splits(ground: _Ground) -> Check:
    """Split and fold are those that the functions of `curate` compute."""
    rows, found = ground.rows, []
    recorded = ground.declared("ratio")
    ratio = None if recorded is None else check_ratio(recorded)
    for row in rows:
        split = "train" if row.origin == "synthetic" else row.split if ratio is None else split_of(row.group, ratio)
        if (row.split, row.fold) != (split, fold_of(row.group)):
            found.append(f"{named(row)} in fold {row.fold} belongs to {split}, fold {fold_of(row.group)}")
    remedy = "build the data set again: a split is a function of the group and the ratio alone"
    checked = f"images, each in the split and fold that its group's hash gives at ratio {recorded}"
    return Check("splits", checked, len(rows), tuple(found), remedy, ground.lost if ratio is None else "")


def _check_storage(ground: _Ground, images: StoredImages) -> Check:
    """All images have one encoding, and the data set's own images its stored_size, if it has one."""
    dataset, rows, found = ground.dataset, ground.rows, []
    settings = dataset.metadata["settings"]
    counted = Counter(images.encodings)
    usual = counted.most_common(1)[0][0] if counted else ""
    side = settings["stored_size"]
    own = {name for name, facts in dataset.metadata["shards"].items() if "folder" not in facts}
    for row, encoding, size in zip(rows, images.encodings, images.sizes, strict=True):
        if encoding != usual or not encoding.lower().startswith(settings["codec"]):
            found.append(f"{named(row)} is stored as {encoding}, most are {usual}")
        elif side is not None and row.shard in own and size != (side, side):
            found.append(f"{named(row)} is {size[0]}x{size[1]} px, all are to be {side}")
    told = _telling(rows, images)
    sizes = len(set(images.sizes))
    checked = f"images stored as {usual}, {sizes} size(s)"
    if told:
        checked += (
            f"; of {told} images the size alone shows type or origin: build with stored_size= to give all one size"
        )
    remedy = "build the data set again in a new folder, with one codec, quality and stored_size"
    return Check("storage", checked, len(rows), tuple(found), remedy)


def _telling(rows: Sequence[Sample], images: StoredImages) -> int:
    """Number of images whose size tells the cell type or the origin among the images of their domain."""
    tells = set()
    for fact in ("cell_type", "origin"):
        of_domain, of_size = defaultdict(set), defaultdict(set)
        for row, size in zip(rows, images.sizes, strict=True):
            of_domain[row.domain].add(getattr(row, fact))
            of_size[row.domain, size].add(getattr(row, fact))
        for number, (row, size) in enumerate(zip(rows, images.sizes, strict=True)):
            if len(of_domain[row.domain]) > 1 and len(of_size[row.domain, size]) == 1:
                tells.add(number)
    return len(tells)


def _storage_facts(rows: Sequence[Sample], images: StoredImages) -> dict[str, Any]:
    """Counts of images by encoding, and by domain, origin, cell type and size."""
    sizes: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(Counter)))
    for row, (width, height) in zip(rows, images.sizes, strict=True):
        sizes[row.domain][row.origin][row.cell_type or UNLABELLED][f"{width}x{height}"] += 1
    return {"encodings": dict(Counter(images.encodings)), "sizes": sizes}
