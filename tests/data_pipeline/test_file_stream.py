"""If these fail, predict sees an image otherwise than training did, and every score says nothing about use."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.augment import AugmentConfig
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import Stream, Topology
from tests.data_pipeline.raw_images import folder_source, picture, write_image


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of every kind that predict may meet: formats, shapes, bit depths, turned, with alpha."""
    folder = tmp_path_factory.mktemp("kinds") / "raw"
    cells = folder / "basophil"
    write_image(cells / "a.jpg", 0)
    write_image(cells / "b.png", 1)
    picture(2, 64).crop((0, 0, 64, 37)).save(cells / "wide.png")
    picture(3, 64).crop((0, 0, 31, 64)).save(cells / "high.bmp")
    picture(4, 50).convert("L").save(cells / "grey.png")
    picture(5, 50).convert("CMYK").save(cells / "cmyk.jpg")
    rgba = picture(6, 50)
    rgba.putalpha(Image.new("L", rgba.size, 9))
    rgba.save(cells / "alpha.tif")
    tifffile.imwrite(cells / "deep.tif", np.asarray(picture(7, 50)).astype(np.uint16) * 16, photometric="rgb")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(8, 64).crop((0, 0, 64, 40)).save(cells / "turned.jpg", exif=exif)
    (cells / os.fsdecode(b"umlaut\xe4.png")).write_bytes((cells / "b.png").read_bytes() + b" ")
    return folder


@pytest.mark.parametrize(
    ("storage", "config", "crop"),
    [
        ({}, {}, 1.0),
        ({"codec": "png"}, {}, 1.0),
        ({"quality": 60}, {}, 1.0),
        ({"stored_size": 24}, {}, 1.0),
        ({"stored_size": 100, "codec": "png"}, {"image_size": 48}, 1.0),
        ({}, {"image_size": 17}, 1.0),
        ({}, {}, 0.5),
        ({"stored_size": 40}, {"image_size": 48}, 0.7),
        ({}, {"deterministic": True, "prefetch": 1, "threads": 2}, 1.0),
        ({}, {"order": "global", "window": 3, "sampling": "class_balanced"}, 0.9),
        ({}, {"augment": AugmentConfig(rotation_step=90.0, scale=1.3, shift=0.1)}, 1.0),
    ],
)
def test_predict_sees_the_pixels_that_scoring_sees(
    raw: Path, tmp_path: Path, storage: dict[str, Any], config: dict[str, Any], crop: float
) -> None:
    settings = ShardSettings(**storage)
    build_dataset(
        tmp_path / "data", [folder_source(raw, "lab")], settings=settings, ratio=(0, 0, 1), progress=False, workers=1
    )
    dataset = Dataset.open(tmp_path / "data")
    data = StreamConfig(**{"image_size": 32, "threads": 1, **config}, crop={} if crop == 1 else {"giemsa": crop})
    scoring = Stream(dataset, data, splits=["test"], cell_types=CELL_TYPES, global_batch=4, training=False)
    scored = {scoring.samples["path"][row]: image for part in scoring.read() for row, image in _rows(part)}
    paths = sorted(path for path in (raw / "basophil").iterdir() if path.name != "b.png")
    files = FileStream(paths, settings, data, 3, Topology(), crop=crop)
    predicted = {paths[row].name: image for part in files.read() for row, image in _rows(part)}
    assert not files.unreadable
    assert len(scored) >= 9
    for path, image in scored.items():
        name = Path(path).name.replace("\\xe4", "\udce4")
        if name in predicted:
            assert torch.equal(image, predicted[name]), f"{name}: not the same bits"
    assert len({Path(path).name for path in scored} & set(predicted)) >= 8


def _rows(part: Any) -> list[tuple[int, torch.Tensor]]:
    return [(int(row), image.clone()) for row, image in zip(part.rows, part.images, strict=True)]


def test_what_cannot_be_read_is_named_and_the_others_are_seen(raw: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    paths = [tmp_path / "pipe.png", raw / "basophil" / "a.jpg", tmp_path / "empty.png", tmp_path / "gone.png"]
    files = FileStream(paths, ShardSettings(), StreamConfig(image_size=16, threads=1), 8, Topology())
    assert [row for part in files.read() for row in part.rows] == [1]
    assert {path.name: reason for path, reason in files.unreadable.items()} == {
        "pipe.png": "a pipe, no file",
        "empty.png": "the file is empty",
        "gone.png": "gone since the folder was listed",
    }
