"""If these fail, a classifier learns to tell generated images by how they lie on disk, or is scored on what it saw."""

import dataclasses
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.audit import audit_dataset
from data_pipeline.banks.balance import balance_dataset, format_counts, training_counts
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.catalog import Dataset, check_invariants, from_table, to_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.learned_images import JUDGE_FOLDER, LearnedImages, learned_by_makers
from data_pipeline.lineage import lineage
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings, encode_pixels
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from tests.conftest import TINY_TYPES
from tests.data_pipeline.negatives import derive
from tests.data_pipeline.raw_images import files_below, folder_source, write_classes
from tests.generated_images import SIDE, bank_facts, image, make_bank

DOMAIN = "giemsa"  # of most training images of the parent, as of the banks


@pytest.fixture
def bank(parent: Dataset, tmp_path: Path) -> Path:
    """Ten images of each of the parent's types but one."""
    make_bank(tmp_path / "noise", 10, bank_facts(TINY_TYPES[:2], DOMAIN, dataset_hash=parent.content_hash))
    return tmp_path / "noise"


def balance(parent: Dataset, out: Path, *banks: Path, per_type: int | str = 30, **options: Any) -> dict[str, Any]:
    config = BalanceConfig(str(parent.root), [str(bank) for bank in banks], str(out), str(per_type))
    names = {field.name for field in dataclasses.fields(BalanceConfig)}
    config = dataclasses.replace(config, **{name: value for name, value in options.items() if name in names})
    topology = {name: value for name, value in options.items() if name not in names}
    return balance_dataset(config, **{"progress": False, **topology})


def test_types_are_filled_up_with_training_images_that_are_stored_like_the_real_ones(
    parent: Dataset, bank: Path, tmp_path: Path
) -> None:
    before = training_counts(parent)
    report = balance(parent, tmp_path / "out", bank)
    verify_dataset(tmp_path / "out", progress=False)
    out = Dataset.open(tmp_path / "out")
    counts = training_counts(out)
    for name in TINY_TYPES:
        lacking = max(0, 30 - before[name]["real"])
        added = min(lacking, 10) if name in TINY_TYPES[:2] else 0
        assert counts[name] == {"real": before[name]["real"], "synthetic": added}
    assert sum(count["synthetic"] for count in counts.values()) > 5
    rows = out.samples()
    real = rows[rows["origin"] == "real"]
    assert real["id"].tolist() == parent.samples()["id"].tolist()
    assert {out.shard_path(name).parent for name in real["shard"]} == {parent.root / "shards"}
    made = rows[rows["origin"] == "synthetic"]
    assert set(made["split"]) == {"train"}
    assert (set(made["source"]), set(made["domain"]), set(made["parent"])) == ({"noise"}, {DOMAIN}, {""})
    assert made["group"].nunique() == 1
    assert not set(made["group"]) & set(real["group"])
    settings = ShardSettings(**parent.metadata["settings"])
    for row in made.itertuples(index=False):
        pixels = image(0, row.cell_type, int(row.path.rpartition("/")[2]))
        enlarged = Image.fromarray(pixels).resize((32, 32), Image.Resampling.LANCZOS)
        assert out.read_encoded(row) == encode_pixels(np.asarray(enlarged), settings)
    assert out.metadata["settings"] == parent.metadata["settings"]
    assert f"noise: its images of {SIDE} px are stored at 32 px, as the real ones are" in report["warnings"]
    total = before["lymphocyte"]["real"]
    assert f"lymphocyte: {total} of 30 images: the banks give 0 of it" in report["warnings"]
    table = format_counts(counts).splitlines()
    basophil = counts["basophil"]
    assert table[1].split() == ["basophil", str(basophil["real"]), str(basophil["synthetic"]), "30"]
    assert len(table) == 1 + len(TINY_TYPES)


