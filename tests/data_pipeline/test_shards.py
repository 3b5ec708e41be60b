"""If these fail, shards cannot be read by others, or change without a reason."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from nvidia.dali import fn, pipeline_def
from PIL import Image

from data_pipeline.catalog import Dataset, Sample
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings, encode_image, index_name, plan_shards, trie_leaves
from tests.data_pipeline.raw_images import encoded, folder_source, picture, write_classes, write_image


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three types and some unlabelled images, in shards of at most eight."""
    folder = tmp_path_factory.mktemp("shards")
    raw = write_classes(folder / "raw", {"basophil": 12, "monocyte": 12, "smudge_cell": 6, "other": 5}, 0)
    source = folder_source(raw, "clinic_1", other="")
    build_dataset(folder / "data", [source], settings=ShardSettings(max_samples=8), progress=False)
    return Dataset.open(folder / "data")


ids = st.sets(st.binary(min_size=4, max_size=4), min_size=1, max_size=200).map(
    lambda drawn: sorted(hashlib.sha256(value).hexdigest() for value in drawn)
)


@given(ids, st.integers(1, 40))
def test_trie_leaves_hold_every_sample_once_in_order(drawn: list[str], most: int) -> None:
    leaves = trie_leaves(drawn, most)
    assert [identity for _, part in leaves for identity in drawn[part]] == drawn
    for prefix, part in leaves:
        members = drawn[part]
        assert 0 < len(members) <= most
        assert all(f"{int(identity, 16):0256b}".startswith(prefix) for identity in members)
        if prefix:
            parent = [i for i in drawn if f"{int(i, 16):0256b}".startswith(prefix[:-1])]
            assert len(parent) > most, "a leaf is parted only when it must be"


def row(identity: str, **changes: object) -> Sample:
    values: dict[str, object] = {
        "id": identity,
        "source": "a",
        "domain": "giemsa",
        "path": "x.jpg",
        "source_label": "BA",
        "cell_type": "basophil",
        "group": identity,
        "split": "train",
        "fold": 0,
        "width": 10,
        "height": 10,
    }
    return Sample(**{**values, **changes})  # type: ignore[arg-type]


@given(ids, ids, st.integers(2, 40))
def test_growth_leaves_the_plan_of_untouched_leaves_alone(old: list[str], new: list[str], most: int) -> None:
    settings = ShardSettings(max_samples=most)
    before = plan_shards([row(identity) for identity in old], settings)
    grown = sorted(set(old) | set(new))
    after = {shard.plan: shard for shard in plan_shards([row(i) for i in reversed(grown)], settings)}
    for shard in before:
        prefix = shard.stem.rpartition("-")[2].replace("root", "")
        touched = any(f"{int(i, 16):0256b}".startswith(prefix) for i in set(new) - set(old))
        assert touched or shard.plan in after
    beside = [row(identity, source="b") for identity in new if identity not in old]
    with_source = {shard.plan for shard in plan_shards([*map(row, old), *beside], settings)}
    assert {shard.plan for shard in before} <= with_source, "a new source touches no shard of the old"


def test_the_plan_changes_with_whatever_changes_the_bytes() -> None:
    def plan(changes: dict[str, object], **settings: object) -> str:
        return plan_shards([row("0" * 64, **changes)], ShardSettings(**settings))[0].plan  # type: ignore[arg-type]

    plain = plan({})
    changed = [plan({"cell_type": "monocyte"}), plan({"group": "b"}), plan({"split": "test"})]
    changed += [plan({}, quality=90), plan({}, codec="png"), plan({}, stored_size=64)]
    assert len({plain, *changed}) == 1 + len(changed)
    assert plan({"path": "moved.jpg"}) == plain == plan({}, max_samples=3)


def test_a_new_source_leaves_four_thousand_old_images_alone() -> None:
    """The plan of 4,000 images beside a further folder of 500 (the bytes follow the plan)."""
    identities = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4500)]
    old = [row(identity) for identity in identities[:4000]]
    new = [row(identity, source="b") for identity in identities[4000:]]
    settings = ShardSettings()
    before = {shard.plan for shard in plan_shards(old, settings)}
    after = {shard.plan for shard in plan_shards(new + old, settings)}
    assert before <= after
    assert len(after - before) == 1


def test_members_are_plain_webdataset_and_say_nothing_of_the_machine(dataset: Dataset) -> None:
    kept = dataset.samples()
    seen = 0
    for name in dataset.metadata["shards"]:
        path = dataset.shard_path(name)
        assert path.read_bytes()[257:265] == b"ustar\x0000"
        assert name.endswith(hashlib.sha256(path.read_bytes()).hexdigest()[:16] + ".tar")
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [member.name for member in members] == sorted(
            (member.name for member in members),
            key=lambda name: (name[:64], name[65:]),
        )
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o444)
        seen += sum(member.name.endswith(".jpg") for member in members)
    assert seen == len(kept) == 35


def test_every_index_is_what_dalis_own_tool_writes(dataset: Dataset, tmp_path: Path) -> None:
    tool = Path(sys.executable).with_name("wds2idx")
    for name in dataset.metadata["shards"]:
        out = tmp_path / "own.idx"
        subprocess.run([sys.executable, tool, dataset.shard_path(name), out], check=True, capture_output=True)
        assert dataset.shard_path(index_name(name)).read_bytes() == out.read_bytes()


