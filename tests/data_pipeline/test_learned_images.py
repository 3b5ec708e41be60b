"""If these fail, a score on images that a network had seen, or on copies of them, passes for a score on new ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest import duplicates
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.duplicates import SAME_PICTURE_BITS, nearest_learned
from data_pipeline.ingest.images import perceptual_hash
from data_pipeline.learned_images import FILE, LearnedImages
from data_pipeline.phantoms.folders import render_cell
from data_pipeline.sources import SourceDeclaration


def learned_by(dataset: Dataset, split: str = "train") -> LearnedImages:
    return LearnedImages.of(dataset, {"trained": dataset.samples(splits=[split])["id"].tolist()})


def copies(dataset: Dataset, folder: Path, change: Callable[[Image.Image], Image.Image], form: str = "jpg") -> Dataset:
    """Another data set, of another source, of what `change` makes of the raw files; none names patient or slide."""
    raw = Path(str(dataset.root)).parent / "raw"
    for row in dataset.samples().itertuples(index=False):
        target = folder / "raw" / str(row.cell_type) / f"{row.id[:12]}.{form}"
        target.parent.mkdir(parents=True, exist_ok=True)
        change(Image.open(raw / str(row.path)).convert("RGB")).save(target)
    source = SourceDeclaration(kind="folder", name="other", root=folder / "raw", domain="other")
    build_dataset(folder / "data", [source], progress=False)
    return Dataset.open(folder / "data")


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image.resize((80, 80), Image.Resampling.LANCZOS),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: image.transpose(Image.Transpose.ROTATE_90).resize((48, 48), Image.Resampling.LANCZOS),
        lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    ],
    ids=["resized", "mirrored", "turned and resized", "transverse"],
)
def test_copies_in_another_data_set_are_found_and_no_other_image(
    tiny_dataset: Dataset, tmp_path: Path, change: Callable[[Image.Image], Image.Image]
) -> None:
    """Other ids, source, size, format: only the picture is the same."""
    other = copies(tiny_dataset, tmp_path, change)
    split_of = {row.id[:12]: row.split for row in tiny_dataset.samples().itertuples(index=False)}
    rows = other.samples()
    copied = rows["path"].map(lambda path: split_of[Path(path).stem]) == "train"
    seen = learned_by(tiny_dataset).through("runs/a (model.weights=)").seen_among(other, rows["id"])
    assert set(seen.through) == set(rows["id"][copied])
    assert set(seen.through.values()) == {"runs/a (model.weights=)"}
    assert seen.words == f"{copied.sum()} through runs/a (model.weights=)"
    assert not seen.unchecked


def test_a_copy_that_came_later_of_an_old_training_image_is_not_new(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """The build takes the training image out and keeps the copy in the test; old weights remember the first."""
    later = copies(tiny_dataset, tmp_path, lambda image: image.resize((40, 40), Image.Resampling.LANCZOS))
    raw = Path(str(tiny_dataset.root)).parent / "raw"
    sources = [
        SourceDeclaration(kind="table", name="phantom", root=next(raw.glob("*.csv")), domain="phantom"),
        SourceDeclaration(kind="folder", name="other", root=tmp_path / "raw", domain="other"),
    ]
    build_dataset(tmp_path / "grown", sources, ratio=(0.6, 0.2, 0.2), progress=False)
    grown, old = Dataset.open(tmp_path / "grown"), tiny_dataset.samples().set_index("id")["split"]
    split_of = {identity[:12]: split for identity, split in old.items()}
    test = grown.samples(splits=["test"])
    copied = test[(test["source"] == "other") & test["path"].map(lambda path: split_of.get(Path(path).stem) == "train")]
    assert 0 < len(copied) < len(test)
    assert len(later.samples()) == len(tiny_dataset.samples())
    assert set(learned_by(tiny_dataset).seen_among(grown, test["id"]).through) == set(copied["id"])


def test_own_test_images_and_other_cells_are_new(tiny_dataset: Dataset, two_stains: Dataset) -> None:
    learned = learned_by(tiny_dataset)
    assert not learned.seen_among(tiny_dataset, tiny_dataset.samples(splits=["test"])["id"]).through
    assert not learned.seen_among(two_stains, two_stains.samples()["id"]).through
    every = tiny_dataset.samples(splits=["train"])["id"]
    assert set(learned.seen_among(tiny_dataset, every).through) == set(every)


def test_of_a_patient_of_whom_one_image_was_seen_none_is_scored(tiny_dataset: Dataset) -> None:
    """And where a source's names mean the same in both, a patient is known by name alone."""
    rows = tiny_dataset.samples(splits=["test"])
    group = rows["group"].value_counts().index[0]
    of_group = set(rows["id"][rows["group"] == group])
    one = LearnedImages.of(tiny_dataset, {"trained": sorted(of_group)[:1]})
    assert len(of_group) > 1
    assert set(one.seen_among(tiny_dataset, rows["id"]).through) == of_group
    renamed = dataclasses.replace(one, table=one.table.assign(group="another/name"))
    assert set(renamed.seen_among(tiny_dataset, rows["id"]).through) == of_group
    # Another image of the same patient, which this data set does not hold; an image of the source is in both.
    shared = LearnedImages.of(tiny_dataset, {"trained": tiny_dataset.samples(splits=["train"])["id"].tolist()[:1]})
    stranger = one.table.assign(id="f" * 64, perceptual_hash=None)
    both = LearnedImages.joined([shared, LearnedImages(stranger)])
    assert set(both.seen_among(tiny_dataset, rows["id"]).through) == of_group
    # Where nothing of the source is shared, an equal name may be another patient's.
    assert not LearnedImages(stranger).seen_among(tiny_dataset, rows["id"]).through


