"""If these fail, a data set is not what its sources say, or a rebuild changes what it need not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import Dataset, Sample, content_hash, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import format_report
from data_pipeline.ingest.curate import Exclusion
from data_pipeline.partitions import PARTITION_FOLDER
from data_pipeline.shards.build_files import build_lock
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import LAYOUT, ShardSettings, index_name
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import encoded, files_below, folder_source, write_classes, write_image
from tests.examples import examples
from tests.forged_catalog import forge

SMALL = ShardSettings(max_samples=8)


def build(root: Path, *sources: SourceDeclaration, **options: Any) -> dict[str, Any]:
    return build_dataset(root, sources, progress=False, **options)


def refused(root: Path, *sources: SourceDeclaration, **options: Any) -> str:
    """The message of a build that must fail, after a look that it changed nothing."""
    before = files_below(root) if root.exists() else None
    with pytest.raises(UserError) as caught:
        build(root, *sources, **options)
    assert before == (files_below(root) if root.exists() else None), "a refused build changed something"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def two_sources(tmp_path: Path) -> tuple[SourceDeclaration, SourceDeclaration]:
    write_classes(tmp_path / "one", {"basophil": 14, "monocyte": 14}, 0)
    write_classes(tmp_path / "two", {"basophil": 6, "platelet": 6}, 100)
    return folder_source(tmp_path / "one", "one"), folder_source(tmp_path / "two", "two", domain="violet")


def test_shards_of_an_older_layout_are_named_and_rebuilt_by_the_same_command(
    two_sources: tuple[SourceDeclaration, SourceDeclaration], tmp_path: Path
) -> None:
    """They can be read, but not be rebuilt to the same bytes: adding a source must not leave two kinds of shards."""
    root = tmp_path / "data"
    build(root, *two_sources, settings=SMALL)
    whole, shards = files_below(root), len(Dataset.open(root).metadata["shards"])
    assert verify_dataset(root, progress=False) == ""

    def grow_old(_: list[Sample], metadata: dict[str, Any]) -> None:
        del metadata["layout"]
        for facts in metadata["shards"].values():
            facts["plan"] = facts["plan"][::-1]

    forge(Dataset.open(root), grow_old)
    note = verify_dataset(root, progress=False)
    assert f"shards are of layout 1; build_shards.py shards={root} writes them anew in layout {LAYOUT}" in note
    report = build(root)
    assert report["shards_written"] == shards
    assert any(f"not of layout {LAYOUT}" in warning for warning in report["warnings"])
    assert files_below(root) == whole


def test_every_file_becomes_a_row_and_the_bad_ones_have_a_reason(tmp_path: Path) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 3, "monocyte": 3}, 0)
    (raw / "basophil" / "zero.jpg").write_bytes(b"")
    (raw / "basophil" / "text.jpg").write_text("no image at all")
    (raw / "basophil" / "cut.jpg").write_bytes(encoded(50)[:-150])
    (raw / "monocyte" / ".DS_169665.jpg").write_bytes(encoded(51))
    (raw / "monocyte" / "copy.jpg").write_bytes((raw / "monocyte" / "0000.jpg").read_bytes())
    (raw / "monocyte" / "resaved.png").write_bytes((raw / "monocyte" / "0001.jpg").read_bytes())
    write_image(raw / "monocyte" / "blurred.jpg", 52)
    for cell_type in ("basophil", "monocyte"):
        (raw / cell_type / "both.jpg").write_bytes(encoded(53))
    exclude = tmp_path / "exclude.csv"
    exclude.write_text("path,reason\nmonocyte/blurred.jpg,out of focus\nmonocyte/none.jpg,\n")
    report = build(tmp_path / "data", folder_source(raw, "f"), exclude=exclude)
    rows = {row.path: row for row in from_table(Dataset.open(tmp_path / "data").table)}
    assert set(rows) == {path.relative_to(raw).as_posix() for path in raw.rglob("*.*")}
    reasons = {path: row.reason for path, row in rows.items() if row.status == "excluded"}
    assert reasons.pop("basophil/cut.jpg").startswith("unreadable: damaged")
    assert reasons == {
        "basophil/zero.jpg": "unreadable: the file is empty",
        "basophil/text.jpg": "unreadable: not an image",
        "monocyte/.DS_169665.jpg": "hidden file",
        "monocyte/copy.jpg": "duplicate: of f:monocyte/0000.jpg",
        "monocyte/resaved.png": "duplicate: of f:monocyte/0001.jpg",
        "monocyte/blurred.jpg": "expert's list: out of focus",
        "basophil/both.jpg": "conflicting labels: monocyte at f:monocyte/both.jpg",
        "monocyte/both.jpg": "conflicting labels: basophil at f:basophil/both.jpg",
    }
    assert report["samples"] == 6
    assert report["excluded"] == 9
    assert report["excluded_by_reason"] == {
        "conflicting labels": 2,
        "duplicate": 2,
        "expert's list": 1,
        "hidden file": 1,
        "unreadable": 3,
    }
    assert report["warnings"][0] == "1 line(s) of the exclusion list match no image (the first: monocyte/none.jpg)"
    assert json.loads((tmp_path / "data" / "build_report.json").read_text()) == report
    assert build(tmp_path / "data")["excluded"] == 9, "reasons are found again without a look inside"


def test_the_printed_report_has_each_number(two_sources: tuple[SourceDeclaration, ...], tmp_path: Path) -> None:
    report = build(tmp_path / "data", *two_sources)
    text = format_report(report)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line}
    assert rows["platelet"][-1] == "6"
    assert rows["monocyte"][-1] == "14"
    assert "giemsa" in rows
    assert "violet" in rows
    assert "40 samples" in text
    counts = Dataset.open(tmp_path / "data").samples()
    for (domain, cell_type, split), group in counts.groupby(["domain", "cell_type", "split"]):
        assert report["counts"][domain][cell_type][split] == len(group)


def test_built_bit_by_bit_equals_built_at_once(two_sources: tuple[SourceDeclaration, ...], tmp_path: Path) -> None:
    one, two = two_sources
    build(tmp_path / "grown", one, settings=SMALL)
    write_image(tmp_path / "one" / "basophil" / "late.jpg", 500)
    build(tmp_path / "grown", two)
    (tmp_path / "two" / "platelet" / "0000.jpg").unlink()
    write_image(tmp_path / "two" / "platelet" / "0001.jpg", 501)
    shutil.move(tmp_path / "two" / "basophil" / "0000.jpg", tmp_path / "two" / "platelet" / "moved.jpg")
    report = build(tmp_path / "grown")
    assert report["shards_kept"] > 0
    build(tmp_path / "fresh", one, two, settings=SMALL)
    assert files_below(tmp_path / "grown") == files_below(tmp_path / "fresh")
    verify_dataset(tmp_path / "grown", progress=False)


changes = st.lists(
    st.tuples(st.sampled_from(["add", "copy", "drop", "relabel", "spoil"]), st.integers(0, 30), st.integers(0, 99)),
    min_size=1,
    max_size=4,
)


@examples(8)
@given(st.lists(changes, min_size=1, max_size=3))
def test_any_history_of_changes_ends_where_a_fresh_build_ends(
    tmp_path_factory: pytest.TempPathFactory, history: list[list[tuple[str, int, int]]]
) -> None:
    """Byte for byte: what was remembered of an earlier build must never show."""
    folder = tmp_path_factory.mktemp("history")
    raw = write_classes(folder / "raw", {"basophil": 6, "monocyte": 6}, 0)
    source = folder_source(raw, "f")
    options = {"settings": ShardSettings(max_samples=3)}
    build(folder / "grown", source, **options)
    for step in history:
        for change, number, seed in step:
            files = sorted(raw.rglob("*.jpg"))
            path = files[number % len(files)]
            if change == "add":
                write_image(raw / "platelet" / f"{seed}.jpg", 1000 + seed)
            elif change == "copy":
                path.with_name(f"copy{seed}.jpg").write_bytes(path.read_bytes())  # onto itself too
            elif change == "drop" and len(files) > 3:
                path.unlink()
            elif change == "relabel":
                (raw / "eosinophil").mkdir(exist_ok=True)
                shutil.move(path, raw / "eosinophil" / f"{seed}.jpg")
            elif change == "spoil":
                write_image(raw / "platelet" / "good.jpg", 2000)
                (raw / "platelet" / "bad.jpg").write_bytes(encoded(seed)[: 100 + seed])
        build(folder / "grown")
    build(folder / "fresh", source, **options)
    assert files_below(folder / "grown") == files_below(folder / "fresh")


def test_nothing_changed_means_nothing_written(two_sources: tuple[SourceDeclaration, ...], tmp_path: Path) -> None:
    build(tmp_path / "data", *two_sources)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data" / "shards").iterdir()}
    for path in (tmp_path / "data" / CATALOG_FILE, *(tmp_path / "data" / PARTITION_FOLDER).iterdir()):
        times[path] = path.stat().st_mtime_ns
    report = build(tmp_path / "data")
    assert (report["shards_written"], report["shards_removed"]) == (0, 0)
    assert report["shards_kept"] == len(Dataset.open(tmp_path / "data").metadata["shards"])
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_a_source_is_added_forgotten_and_declared_anew(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    one, two = two_sources
    root = tmp_path / "data"
    build(root, one)
    alone = files_below(root)
    first = Dataset.open(root).content_hash
    report = build(root, two)
    assert report["shards_removed"] == 0
    assert {name: data for name, data in files_below(root).items() if name in alone and "shards" in name} == {
        name: data for name, data in alone.items() if "shards" in name
    }, "adding a source touched shards of another"
    assert [source["name"] for source in Dataset.open(root).metadata["sources"]] == ["one", "two"]
    assert Dataset.open(root).content_hash != first
    renamed = SourceDeclaration("folder", "two", two.root, "pink")
    build(root, renamed)
    assert set(Dataset.open(root).samples()["domain"]) == {"giemsa", "pink"}
    assert "no source 'three'" in refused(root, remove=["three"])
    assert "named twice" in refused(root, two, remove=["two"])
    assert "no source declared" in refused(root, remove=["one", "two"])
    build(root, remove=["two"])
    assert files_below(root) == alone


def test_raw_images_that_are_gone_are_not_taken_for_deleted(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    """An unmounted disk must not empty the data set."""
    root = tmp_path / "data"
    build(root, *two_sources)
    shutil.move(tmp_path / "one", tmp_path / "elsewhere")
    text = refused(root)
    assert f"{tmp_path}/one" in text
    assert "remove=one" in text
    (tmp_path / "one").mkdir()
    assert "no image in this folder" in refused(root)
    (tmp_path / "one").rmdir()
    before = Dataset.open(root).content_hash
    report = build(root, folder_source(tmp_path / "elsewhere", "one"))
    assert report["shards_written"] == 0
    assert Dataset.open(root).content_hash == before


def test_settings_and_ratio_are_remembered_and_can_change(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    small = ShardSettings(stored_size=24)
    build(root, *two_sources, settings=small, ratio=(0.5, 0.2, 0.3))
    assert build(root)["shards_written"] == 0
    metadata = Dataset.open(root).metadata
    assert metadata["settings"]["stored_size"] == 24
    assert metadata["ratio"] == [0.5, 0.2, 0.3]
    report = build(root, settings=ShardSettings(quality=80))
    assert report["shards_kept"] == 0
    assert report["shards_written"] == len(metadata["shards"])
    before = Dataset.open(root).samples(["test"])["id"]
    build(root, ratio=(0.6, 0.1, 0.3))
    assert set(Dataset.open(root).samples(["test"])["id"]) == set(before), "the test share did not change"


def test_the_experts_list_is_remembered_until_another_comes(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    exclude = tmp_path / "exclude.csv"
    exclude.write_text("path,source\nbasophil/0000.jpg,two\n")
    assert build(root, *two_sources, exclude=exclude)["excluded"] == 1
    exclude.unlink()
    assert build(root)["excluded"] == 1
    assert Exclusion(**Dataset.open(root).metadata["exclusions"][0]).source == "two"
    exclude.write_text("path\n")
    assert build(root, exclude=exclude)["excluded"] == 0


def test_conflicting_and_repeated_images_across_sources(tmp_path: Path) -> None:
    write_classes(tmp_path / "one", {"basophil": 8}, 0)
    write_classes(tmp_path / "two", {"basophil": 4, "monocyte": 1}, 0)
    (tmp_path / "two" / "monocyte" / "0000.jpg").write_bytes((tmp_path / "one/basophil/0007.jpg").read_bytes())
    sources = [folder_source(tmp_path / name, name) for name in ("one", "two")]
    report = build(tmp_path / "data", *sources)
    assert report["excluded_by_reason"] == {"conflicting labels": 2, "duplicate": 4}
    assert set(Dataset.open(tmp_path / "data").samples()["source"]) == {"one"}, "the first declared stays"


def test_a_flipped_byte_in_a_shard_is_found_and_named(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    build(root, *two_sources, settings=SMALL)
    verify_dataset(root, progress=False)
    dataset = Dataset.open(root)
    row = dataset.samples().iloc[3]
    shard = dataset.shard_path(row["shard"])
    whole = shard.read_bytes()

    def flip(position: int) -> str:
        changed = bytearray(whole)
        changed[position] ^= 1
        shard.write_bytes(changed)
        with pytest.raises(UserError) as caught:
            verify_dataset(root, progress=False)
        return str(caught.value)

    text = flip(int(row["offset"]) + 5)
    assert str(shard) in text
    assert row["id"] in text
    assert row["path"] in text
    assert "outside the images" in flip(len(whole) - 1)
    shard.unlink()
    report = build(root)
    assert report["shards_written"] == 1
    assert shard.read_bytes() == whole, "deleted, it is written as it was"
    index = shard.with_name(index_name(shard.name))
    index.write_text("v1.2 0\n")
    with pytest.raises(UserError, match="index"):
        verify_dataset(root, progress=False)
    shard.write_bytes(whole[:-512])
    with pytest.raises(UserError, match="not "):
        Dataset.open(root)
    build(root)
    verify_dataset(root, progress=False)


def test_a_damaged_catalogue_is_refused_and_built_again(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    root = tmp_path / "data"
    build(root, *two_sources)
    catalog = root / CATALOG_FILE
    whole = catalog.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 60):
        changed = bytearray(whole)
        changed[position] ^= 1 << int(rng.integers(8))
        catalog.write_bytes(changed)
        try:
            verify_dataset(root, progress=False)
        except UserError:
            continue
        except AssertionError as error:
            pytest.fail(f"byte {position}: {error}")
        opened = Dataset.open(root)
        assert content_hash(from_table(opened.table)) == opened.content_hash
    catalog.write_bytes(whole[:-40])
    with pytest.raises(UserError, match="damaged"):
        Dataset.open(root)
    catalog.unlink()
    build(root, *two_sources)
    assert catalog.read_bytes() == whole


def test_a_stale_mirror_is_mended(two_sources: tuple[SourceDeclaration, ...], tmp_path: Path) -> None:
    root = tmp_path / "data"
    build(root, *two_sources)
    mirror = json.loads((root / "dataset.json").read_text())
    assert mirror == Dataset.open(root).metadata
    (root / "dataset.json").write_text("{}")
    Dataset.open(root)
    build(root)
    assert json.loads((root / "dataset.json").read_text()) == mirror


def test_a_folder_with_other_things_in_it_is_not_taken(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    one, two = two_sources
    assert "yet it holds basophil" in refused(one.root, two), "raw images and data set must not mix"
    assert not (one.root / "shards").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file"):
        build(tmp_path / "file", one)
    build(tmp_path / "data", one)
    foreign = [tmp_path / "data" / "shards" / name for name in ("notes.txt", "mine.tar")]
    for path in foreign:
        path.write_text("x")
    build(tmp_path / "data", two)
    assert all(path.exists() for path in foreign), "files that others put there are theirs"


def test_a_failed_first_build_leaves_no_trace(tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", {"what": 2}, 0)
    assert "unknown label" in refused(tmp_path / "a" / "b" / "data", folder_source(tmp_path / "raw", "f"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "bad" / "basophil").mkdir(parents=True)
    (tmp_path / "bad" / "basophil" / "x.jpg").write_bytes(b"")
    text = refused(tmp_path / "data", folder_source(tmp_path / "bad", "f"))
    assert "none of 1 images can be used" in text
    assert "the file is empty" in text
    assert not (tmp_path / "data").exists()
    assert "no source declared" in refused(tmp_path / "data")


def test_two_builds_at_once_are_one_too_many(two_sources: tuple[SourceDeclaration, ...], tmp_path: Path) -> None:
    build(tmp_path / "data", two_sources[0])
    with build_lock(tmp_path / "data"):
        assert "another build is at work" in refused(tmp_path / "data", two_sources[1])
    build(tmp_path / "data", two_sources[1])


def test_a_file_that_changes_under_the_build_stops_it(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an image would be stored under the id, split and label of another."""
    root = tmp_path / "data"
    build(root, two_sources[0])
    victim = two_sources[1].root / "basophil" / "0002.jpg"

    def meddle(*_: object) -> None:
        write_image(victim, 900)

    monkeypatch.setattr("data_pipeline.ingest.build.exclude_duplicates", meddle)
    assert f"{victim}: changed while" in refused(root, two_sources[1])