def test_webdataset_reads_the_shards(dataset: Dataset) -> None:
    urls = [str(dataset.shard_path(name)) for name in dataset.metadata["shards"]]
    rows = dataset.samples().set_index("id")
    loaded = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("pil"))
    assert {sample["__key__"] for sample in loaded} == set(rows.index)
    for sample in loaded:
        facts = rows.loc[sample["__key__"]]
        assert sample.get("cls", "") == (CELL_TYPES.index(facts.cell_type) if facts.cell_type else "")
        assert sample["json"]["cell_type"] == facts.cell_type
        assert sample["json"]["group"] == facts.group
        assert sample["jpg"].size == (facts.width, facts.height)


def test_dalis_reader_reads_the_shards(dataset: Dataset) -> None:
    names = list(dataset.metadata["shards"])

    @pipeline_def(batch_size=len(dataset.samples()), num_threads=1, device_id=None)
    def graph() -> object:
        images, labels = fn.readers.webdataset(
            paths=[str(dataset.shard_path(name)) for name in names],
            index_paths=[str(dataset.shard_path(index_name(name))) for name in names],
            ext=["jpg", "cls"],
            missing_component_behavior="empty",
        )
        return fn.decoders.image(images, device="cpu"), labels

    images, labels = graph().run()
    found = [bytes(np.asarray(labels[number])).decode() for number in range(len(labels))]
    expected = []
    for name in names:
        rows = dataset.samples()
        types = rows[rows["shard"] == name].sort_values("offset")["cell_type"]
        expected += [str(CELL_TYPES.index(cell_type)) if cell_type else "" for cell_type in types]
    assert found == expected
    assert all(np.asarray(images[number]).shape == (40, 40, 3) for number in range(len(images)))


def test_the_catalogue_points_at_the_stored_bytes(dataset: Dataset) -> None:
    rows = dataset.samples()
    for number, facts in enumerate(rows.itertuples(index=False)):
        stored = dataset.read_encoded(facts)
        assert stored == dataset.read_encoded(rows.iloc[number])
        assert zlib.crc32(stored) == facts.crc32
        with tarfile.open(dataset.shard_path(str(facts.shard))) as tar:
            member = tar.extractfile(f"{facts.key}.jpg")
            assert member is not None
            assert member.read() == stored


def test_one_codec_and_size_for_whatever_came_in() -> None:
    """A file's format or size must not tell the label: Munich's do."""
    rgba = picture(0, side=60)
    rgba.putalpha(255)
    data = io.BytesIO()
    rgba.save(data, "TIFF")
    for raw in (encoded(0, "JPEG", 50), encoded(0, "PNG", 70), data.getvalue()):
        image = Image.open(io.BytesIO(encode_image(raw, "jpeg", 32)))
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
        assert image.layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)], "chroma was subsampled"
        assert not image.info.get("exif")
        assert not image.info.get("icc_profile")
    lossless = Image.open(io.BytesIO(encode_image(data.getvalue(), "png", None)))
    np.testing.assert_array_equal(np.asarray(lossless), np.asarray(picture(0, side=60)))


def test_a_long_image_is_cut_to_its_middle_not_squeezed() -> None:
    wide = Image.new("RGB", (90, 30), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 60, 30))
    data = io.BytesIO()
    wide.save(data, "PNG")
    stored = np.asarray(Image.open(io.BytesIO(encode_image(data.getvalue(), "png", 16))))
    assert (stored == (0, 0, 255)).all()


def test_lossless_shards_carry_png_members(tmp_path: Path) -> None:
    write_image(tmp_path / "raw" / "basophil" / "a.png", 5)
    settings = ShardSettings(codec="png")
    build_dataset(tmp_path / "data", [folder_source(tmp_path / "raw", "f")], settings=settings, progress=False)
    dataset = Dataset.open(tmp_path / "data")
    (name,) = dataset.metadata["shards"]
    with tarfile.open(dataset.shard_path(name)) as tar:
        assert [member.name[64:] for member in tar] == [".cls", ".json", ".png"]
    stored = Image.open(io.BytesIO(dataset.read_encoded(dataset.samples().iloc[0])))
    np.testing.assert_array_equal(np.asarray(stored), np.asarray(picture(5)))


@pytest.mark.parametrize("wrong", [{"codec": "gif"}, {"quality": 0}, {"stored_size": 0}, {"max_samples": 0}], ids=str)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        ShardSettings(**wrong)  # type: ignore[arg-type]


def test_workers_write_what_one_process_writes(dataset: Dataset, tmp_path: Path) -> None:
    source = folder_source(dataset.root.parent / "raw", "clinic_1", other="")
    settings = ShardSettings(max_samples=8)
    build_dataset(tmp_path / "data", [source], settings=settings, workers=2, progress=False)
    assert json.loads((tmp_path / "data" / "dataset.json").read_text()) == dataset.metadata
    for name in os.listdir(dataset.root / "shards"):
        assert (tmp_path / "data" / "shards" / name).read_bytes() == dataset.shard_path(name).read_bytes()