def test_the_table_comes_back_as_it_was_and_equal_tables_are_equal_files(tiny_dataset: Dataset, tmp_path: Path) -> None:
    rows = tiny_dataset.samples(splits=["validation"])["id"].tolist()
    own = LearnedImages.of(tiny_dataset, {"trained": rows[:4], "chosen": rows[4:]})
    older = LearnedImages.joined([own, LearnedImages.unknown_because("lost")]).through("a").through("b")
    both = LearnedImages.joined([own, older, learned_by(tiny_dataset).through("c")])
    both.save(tmp_path)
    read = LearnedImages.load(tmp_path / FILE)
    pd.testing.assert_frame_equal(read.table, both.table)
    assert read.unknown == ("b: a: lost",)
    assert read.to_bytes() == both.to_bytes()
    assert read.table["through"].value_counts().to_dict() == {
        "": len(rows),
        "c": len(tiny_dataset.samples(splits=["train"])),
    }
    assert len(read.of_role("chosen")) == len(rows) - 4
    (tmp_path / FILE).write_bytes(both.to_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        LearnedImages.load(tmp_path / FILE)


def test_what_was_trained_on_stays_so_where_another_only_chose_by_it(tiny_dataset: Dataset) -> None:
    rows = tiny_dataset.samples(splits=["validation"])["id"].tolist()
    chosen = LearnedImages.of(tiny_dataset, {"chosen": rows})
    trained = LearnedImages.of(tiny_dataset, {"trained": rows[:2]}).through("older")
    joined = LearnedImages.joined([chosen, trained])
    assert len(joined) == len(rows)
    assert set(joined.of_role("trained").table["id"]) == set(rows[:2])


def test_a_score_on_seen_images_is_refused_or_leaves_them_out(tiny_dataset: Dataset) -> None:
    learned, rows = learned_by(tiny_dataset), tiny_dataset.samples(splits=["train", "test"])["id"]
    seen = learned.seen_among(tiny_dataset, rows)
    with pytest.raises(
        UserError, match=r"^\d+ of the \d+ images of here .* \(\d+ directly\): go, or give seen_images="
    ):
        seen.require_unseen("refuse", "here", "go")
    seen.require_unseen("leave_out", "here", "go")
    with pytest.raises(UserError, match=r"go$"):
        learned.seen_among(tiny_dataset, learned.table["id"]).require_unseen("leave_out", "here", "go")


@given(st.integers(0, 2**32 - 1), st.sampled_from([None, *Image.Transpose]), st.integers(40, 140))
def test_a_pictures_turned_hash_follows_from_its_own(seed: int, turn: Image.Transpose | None, side: int) -> None:
    cells = [Image.fromarray(render_cell("monocyte", "giemsa", 0, seed + number, 64)) for number in (0, 1)]
    known = np.frombuffer(b"".join(map(perceptual_hash, cells)), np.uint8).reshape(2, -1)
    copy = cells[1] if turn is None else cells[1].transpose(turn)
    copied = perceptual_hash(copy.resize((side, side), Image.Resampling.LANCZOS))
    assert nearest_learned(np.frombuffer(copied, np.uint8)[None], known).tolist() == [1]


@pytest.mark.parametrize("limit", [0, 10**9], ids=["as for many", "as for few"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 300))
def test_the_search_finds_every_near_hash_and_no_other(limit: int, seed: int, few: int, many: int) -> None:
    """Among few or many, equal ones too; which side is turned makes no difference."""
    draw = np.random.default_rng(seed)
    known = draw.integers(0, 256, (many, 32), dtype=np.uint8)
    known[draw.integers(0, many)] = known[0]
    hashes = draw.integers(0, 256, (few, 32), dtype=np.uint8)
    near = draw.integers(0, 2, few).astype(bool)
    sources = draw.integers(0, many, few)
    for row in np.flatnonzero(near):
        bits = np.unpackbits(known[sources[row]])
        bits[draw.choice(256, draw.integers(0, SAME_PICTURE_BITS + 1), replace=False)] ^= 1
        hashes[row] = np.packbits(bits)
    with mock.patch.object(duplicates, "_MANY_PAIRS", limit):
        found = nearest_learned(hashes, known)
    assert ((found >= 0) == near).all()
    assert (known[found[near]] == known[sources[near]]).all()
