"""If these fail, an expert's time is spent on the wrong images, or what the expert decided does not come back."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from data_pipeline.catalog import Dataset, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from launchers import review
from tests.browser import browser, downloaded
from tests.conftest import TINY_TYPES
from trainer.tasks.classification.review import cross_fit

BACKBONE = "test_efficientnet"


def write_page(root: Path, page: Path, *more: str) -> list[dict[str, Any]]:
    """The page of a data set, with the features of a tiny network of random weights; its items."""
    weights = page.parent / "backbone.pt"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(timm.create_model(BACKBONE).state_dict(), weights)
    network = (f"model.timm_name={BACKBONE}", f"model.weights={weights}", f"cache={page.parent / 'cache'}")
    sizes = ("data.image_size=32", "data.threads=1")
    review.main([f"shards={root}", f"out={page}", *network, *sizes, *more])
    return items_of(page)


def items_of(page: Path) -> list[dict[str, Any]]:
    content = re.search(r'id="content">(.*?)</script>', page.read_text(), re.DOTALL)
    assert content is not None
    items: list[dict[str, Any]] = json.loads(content[1])["items"]
    return items


def table_with(path: Path, table: Path, labels: dict[str, str]) -> SourceDeclaration:
    """A source of the same images, with other labels for some."""
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"label": labels.get(row["image"], row["label"])} for row in rows)
    return SourceDeclaration("table", "phantom", path, "phantom")


@pytest.fixture(scope="module")
def flipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A data set of 120 cells, four of which have a wrong label; their right types by path."""
    folder = tmp_path_factory.mktemp("flipped")
    table = render_phantoms(
        folder, 40, slides=20, size=32, workers=1, paired=False, cell_types=TINY_TYPES, progress=False
    )
    with table.open(newline="") as file:
        labels = {row["image"]: row["label"] for row in csv.DictReader(file)}
    right = {str(image): labels[image] for image in np.random.default_rng(0).choice(sorted(labels), 4, replace=False)}
    wrong = {image: next(name for name in TINY_TYPES if name != label) for image, label in right.items()}
    source = table_with(folder / "wrong.csv", table, wrong)
    build_dataset(folder / "data", [source], settings=ShardSettings(max_samples=16), progress=False)
    return folder / "data", right


