"""If these fail, images that a classifier was trained on, or was told the label of, are scored, and nobody is told."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_pipeline.audit import audit_dataset
from data_pipeline.audit_check import Check
from data_pipeline.banks.balance import balance_dataset
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset, Sample, catalog_bytes, from_table, write_rows
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.curate import NEAR_DUPLICATE_BITS, split_of
from data_pipeline.ingest.images import HASH_BYTES
from data_pipeline.learned_images import LearnedImages, Role
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.stored_images import SYMMETRIES, near_pairs_across
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.conftest import TINY_TYPES
from tests.data_pipeline.negatives import derive
from tests.data_pipeline.raw_images import encoded, folder_source, picture, write_classes
from tests.forged_catalog import first, forge
from tests.generated_images import bank_facts, make_bank


def audit(dataset: Dataset) -> dict[str, Check]:
    return {check.name: check for check in audit_dataset(dataset, progress=False)[0]}


def assert_found(dataset: Dataset, *expected: str) -> dict[str, Check]:
    """These checks find something, and no other does."""
    checks = audit(dataset)
    assert {name for name, check in checks.items() if check.found} == set(expected)
    return checks


@pytest.fixture
def balanced(parent: Dataset, tmp_path: Path) -> Dataset:
    """The tiny data set with generated images, by a generator that learned from it."""
    facts = bank_facts(TINY_TYPES[:2], "giemsa", dataset_hash=parent.content_hash)
    make_bank(tmp_path / "noise", 10, facts)
    balance_dataset(
        BalanceConfig(str(parent.root), [str(tmp_path / "noise")], str(tmp_path / "balanced"), "30"), progress=False
    )
    return Dataset.open(tmp_path / "balanced")


def test_clean_data_sets_are_clean(balanced: Dataset, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Built, balanced and normalised ones; every check has looked at something somewhere."""
    derive(tmp_path / "derived", tiny_dataset)
    counted: dict[str, int] = {}
    for dataset in (tiny_dataset, balanced, Dataset.open(tmp_path / "derived")):
        for name, check in audit(dataset).items():
            assert check.status == "ok", check.line
            assert check.line.startswith(f"{name}: ok: {check.count} ")
            counted[name] = max(check.count, counted.get(name, 0))
    assert all(counted.values()), counted
    checks, stored = audit_dataset(tiny_dataset, progress=False)
    assert [check.status for check in checks] == ["ok"] * len(checks)
    kept = len(tiny_dataset.samples())
    assert list(stored["encodings"].values()) == [kept]
    sizes = [count for types in stored["sizes"].values() for each in types["real"].values() for count in each.items()]
    assert {size for size, _ in sizes} == {"32x32"}
    assert sum(count for _, count in sizes) == kept


def test_a_slide_in_two_splits(parent: Dataset) -> None:
    moved = []

    def change(rows: list[Sample], _: dict[str, Any]) -> None:
        row = first(rows, split="train")
        row.split = "test"
        moved.append(row)

    check = assert_found(forge(parent, change), "groups", "splits")["groups"]
    assert len(check.found) == 1
    assert f"group {moved[0].group} is in 2 splits" in check.line
    assert moved[0].id[:16] in check.line


def test_a_fold_that_is_not_the_groups(parent: Dataset) -> None:
    def change(rows: list[Sample], _: dict[str, Any]) -> None:
        row = first(rows, split="train")
        row.fold = (row.fold + 1) % 5

    assert len(assert_found(forge(parent, change), "splits")["splits"].found) == 1


@pytest.mark.parametrize("symmetry", [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90])
def test_a_mirrored_or_turned_copy_in_another_split(tmp_path: Path, symmetry: Image.Transpose) -> None:
    """The build's own search does not see them."""
    root = write_classes(tmp_path / "raw", {"basophil": 12, "monocyte": 12}, first_seed=0)
    build_dataset(tmp_path / "data", [folder_source(root, "ours")], progress=False)
    original = next(row for row in from_table(Dataset.open(tmp_path / "data").table) if row.split == "test")
    turned = Image.open(root / original.path).transpose(symmetry)
    for quality in range(80, 100):  # bytes, and so a group, of its own: until it falls to the training side
        turned.save(root / "basophil" / "copy.jpg", quality=quality)
        build_dataset(tmp_path / "data", [], progress=False)
        copy = next(row for row in from_table(Dataset.open(tmp_path / "data").table) if row.path.endswith("copy.jpg"))
        if copy.split == "train":
            break
    assert copy.split == "train"
    assert copy.kept
    check = assert_found(Dataset.open(tmp_path / "data"), "near duplicates")["near duplicates"]
    assert len(check.found) == 1
    assert original.id[:16] in check.line
    assert copy.id[:16] in check.line
    excluded = tmp_path / "exclude.csv"
    excluded.write_text(f"id\n{copy.id}\n")
    build_dataset(tmp_path / "data", [], exclude=excluded, progress=False)
    assert_found(Dataset.open(tmp_path / "data"))


