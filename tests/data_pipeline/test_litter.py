"""If these fail, masks and thumbnails are taken for cells, or pictures of cells are thrown away for their names."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.catalog import Dataset, from_table
from data_pipeline.ingest.build import build_dataset
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import folder_source, picture, write_classes


def mask_of(image: Image.Image) -> Image.Image:
    grey = np.asarray(image.convert("L"))
    return Image.fromarray(np.select([grey < 110, grey < 175], [255, 128], 0).astype(np.uint8))


def reasons_of(root: Path) -> dict[str, str]:
    return {row.path: row.reason for row in from_table(Dataset.open(root).table) if not row.kept}


def test_masks_thumbnails_and_system_files_beside_pictures_are_left_out_and_said(tmp_path: Path) -> None:
    cells = tmp_path / "raw" / "basophil"
    for folder in ("", "mask", "__MACOSX", "@eaDir"):
        (cells / folder).mkdir(parents=True, exist_ok=True)
    for number in range(3):
        image = picture(number, 120)
        image.save(cells / f"{number:03}.bmp")
        mask_of(image).save(cells / f"{number:03}.png")
    (cells / "002.bmp").write_bytes((cells / "002.bmp").read_bytes()[:-99])
    image = picture(7, 120)
    image.save(cells / "c7.png")
    mask_of(image).save(cells / "c7_mask.png")
    mask_of(image).transpose(Image.Transpose.ROTATE_90).save(cells / "mask" / "c7.png")
    Image.fromarray(np.asarray(mask_of(image)) // 128).save(cells / "c7_label.png")
    image.resize((48, 48)).save(cells / "c7_thumb.png")
    picture(8).save(cells / "__MACOSX" / "c8.png")
    picture(9).save(cells / "@eaDir" / "c9.png")
    report = build_dataset(tmp_path / "data", [folder_source(tmp_path / "raw", "lab")], progress=False)
    assert reasons_of(tmp_path / "data") == {
        **{f"basophil/{number:03}.png": f"mask: of basophil/{number:03}.bmp" for number in range(3)},
        "basophil/002.bmp": "unreadable: damaged (image file is truncated (261 bytes not processed))",
        "basophil/c7_mask.png": "mask",
        "basophil/c7_label.png": "mask",
        "basophil/mask/c7.png": "mask",
        "basophil/c7_thumb.png": "thumbnail: of basophil/c7.png",
        "basophil/__MACOSX/c8.png": "system file",
        "basophil/@eaDir/c9.png": "system file",
    }
    assert report["samples"] == 3
    assert any("6 file(s) are masks" in warning for warning in report["warnings"])
    assert any("1 file(s) are thumbnails" in warning for warning in report["warnings"])
    again = build_dataset(tmp_path / "data", [], progress=False)
    assert again["content_hash"] == report["content_hash"]
    assert again["warnings"] == report["warnings"]


def test_pictures_are_no_masks_whatever_their_names(tmp_path: Path) -> None:
    """Grey cells too, and one picture in two formats: a near duplicate, not a mask."""
    cells = tmp_path / "raw" / "basophil"
    cells.mkdir(parents=True)
    for number in range(3):
        picture(number, 120).convert("L").save(cells / f"{number}.png")
        picture(number, 120).convert("L").save(cells / f"{number}.jpg")
    picture(5, 120).save(cells / "mask_1.png")
    picture(6, 120).save(cells / "preview.png")
    report = build_dataset(tmp_path / "data", [folder_source(tmp_path / "raw", "lab")], progress=False)
    assert all("duplicate" in reason for reason in reasons_of(tmp_path / "data").values())
    assert report["samples"] == 5
    assert sum("named like masks" in warning for warning in report["warnings"]) == 1
    assert sum("named like thumbnails" in warning for warning in report["warnings"]) == 1


def test_what_a_table_lists_is_wanted_and_only_warned_about(tmp_path: Path) -> None:
    write_classes(tmp_path, {"cells": 2}, 0)
    mask_of(picture(3)).save(tmp_path / "cells" / "0000.png")
    table = tmp_path / "table.csv"
    table.write_text("image,label\ncells/0000.jpg,basophil\ncells/0001.jpg,basophil\ncells/0000.png,monocyte\n")
    source = SourceDeclaration("table", "lab", table, "giemsa")
    report = build_dataset(tmp_path / "data", [source], progress=False)
    assert report["samples"] == 3
    assert any("masks" in warning and "table lists" in warning for warning in report["warnings"])


def test_no_real_image_is_taken_for_litter(real_images: Path, tmp_path: Path) -> None:
    public = tmp_path / "PBC_dataset_normal_DIB"
    for folder in ("basophil", "platelet"):
        (public / folder).mkdir(parents=True)
        for path in sorted((real_images / "PBC_dataset_normal_DIB" / folder).iterdir())[:40]:
            (public / folder / path.name).symlink_to(path)
    source = SourceDeclaration("barcelona", "barcelona", public, "barcelona")
    report = build_dataset(tmp_path / "data", [source], progress=False)
    assert not {"mask", "thumbnail", "system file"} & set(report["excluded_by_reason"])
    assert not any("masks" in warning or "thumbnails" in warning for warning in report["warnings"])
