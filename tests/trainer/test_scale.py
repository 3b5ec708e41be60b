"""If these fail, a laboratory's cells are shown at another scale than those that a classifier learned from."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from data_pipeline.catalog import Dataset
from data_pipeline.shards.writer import ShardSettings
from tests.conftest import Launch
from tests.launchers.test_launchers import TINY
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.scale import (
    at_one_scale,
    crop_to,
    nucleus_diameters,
    nucleus_of_domain,
    nucleus_of_files,
)

Box = tuple[int, int, int, int]


def smear(*nuclei: Box, side: int = 128) -> Image.Image:
    """Nuclei in their cytoplasm on plasma."""
    image = Image.new("RGB", (side, side), (245, 230, 215))
    draw = ImageDraw.Draw(image)
    draw.ellipse((side // 5, side // 5, 4 * side // 5, 4 * side // 5), (205, 190, 215))
    for box in nuclei:
        draw.ellipse(box, (95, 50, 140))
    return image


def diameters(*images: Image.Image) -> list[float]:
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float()
    return nucleus_diameters(pixels / 127.5 - 1).tolist()


def test_a_nucleus_is_as_wide_as_it_was_drawn() -> None:
    """Its lobes count together, a cell at the border does not count, and an empty image has none."""
    whole, lobes = smear((44, 44, 84, 84)), smear((40, 50, 60, 70), (66, 50, 86, 70))
    with_neighbour, empty = smear((44, 44, 84, 84), (0, 0, 30, 30)), Image.new("RGB", (128, 128), (240, 240, 240))
    found = diameters(whole, lobes, with_neighbour, empty)
    assert found[0] == pytest.approx(40 / 128, rel=0.04)
    assert found[1] == pytest.approx(20 * 2**0.5 / 128, rel=0.06)
    assert found[2] == found[0]
    assert np.isnan(found[3])


def test_the_crop_brings_the_nucleus_to_its_share() -> None:
    assert crop_to(0.4, 0.3) == 0.75
    assert crop_to(0.4, 0.5) == 1.0  # nothing lies outside an image
    assert crop_to(0.4, 0.01) == 0.3


def test_files_of_any_size_have_one_scale(tmp_path: Path) -> None:
    """The median is of the shares of the side, so a camera of more pixels changes nothing; few images say nothing."""
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        image = smear((44, 44, 84, 84))
        image.resize((128 + 8 * number,) * 2).save(path)
    storage = ShardSettings(codec="png", stored_size=None)
    assert nucleus_of_files(paths, storage) == pytest.approx(40 / 128, rel=0.06)
    assert nucleus_of_files(paths[:19], storage) is None


def test_a_training_names_the_crops_that_it_measured(tiny_dataset: Dataset) -> None:
    """A crop that is set stays; without the key nothing changes."""
    config = ClassifierRunConfig()
    assert at_one_scale(config, tiny_dataset) is config
    domain, *_ = sorted(set(tiny_dataset.samples(columns=["domain"])["domain"]))
    nucleus = nucleus_of_domain(tiny_dataset, domain)
    assert nucleus is not None
    asked = dataclasses.replace(config, nucleus_share=1.25 * nucleus)
    assert at_one_scale(asked, tiny_dataset).data.crop[domain] == pytest.approx(0.8, abs=1e-3)
    told = dataclasses.replace(asked, data=dataclasses.replace(config.data, crop={domain: 0.9}))
    assert at_one_scale(told, tiny_dataset).data.crop[domain] == 0.9
    with pytest.raises(ValueError, match="nucleus_share=2: must be above 0 and below 1"):
        dataclasses.replace(config, nucleus_share=2)


def test_predictions_are_at_the_scale_of_their_own_images(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """Images of which only the middle is left are cropped less than the whole ones, by as much."""
    done = launch("train_classifier", f"shards={tiny_dataset.root}", "run=run", "nucleus_share=0.9", *TINY)
    assert done.returncode == 0, done.stderr
    record: Any = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert all(0.3 <= crop < 0.9 for crop in record["data"]["crop"].values())
    near = tmp_path / "near"
    near.mkdir()
    for number, path in enumerate(sorted((tiny_dataset.root.parent / "raw").rglob("*.png"))):
        image = Image.open(path).convert("RGB")
        margin = image.width // 10
        image.crop((margin, margin, image.width - margin, image.height - margin)).save(near / f"{number}.png")

    def share(folder: Path, out: str) -> int:
        done = launch("predict", "run=run", f"images={folder}", f"out={out}")
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("the middle of each image")]
        return int(line.split()[-4].rstrip("%"))

    assert share(near, "closer") == pytest.approx(share(tiny_dataset.root.parent / "raw", "whole") / 0.8, rel=0.1)