def test_near_pairs_across_splits_are_those_of_comparing_all() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (60, len(SYMMETRIES), HASH_BYTES), dtype=np.uint8)
    split = generator.integers(0, 3, 60)
    hashes[30:, 0] = hashes[:30, 3]
    for row in range(30, 60):
        flipped = generator.choice(256, row - 29, replace=False)
        bits = np.unpackbits(hashes[row, 0])
        bits[flipped] ^= 1
        hashes[row, 0] = np.packbits(bits)
    hashes[1] = hashes[0]
    expected = set()
    for one in range(60):
        for other in range(one + 1, 60):
            distance = np.bitwise_count(hashes[one][:, None] ^ hashes[other][None]).sum(axis=2).min()
            if split[one] != split[other] and distance <= NEAR_DUPLICATE_BITS:
                expected.add((one, other, int(distance)))
    found = {(pair.one, pair.other, pair.distance) for pair in near_pairs_across(hashes, split, NEAR_DUPLICATE_BITS)}
    assert found == expected
    assert 5 < len(found) < 30


def test_a_made_image_across_from_its_parent(tiny_dataset: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "derived", tiny_dataset)
    moved = []

    def change(rows: list[Sample], _: dict[str, Any]) -> None:
        row = first(rows, origin="normalized", split="test")
        for other in rows:
            if other.group == row.group:
                other.split = "train"
        moved.extend(other for other in rows if other.group == row.group and other.origin == "normalized")

    check = assert_found(forge(Dataset.open(tmp_path / "derived"), change), "parents", "splits")["parents"]
    assert len(check.found) == len(moved)
    assert f"was made from {moved[0].parent[:16]}" in "".join(check.found)


def test_a_made_image_whose_parent_is_nowhere(parent: Dataset, tmp_path: Path) -> None:
    """Invented, it is found; where the data set that it came from has gone, that is said instead."""
    derive(tmp_path / "derived", parent)

    def change(rows: list[Sample], _: dict[str, Any]) -> None:
        first(rows, origin="normalized").parent = "f" * 64

    assert_found(forge(Dataset.open(tmp_path / "derived"), change), "parents")
    (parent.root / CATALOG_FILE).unlink()  # type: ignore[operator]
    checks = audit(Dataset.open(tmp_path / "derived"))
    for name in ("parents", "splits", "groups"):
        assert checks[name].status == "unchecked" or name == "groups", checks[name].line
    assert "is not where it was; bring it back" in checks["splits"].line


def test_a_generated_image_that_is_held_out(balanced: Dataset) -> None:
    def change(rows: list[Sample], _: dict[str, Any]) -> None:
        first(rows, origin="synthetic").split = "test"

    check = assert_found(forge(balanced, change), "synthetic images", "splits")["synthetic images"]
    assert len(check.found) == 1


def _another_teacher(rows: list[Sample], metadata: dict[str, Any]) -> None:
    metadata["made_by"]["banks"][0]["made_by"]["dataset_hash"] = "f" * 64


def _unknown_bank(rows: list[Sample], metadata: dict[str, Any]) -> None:
    metadata["made_by"]["banks"] = []


def _taught_by_held_out(rows: list[Sample], metadata: dict[str, Any]) -> None:
    group = first(rows, origin="real", split="train").group
    for row in rows:
        if row.group == group:
            row.split = "test"


@pytest.mark.parametrize(
    ("change", "words", "beside"),
    [
        (_another_teacher, "noise learned from data set ffffffffffff, which this was not made from", []),
        (_unknown_bank, "no bank is recorded for the synthetic images of noise", []),
        (_taught_by_held_out, "or its group taught the generator of noise", ["splits"]),
    ],
)
def test_a_generator_that_saw_held_out_images(
    balanced: Dataset, change: Callable[[list[Sample], dict[str, Any]], None], words: str, beside: list[str]
) -> None:
    assert words in assert_found(forge(balanced, change), "generators", *beside)["generators"].line