def test_a_generated_image_keeps_the_scale_that_its_generator_was_shown(
    parent: Dataset, bank: Path, tmp_path: Path
) -> None:
    """Cropped with the real images of its domain, it would show larger cells than they do."""
    balance(parent, tmp_path / "out", bank)
    out = Dataset.open(tmp_path / "out")
    origins = out.samples().set_index("id")["origin"]
    whole, cropped = (
        {
            stream.samples["id"][row]: image
            for part in stream.read()
            for row, image in zip(part.rows, part.images.clone(), strict=True)
        }
        for stream in (
            Stream(
                out,
                StreamConfig(image_size=24, domains=[DOMAIN], crop=crop, threads=1),
                splits=["train"],
                cell_types=TINY_TYPES,
                global_batch=8,
                training=False,
            )
            for crop in ({}, {DOMAIN: 0.6})
        )
    )
    assert {origins[identity] for identity in whole} == {"real", "synthetic"}
    for identity, pixels in whole.items():
        assert torch.equal(pixels, cropped[identity]) == (origins[identity] == "synthetic")


def test_only_images_of_the_named_domains_count(parent: Dataset, bank: Path, tmp_path: Path) -> None:
    balance(parent, tmp_path / "out", bank, domains=[DOMAIN], per_type=20)
    out = Dataset.open(tmp_path / "out")
    here = training_counts(parent, [DOMAIN])["basophil"]["real"]
    assert training_counts(out, [DOMAIN])["basophil"]["synthetic"] == 20 - here > 0
    assert len(out.samples(domains=["violet"])) == len(parent.samples(domains=["violet"]))


