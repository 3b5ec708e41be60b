"""If these fail, generated images are mixed up, made twice, or read from a bank that is not whole."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from data_pipeline.banks.bank_writer import fill_bank
from data_pipeline.banks.image_bank import INDICES_PER_SHARD, ImageBank, bank_lock
from data_pipeline.errors import UserError
from tests.data_pipeline.raw_images import files_below
from tests.generated_images import LATENT, SIDE, Draw, bank_facts, image, latent, make_bank

TYPES = ("basophil", "lymphocyte")
FACTS = bank_facts(TYPES)
COUNT = INDICES_PER_SHARD + 10


def test_every_row_is_the_image_of_its_type_and_index(tmp_path: Path) -> None:
    make_bank(tmp_path / "bank", COUNT, FACTS)
    bank = ImageBank.open(tmp_path / "bank")
    assert len(bank) == 2 * COUNT
    assert (bank.cell_types, bank.domain, bank.image_size) == (TYPES, "giemsa", SIDE)
    assert bank.made_by == FACTS.made_by
    assert bank.labels.dtype == np.int64
    rows = np.random.default_rng(0).permutation(len(bank))[:50]
    images, latents = bank.images(rows), bank.latents(rows)
    assert (images.dtype, latents.dtype, latents.shape) == (np.uint8, np.float32, (50, LATENT))
    indices = {name: np.flatnonzero(bank.labels == number).tolist() for number, name in enumerate(TYPES)}
    for row, pixels, numbers in zip(rows.tolist(), images, latents, strict=True):
        cell_type = TYPES[bank.labels[row]]
        index = indices[cell_type].index(row)
        assert np.array_equal(pixels, image(0, cell_type, index))
        assert np.array_equal(numbers, latent(0, cell_type, index))
    assert bank.images([]).shape == (0, SIDE, SIDE, 3)
    with pytest.raises(IndexError):
        bank.images([len(bank)])
    plain = zarr.open_group(str(tmp_path / "bank"), mode="r")
    assert np.array_equal(plain["images"][:], bank.images(np.arange(len(bank))))
    assert plain["images"].shards == (2 * INDICES_PER_SHARD, SIDE, SIDE, 3)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_fill_together_what_one_fills_each_shard_by_one(tmp_path: Path, world_size: int) -> None:
    count = 3 * INDICES_PER_SHARD + 1
    alone = make_bank(tmp_path / "alone", count, FACTS)
    barrier = threading.Barrier(world_size, timeout=60)
    draws = [Draw() for _ in range(world_size)]

    def part(rank: int) -> ImageBank:
        topology = {"rank": rank, "world_size": world_size, "barrier": barrier.wait}
        return make_bank(tmp_path / "together", count, FACTS, draws[rank], **topology)

    with ThreadPoolExecutor(world_size) as pool:
        banks = list(pool.map(part, range(world_size)))
    assert {bank.content_hash for bank in banks} == {alone.content_hash}
    assert files_below(tmp_path / "alone") == files_below(tmp_path / "together")
    shards = [{indices[0] // INDICES_PER_SHARD for _, indices in draw.calls} for draw in draws]
    assert sorted(shard for mine in shards for shard in mine) == [0, 1, 2, 3]


def test_a_bank_grows_and_leaves_the_old_images(tmp_path: Path) -> None:
    small = make_bank(tmp_path / "bank", COUNT, FACTS)
    before = small.images(np.arange(len(small)))
    draw = Draw()
    grown = make_bank(tmp_path / "bank", COUNT + 80, FACTS, draw)
    assert {index for _, indices in draw.calls for index in indices} == set(range(COUNT, COUNT + 80))
    assert np.array_equal(grown.images(np.arange(len(small))), before)
    fresh = make_bank(tmp_path / "fresh", COUNT + 80, FACTS)
    assert grown.content_hash == fresh.content_hash != small.content_hash
    assert files_below(tmp_path / "bank") == files_below(tmp_path / "fresh")
    again = Draw()
    assert len(make_bank(tmp_path / "bank", COUNT, FACTS, again)) == len(grown), "a bank never shrinks"
    assert again.calls == []


def test_the_hash_is_of_what_made_the_images_not_of_where(tmp_path: Path) -> None:
    moved = bank_facts(TYPES)
    moved.made_by["config"] = {"run": "elsewhere"}
    first = make_bank(tmp_path / "bank", 2, FACTS).content_hash
    assert make_bank(tmp_path / "bank", 2, moved).content_hash == first
    assert make_bank(tmp_path / "again", 2, moved).content_hash == first
    assert make_bank(tmp_path / "other", 2, bank_facts(TYPES, dataset_hash="1" * 64)).content_hash != first


def test_another_generator_seed_or_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "bank"
    make_bank(root, 2, FACTS)
    before = files_below(root)
    other = bank_facts(TYPES)
    other.made_by["checkpoint"] = "d" * 16
    for facts, words in (
        (bank_facts(TYPES, seed=1), r"another seed \(0\)"),
        (other, "another generator .noise, checkpoint cccc"),
        (bank_facts(TYPES[:1]), r"other cell types \(basophil, lymphocyte\)"),
    ):
        with pytest.raises(UserError, match=words):
            make_bank(root, 3, facts)
    assert files_below(root) == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("")
    zarr.create_group(str(tmp_path / "climate"))
    for name, words in (("photos", "yet it holds a.jpg"), ("climate", "no image bank's")):
        with pytest.raises(UserError, match=words):
            make_bank(tmp_path / name, 2, FACTS)
    with pytest.raises(UserError, match="no image bank here"):
        ImageBank.open(tmp_path / "nowhere")
    with bank_lock(root), pytest.raises(UserError, match="something else writes"):
        make_bank(root, 3, FACTS)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 255
    path.write_bytes(content)


def _relabel(path: Path) -> None:
    zarr.open_array(str(path), mode="r+")[1] = 0


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("images/c/1/0/0/0", Path.unlink),
        ("images/c/1/0/0/0", _cut),
        ("latents/c/1/0", Path.unlink),
        ("sha256/c/0/0", _flip),
        ("sha256/zarr.json", Path.unlink),
        ("labels", _relabel),
        ("bank.json", _cut),
    ],
)
def test_a_damaged_bank_is_not_opened(tmp_path: Path, file: str, harm: Callable[[Path], None]) -> None:
    make_bank(tmp_path / "bank", COUNT, FACTS)
    harm(tmp_path / "bank" / file)
    with pytest.raises(UserError, match="damaged"):
        ImageBank.open(tmp_path / "bank")
    with pytest.raises(UserError, match="damaged"):
        make_bank(tmp_path / "bank", COUNT + 3, FACTS)


@pytest.mark.parametrize(
    "file", ["images/c/1/0/0/0", "latents/c/1/0", "labels/c/1", "sha256/c/1/0", "labels/zarr.json"]
)
def test_a_bank_that_was_cut_off_and_damaged_is_not_gone_on_with(tmp_path: Path, file: str) -> None:
    root = make_bank(tmp_path / "bank", COUNT, FACTS).root
    (root / "bank.json").unlink()
    _cut(root / file)
    with pytest.raises(UserError, match="damaged"):
        make_bank(root, COUNT + 3, FACTS)


def test_a_changed_image_is_met_when_it_is_read(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", COUNT, FACTS)
    _flip(tmp_path / "bank" / "images/c/0/0/0/0")
    with pytest.raises(UserError, match="damaged"):
        bank.images(np.arange(len(bank)))


def test_scores_are_kept_whole_and_end_with_the_images_they_were_of(tmp_path: Path) -> None:
    bank = make_bank(tmp_path / "bank", 4, FACTS)
    assert bank.scores == {}
    bank.write_scores("sharpness", np.arange(8))
    bank.write_scores("likeness", np.linspace(0, 1, 8))
    bank.write_scores("sharpness", -np.arange(8))
    for opened in (bank, ImageBank.open(tmp_path / "bank")):
        assert sorted(opened.scores) == ["likeness", "sharpness"]
        assert opened.scores["sharpness"].dtype == np.float32
        assert opened.scores["sharpness"].tolist() == (-np.arange(8)).tolist()
    assert ImageBank.open(tmp_path / "bank").content_hash == bank.content_hash
    assert len(list((tmp_path / "bank" / "scores").iterdir())) == 2
    for name, values in (("a", np.zeros(7)), ("a", np.full(8, np.nan)), ("../a", np.zeros(8))):
        with pytest.raises(ValueError, match="8 finite numbers"):
            bank.write_scores(name, values)
    grown = make_bank(tmp_path / "bank", 5, FACTS)
    assert grown.scores == {}
    assert not (tmp_path / "bank" / "scores").exists()
    with pytest.raises(UserError, match="changed since it was opened"):
        bank.write_scores("sharpness", np.arange(8))


def test_damaged_scores_are_met(tmp_path: Path) -> None:
    make_bank(tmp_path / "bank", 4, FACTS).write_scores("sharpness", np.arange(8))
    entry = json.loads((tmp_path / "bank" / "bank.json").read_text())["scores"]["sharpness"]
    zarr.open_array(str(tmp_path / "bank" / entry["array"]), mode="r+")[0] = 7
    with pytest.raises(UserError, match=r"damaged \(scores/sharpness"):
        ImageBank.open(tmp_path / "bank")


def test_a_generator_that_makes_black_images_alone_is_banked_too(tmp_path: Path) -> None:
    def black(cell_type: str, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        return np.zeros((len(indices), SIDE, SIDE, 3), np.uint8), np.zeros((len(indices), LATENT), np.float32)

    bank = fill_bank(tmp_path / "bank", bank_facts(("basophil",)), 3, black, progress=False)
    assert bank.images([0, 1, 2]).max() == 0