@pytest.mark.parametrize(
    ("split", "role", "leaks"),
    [("validation", "chosen", False), ("validation", "trained", True), ("test", "chosen", True)],
)
def test_validation_images_may_choose_a_generator_and_do_nothing_else(
    parent: Dataset, tmp_path: Path, split: str, role: Role, leaks: bool
) -> None:
    """A generator's best checkpoint is chosen on them, like a classifier's; a test image must not even choose."""
    make_bank(tmp_path / "noise", 10, bank_facts(TINY_TYPES[:2], "giemsa", dataset_hash=parent.content_hash))
    training = parent.samples(splits=["train"], columns=["id"])["id"][:20]
    told = parent.samples(splits=[split], columns=["id"])["id"][:1]
    parts = [LearnedImages.of(parent, {"trained": list(training)}), LearnedImages.of(parent, {role: list(told)})]
    LearnedImages.joined(parts).save(tmp_path / "noise")
    balance_dataset(
        BalanceConfig(str(parent.root), [str(tmp_path / "noise")], str(tmp_path / "balanced"), "30"), progress=False
    )
    check = audit(Dataset.open(tmp_path / "balanced"))["generators"]
    assert check.status == ("found" if leaks else "ok"), check.line
    assert not leaks or f"{told.iloc[0][:16]}" in check.line


def test_normalised_by_label_and_held_out(tiny_dataset: Dataset, tmp_path: Path) -> None:
    derive(tmp_path / "derived", tiny_dataset, made_by={"tool": "normalize_stains", "policy": "thesis"})
    dataset = Dataset.open(tmp_path / "derived")
    rows = dataset.samples()
    held_out = rows[(rows["origin"] == "normalized") & (rows["split"] != "train")]
    check = assert_found(dataset, "normalised images")["normalised images"]
    assert len(check.found) == len(held_out) > 0


def test_files_that_betray_what_they_show(parent: Dataset, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Another quality of one type's images; a size that is not the one asked for; sizes that tell the type."""
    derive(tmp_path / "derived", tiny_dataset, settings=ShardSettings(quality=80, max_samples=12))
    checks = assert_found(Dataset.open(tmp_path / "derived"), "storage")
    assert "JPEG (tables" in checks["storage"].line

    def change(rows: list[Sample], metadata: dict[str, Any]) -> None:
        metadata["settings"]["stored_size"] = 24

    assert "is 32x32 px, all are to be 24" in assert_found(forge(parent, change), "storage")["storage"].line
    for label, side in (("basophil", 40), ("monocyte", 48)):
        for seed in range(8):
            path = tmp_path / "raw" / label / f"{seed}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(seed + side, side=side))
    build_dataset(tmp_path / "sized", [folder_source(tmp_path / "raw", "ours")], progress=False)
    check = assert_found(Dataset.open(tmp_path / "sized"))["storage"]
    assert "of 16 images the size alone shows type or origin" in check.line


def test_a_catalogue_that_was_changed_by_hand(parent: Dataset) -> None:
    rows = from_table(parent.table)
    first(rows, cell_type="basophil").cell_type = "monocyte"
    parent.metadata["partitions"] = write_rows(parent.root, rows)
    (parent.root / CATALOG_FILE).write_bytes(catalog_bytes(parent.metadata))  # type: ignore[operator]
    assert "content hash" in assert_found(Dataset.open(parent.root), "catalogue")["catalogue"].line


def test_munich_groups_are_read_from_the_names(tmp_path: Path) -> None:
    """Two copies of one original, dealt to groups of their own, are found in whichever splits they are."""
    for name, seed in (("BAS_0053_0_1_1", 1), ("BAS_0053_0_2_2", 2), ("BAS_0054_0_1_1", 3)):
        (tmp_path / "raw" / "BAS").mkdir(parents=True, exist_ok=True)
        picture(seed).save(tmp_path / "raw" / "BAS" / f"{name}.tiff")
    source = SourceDeclaration("munich", "munich", tmp_path / "raw", "munich")
    build_dataset(tmp_path / "data", [source], progress=False)
    assert_found(Dataset.open(tmp_path / "data"))

    def change(rows: list[Sample], metadata: dict[str, Any]) -> None:
        rows[0].group = rows[0].id
        rows[0].split = split_of(rows[0].id)

    shutil.copytree(tmp_path / "data", tmp_path / "forged")
    checks = audit(forge(Dataset.open(tmp_path / "forged"), change))
    assert "its name says munich/BAS_0053" in checks["groups"].line