def test_decisions_made_by_keyboard_mend_the_data_set(flipped: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    root, right = shutil.copytree(flipped[0], tmp_path / "data"), flipped[1]
    items = write_page(root, tmp_path / "review.html")
    places = [number for number, item in enumerate(items) if item["image"]["path"] in right]
    count = max(*places, 9) + 1  # of images that get a label; two more are left out
    with browser(tmp_path) as page:
        page.open(tmp_path / "review.html")
        page.press(*"AB", "Enter")
        keys = page.value("Object.fromEntries(types.map(([key, type]) => [type, key]))")
        answers = [
            keys[right[item["image"]["path"]]] if item["image"]["path"] in right else "Enter" for item in items[:count]
        ]
        page.press(*answers[:6], "u")  # takes the sixth back
        page.open(tmp_path / "review.html")  # closed and opened again
        page.press("Enter")
        assert page.text("counts").startswith(f"5 of {len(items)} decided"), "progress was lost"
        page.press(*answers[5:], "x", "2", "ArrowRight", "ArrowLeft", "x", "o", *"red; cell", "Enter", "s")
        decisions = downloaded(tmp_path, "decisions-AB.csv")
    before = {row.path: row for row in from_table(Dataset.open(root).table)}
    report = build_dataset(root, [], review=[decisions], progress=False)
    after = {row.path: row for row in from_table(Dataset.open(root).table)}
    assert {path: after[path].cell_type for path in right} == right
    assert all(after[path].cell_type == row.cell_type for path, row in before.items() if path not in right)
    reasons = {path: row.reason for path, row in after.items() if not row.kept}
    wanted = ("expert's review: out of focus (AB)", "expert's review: red; cell (AB)")
    assert reasons == dict(zip((items[count]["image"]["path"], items[count + 1]["image"]["path"]), wanted, strict=True))
    assert report["corrected_labels"] == len(right)
    asked_again = {item["image"]["id"] for item in write_page(root, tmp_path / "again.html")}
    assert asked_again == {item["image"]["id"] for item in items[count + 2 :]}


@pytest.mark.slow
def test_wrong_labels_among_barcelonas_are_found_and_mended(real_images: Path, tmp_path: Path) -> None:
    """2 % of the training labels are wrong: at least 80 % of them are in the first 5 % of the page."""
    weights = real_images.parent / "weights" / "tf_efficientnet_lite0.safetensors"
    if not weights.is_file():
        pytest.skip(f"no pretrained weights at {weights}")
    public = SourceDeclaration("barcelona", "barcelona", real_images / "PBC_dataset_normal_DIB", "barcelona")
    root, draw = tmp_path / "data", np.random.default_rng(0)
    build_dataset(tmp_path / "clean", [public], progress=False)
    samples = Dataset.open(tmp_path / "clean").samples()
    right = dict(zip(samples["id"], samples["cell_type"], strict=True))
    training = samples.index[samples["split"] == "train"]
    flips = draw.choice(training, round(0.02 * len(training)), replace=False)
    types = sorted(set(right.values()))
    for row in flips:
        samples.loc[row, "cell_type"] = draw.choice([name for name in types if name != samples["cell_type"][row]])
    table = samples.assign(image=str(public.root) + "/" + samples["path"], label=samples["cell_type"])
    table[["image", "label"]].to_csv(tmp_path / "labels.csv", index=False)
    source = SourceDeclaration("table", "barcelona", tmp_path / "labels.csv", "barcelona")
    build_dataset(root, [source], settings=ShardSettings(max_samples=64), progress=False)
    page, first = tmp_path / "review.html", round(0.05 * len(training))
    places = (f"shards={root}", f"out={page}", f"model.weights={weights}", f"cache={tmp_path / 'cache'}")
    review.main([*places, "split=train", f"images={first}"])
    items = items_of(page)
    found = {item["image"]["id"] for item in items} & set(samples["id"][flips])
    assert len(items) == first
    assert len(found) >= 0.8 * len(flips)
    with browser(tmp_path) as shown:
        shown.open(page)
        shown.press(*"AB", "Enter")
        keys = shown.value("Object.fromEntries(types.map(([key, type]) => [type, key]))")
        for item in items:
            true = right[item["image"]["id"]]
            shown.press("Enter" if true == item["image"]["label"] else keys[true])
        shown.press("s")
        decisions = downloaded(tmp_path, "decisions-AB.csv")
    before = Dataset.open(root).samples().set_index("id")
    report = build_dataset(root, [], review=[decisions], progress=False)
    after = Dataset.open(root).samples().set_index("id")
    wrong = {image for image, cell_type in after["cell_type"].items() if cell_type != right[str(image)]}
    assert wrong == set(samples["id"][flips]) - found
    assert report["shards_written"] == before.loc[list(found), "shard"].nunique() < before["shard"].nunique()


def test_near_duplicates_and_cells_with_two_labels_stand_side_by_side(
    flipped: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """A mirrored copy passes the build; one cell under two labels is left out by it until somebody decides."""
    from PIL import Image, ImageOps

    raw = Path(Dataset.open(flipped[0]).metadata["sources"][0]["root"]).parent
    images = sorted(path for path in raw.rglob("*.*") if path.suffix in (".png", ".jpg"))[:30]
    for number, path in enumerate(images):
        folder = tmp_path / "raw" / TINY_TYPES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    original = tmp_path / "raw" / TINY_TYPES[0] / images[0].name
    ImageOps.mirror(Image.open(original)).save(original.with_name("mirrored.png"))
    (tmp_path / "raw" / TINY_TYPES[2] / "copy.png").write_bytes(
        (tmp_path / "raw" / TINY_TYPES[1] / images[1].name).read_bytes()
    )
    build_dataset(tmp_path / "data", [SourceDeclaration("folder", "raw", tmp_path / "raw", "giemsa")], progress=False)
    items = write_page(tmp_path / "data", tmp_path / "review.html")
    assert len({item["image"]["id"] for item in items}) == len(items)
    (two_labels,) = (item for item in items if "two labels" in item["asked"])
    assert items[0] == two_labels
    assert two_labels["image"]["label"] == ""
    mirrored = next(item for item in items if item["image"]["path"].endswith("mirrored.png"))
    assert mirrored["beside"]["path"].endswith(images[0].name)
    assert all(item["image"]["picture"].startswith("data:image/jpeg") for item in items)
    # Whatever splits the two are in.
    for split in ("train", "test"):
        write_page(tmp_path / "data", tmp_path / "review.html", f"split={split}")


def test_a_trained_network_judges_each_image_without_having_learned_it(
    flipped: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[set[str]] = []
    looked: list[set[str]] = []
    part = cross_fit._part

    def noted(*arguments: Any, training: bool) -> Any:
        stream = part(*arguments, training=training)
        (learned if training else looked).append(set(stream.samples["id"]))
        return stream

    monkeypatch.setattr(cross_fit, "_part", noted)
    sizes = ("data.image_size=32", "data.threads=1", "train.epochs=1", "train.global_batch=16", "folds=2")
    page = tmp_path / "review.html"
    review.main([f"shards={flipped[0]}", f"out={page}", "model=senet_tiny_ge", *sizes])
    items = items_of(page)
    assert all(not one & other for one, other in zip(learned, looked, strict=True))
    assert sorted(image for fold in looked for image in fold) == sorted(item["image"]["id"] for item in items)
    assert all(item["answer"].count("%") == 2 for item in items)


def test_a_data_set_made_from_another_is_not_reviewed(tiny_dataset: Dataset, tmp_path: Path) -> None:
    metadata = tiny_dataset.metadata | {"made_by": {"tool": "balance"}}
    from trainer.tasks.classification.review import review as task

    derived = Dataset(tiny_dataset.root, metadata)
    config = type("Config", (), {"open_dataset": lambda self: derived})()
    with pytest.raises(UserError, match="review that one"):
        task.write_review(config, tmp_path / "x.html", splits=["train"], folds=2, images=5, topology=None)  # type: ignore[arg-type]