def test_the_first_images_of_the_first_bank_or_those_that_score_highest(
    parent: Dataset, bank: Path, tmp_path: Path
) -> None:
    facts = bank_facts(TINY_TYPES[:1], DOMAIN, seed=1, dataset_hash=parent.content_hash)
    second = make_bank(tmp_path / "second", 10, facts)
    needed = training_counts(parent)["basophil"]["real"] + 12

    def chosen(out: str, **options: Any) -> list[str]:
        balance(parent, tmp_path / out, bank, second.root, per_type=needed, **options)
        rows = Dataset.open(tmp_path / out).samples(cell_types=["basophil"])
        rows = rows[rows["origin"] == "synthetic"]
        return sorted(f"{source} {path[-1]}" for source, path in zip(rows["source"], rows["path"], strict=True))

    assert chosen("first") == [*(f"noise {index}" for index in range(10)), "second 0", "second 1"]
    with pytest.raises(UserError, match="no score 'likeness' of all images in this bank; it has none"):
        chosen("best", best=["likeness"])
    first = ImageBank.open(bank)
    first.write_scores("likeness", np.where(first.labels == 0, np.arange(20) // 2 / 10, 0))  # 0 to 0.9 by index
    second.write_scores("likeness", np.full(10, 0.75))
    assert chosen("best", best=["likeness"]) == ["noise 8", "noise 9", *(f"second {index}" for index in range(10))]
    first.write_scores("novelty", np.where(first.labels == 0, np.arange(20) // 2 % 3, 0))
    second.write_scores("novelty", np.ones(10))
    both = {"best": ["likeness", "novelty"], "least": {"novelty": 1}}
    few = chosen("few", **both, at_most=3 / training_counts(parent)["basophil"]["real"])
    assert few == ["noise 5", "noise 8", "second 0"], "the highest mean rank, no copy, at most three"


def test_one_codec_and_one_size_for_all(tmp_path: Path) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 12, "lymphocyte": 12}, 0)
    settings = ShardSettings(codec="png", stored_size=24)
    build_dataset(tmp_path / "data", [folder_source(raw, "lab")], settings=settings, progress=False)
    parent = Dataset.open(tmp_path / "data")
    made = make_bank(tmp_path / "noise", 20, bank_facts(("basophil",), dataset_hash=parent.content_hash))
    balance(parent, tmp_path / "out", made.root, per_type=20)
    out = Dataset.open(tmp_path / "out")
    stored = [Image.open(io.BytesIO(out.read_encoded(row))) for row in out.samples().itertuples(index=False)]
    assert {(picture.format, picture.size) for picture in stored} == {("PNG", (24, 24))}


def test_a_second_time_nothing_is_made_and_a_grown_bank_gives_more(parent: Dataset, bank: Path, tmp_path: Path) -> None:
    balance(parent, tmp_path / "out", bank, per_type=60)
    before = files_below(tmp_path / "out")
    again = balance(parent, tmp_path / "out", bank, per_type=60)
    assert again["shards_written"] == 0
    assert any("basophil" in warning for warning in again["warnings"])
    assert files_below(tmp_path / "out") == before
    make_bank(bank, 15, bank_facts(TINY_TYPES[:2], DOMAIN, dataset_hash=parent.content_hash))
    balance(parent, tmp_path / "out", bank, per_type=60)
    verify_dataset(tmp_path / "out", progress=False)
    assert training_counts(Dataset.open(tmp_path / "out"))["basophil"]["synthetic"] == 15


def test_processes_balance_together_what_one_does(parent: Dataset, bank: Path, tmp_path: Path) -> None:
    balance(parent, tmp_path / "alone", bank)
    barrier = threading.Barrier(2, timeout=60)

    def part(rank: int) -> dict[str, Any]:
        return balance(parent, tmp_path / "together", bank, rank=rank, world_size=2, barrier=barrier.wait)

    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(part, range(2)))
    assert reports[0]["warnings"] == reports[1]["warnings"] != []
    assert files_below(tmp_path / "alone") == files_below(tmp_path / "together")


def test_a_generator_of_an_ancestor_fits_and_the_normaliser_goes_along(
    parent: Dataset, bank: Path, normaliser: Path, tmp_path: Path
) -> None:
    derive(tmp_path / "normalised", parent, attachments={"normalizer.bin": normaliser})
    normalised = Dataset.open(tmp_path / "normalised")
    balance(normalised, tmp_path / "out", bank)
    out = Dataset.open(tmp_path / "out")
    assert lineage(out) == {out.content_hash, normalised.content_hash, parent.content_hash}
    assert out.attachment_path("normalizer.bin").read_bytes() == normaliser.read_bytes()
    assert out.metadata["made_by"]["parent"] == normalised.metadata["made_by"]
    make_bank(tmp_path / "later", 40, bank_facts(TINY_TYPES[1:2], DOMAIN, seed=2, dataset_hash=out.content_hash))
    balance(out, tmp_path / "twice", tmp_path / "later", per_type=40)
    assert set(Dataset.open(tmp_path / "twice").samples()["source"]) == {"phantom", "noise", "later"}


def test_a_bank_that_may_not_go_with_the_data_set_is_one_line(parent: Dataset, bank: Path, tmp_path: Path) -> None:
    ours = {"dataset_hash": parent.content_hash}
    for name, facts in {
        "stranger": bank_facts(TINY_TYPES, DOMAIN),
        "phantom": bank_facts(TINY_TYPES, DOMAIN, **ours),
        "stained": bank_facts(TINY_TYPES, "purple", **ours),
        "a bank": bank_facts(TINY_TYPES, DOMAIN, **ours),
        "deep/noise": bank_facts(TINY_TYPES, DOMAIN, seed=1, **ours),
    }.items():
        make_bank(tmp_path / name, 2, facts)
    refused: list[tuple[list[str], dict[str, Any], str]] = [
        (["stranger"], {}, "stranger: its generator learned from a data set that .* was not made from"),
        (["phantom"], {}, "has a source 'phantom' already; rename"),
        (["noise", "deep/noise"], {}, "has a source 'noise' already; rename"),
        (["stained"], {}, "of domain 'purple'.* are of giemsa, violet"),
        (["noise"], {"domains": ["violet"]}, "of domain 'giemsa'.* are of violet"),
        (["noise"], {"domains": ["green"]}, "no domain 'green' here"),
        (["a bank"], {}, "letters, digits"),
        (["noise"], {"best": ["sharpness"]}, "no score 'sharpness'"),
        (["noise"], {"per_type": 5}, "no image to add.* per_type=5"),
        (["noise"], {"least": {"sharpness": 0.5}}, "no score 'sharpness'"),
        (["nowhere"], {}, "no image bank here"),
        (["parent"], {}, "no image bank here"),
    ]
    for banks, options, words in refused:
        with pytest.raises(UserError, match=words):
            balance(parent, tmp_path / "out", *(tmp_path / name for name in banks), **options)
    assert not (tmp_path / "out").exists()
    (bank / "bank.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        balance(parent, tmp_path / "out", bank)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"per_type": "many"}, "per_type=many: must be a number of at least 1, or auto"),
        ({"per_type": "auto"}, "per_type=auto needs classifier=RUN"),
        ({"per_type": "3", "classifier": "run"}, "and nothing else does"),
        ({"per_type": "3", "at_most": 0.0}, "at_most=0.0: must be above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BalanceConfig("x", ["a"], "out", **values)


def test_nothing_generated_can_be_held_out(parent: Dataset, bank: Path, tmp_path: Path) -> None:
    balance(parent, tmp_path / "out", bank)
    out = Dataset.open(tmp_path / "out")
    rows = from_table(out.table)
    check_invariants(to_table(rows), out.metadata["shards"])
    made = next(row for row in rows if row.origin == "synthetic")
    made.split = "validation"
    with pytest.raises(AssertionError, match="held out"):
        check_invariants(to_table(rows), out.metadata["shards"])


def test_what_generators_and_judges_learned_from_goes_with_the_data_set(
    parent: Dataset, bank: Path, tmp_path: Path
) -> None:
    """Neither their runs nor their data sets are needed to see that a held-out image taught one."""
    balance(parent, tmp_path / "old", bank)
    unknown = learned_by_makers(Dataset.open(tmp_path / "old")).unknown
    assert [line.partition(": ")[0] for line in unknown] == ["noise (bank)"]
    splits = parent.samples().groupby("split")["id"].agg(list)
    LearnedImages.of(parent, {"trained": splits["train"] + splits["test"][:1]}).save(bank)
    LearnedImages.of(parent, {"trained": splits["validation"]}).save(bank / JUDGE_FOLDER)
    images = ImageBank.open(bank)
    images.write_scores("likeness", np.arange(len(images)))
    balance(parent, tmp_path / "new", bank, best=["likeness"])
    new = Dataset.open(tmp_path / "new")
    learned = learned_by_makers(new)
    by_ancestor = learned.table.groupby("through")["id"].agg(set)
    assert by_ancestor["noise (bank)"] == {*splits["train"], splits["test"][0]}
    assert by_ancestor["noise (its images chosen by likeness)"] == set(splits["validation"])
    (check,) = (check for check in audit_dataset(new, progress=False)[0] if check.name == "generators")
    assert check.status == "found"
    assert splits["test"][0][:16] in "; ".join(check.found)


def test_a_variation_of_an_image_names_it_and_shares_its_group_and_fold(parent: Dataset, tmp_path: Path) -> None:
    """Else a cross-fit or an audit by groups would take a relative of a held-out image for a stranger."""
    train = parent.samples(splits=["train"], cell_types=["basophil"])
    facts = bank_facts(("basophil",), DOMAIN, dataset_hash=parent.content_hash)
    ids = train["id"].tolist()[:2]
    varied = dataclasses.replace(facts, made_by={**facts.made_by, "parents": {"basophil": ids}, "strength": 0.3})
    make_bank(tmp_path / "varied", 5, varied)
    balance(parent, tmp_path / "out", tmp_path / "varied", per_type=len(train) + 5)
    verify_dataset(tmp_path / "out", progress=False)
    rows = Dataset.open(tmp_path / "out").samples()
    made = rows[rows["origin"] == "synthetic"].sort_values("path")
    assert made["parent"].tolist() == [ids[0], ids[1], ids[0], ids[1], ids[0]]
    of_parent = train.set_index("id").loc[made["parent"]]
    assert made[["group", "fold"]].to_numpy().tolist() == of_parent[["group", "fold"]].to_numpy().tolist()
    held = parent.samples(splits=["test"], cell_types=["basophil"])["id"].iloc[0]
    wrong = dataclasses.replace(facts, made_by={**facts.made_by, "parents": {"basophil": [held]}})
    make_bank(tmp_path / "wrong", 5, wrong)
    with pytest.raises(UserError, match="which is no training image of this data set"):
        balance(parent, tmp_path / "never", tmp_path / "wrong", per_type=len(train) + 5)
    assert not (tmp_path / "never" / "catalog.parquet").exists()