def test_samples_are_chosen_by_split_domain_and_type(
    two_sources: tuple[SourceDeclaration, ...], tmp_path: Path
) -> None:
    build(tmp_path / "data", *two_sources)
    dataset = Dataset.open(tmp_path / "data")
    everything = dataset.samples()
    assert list(everything["id"]) == sorted(everything["id"])
    assert list(everything.index) == list(range(40))
    assert {split: len(dataset.samples([split])) for split in ("train", "test")} == {
        split: int((everything["split"] == split).sum()) for split in ("train", "test")
    }
    chosen = dataset.samples(domains=["violet"], cell_types=["basophil"], columns=["id", "domain"])
    assert chosen.shape == (6, 2)
    for wrong in ({"splits": ["Test"]}, {"domains": ["munich"]}, {"cell_types": ["Basophil"]}):
        with pytest.raises(UserError, match="use one of"):
            dataset.samples(**wrong)
    with pytest.raises(UserError, match="no data set here"):
        Dataset.open(tmp_path / "one")


@pytest.mark.slow
def test_five_hundred_images_more_leave_the_shards_of_four_thousand_alone(real_images: Path, tmp_path: Path) -> None:
    """At full scale and with real bytes: else every new slide would cost a rewrite of the archive."""
    root, raw = tmp_path / "data", tmp_path / "more"
    shutil.copytree(real_images / "AML-Cytomorphology_LMU" / "NGS", raw / "NGS", ignore=lambda _, names: names[500:])
    barcelona = SourceDeclaration("barcelona", "barcelona", real_images / "PBC_dataset_normal_DIB", "barcelona")
    build(root, barcelona, workers=2)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (root / "shards").iterdir()}
    report = build(root, folder_source(raw, "more", domain="munich"), workers=2)
    assert (report["shards_kept"], report["shards_removed"]) == (len(before) // 2, 0)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    verify_dataset(root, progress=False)


def test_the_real_images_build_whole(real_images: Path, tmp_path: Path) -> None:
    """A sample of both public sets: RGBA and RGB TIFF beside JPEG, and the known duplicate in the whole."""
    raw = tmp_path / "munich"
    for code in ("BAS", "EOS", "MYO"):
        (raw / code).mkdir(parents=True)
        for path in sorted((real_images / "AML-Cytomorphology_LMU" / code).glob("*.tiff")):
            shutil.copy(path, raw / code)
    shutil.copy(real_images / "AML-Cytomorphology_LMU" / "MYO" / "MYO_0510.jpg", raw / "MYO")
    report = build(tmp_path / "data", SourceDeclaration("munich", "munich", raw, "munich"))
    assert report["excluded_by_reason"] == {"near duplicate": 1}
    assert report["samples"] == 30
