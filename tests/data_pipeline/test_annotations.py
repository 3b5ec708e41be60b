"""If these fail, boxes from other tools are read as other boxes, or a bad annotation costs more than one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration, survey
from data_pipeline.sources.annotations import AnnotatedField, Box, read_annotations
from data_pipeline.sources.declaration import AnnotationFormat
from data_pipeline.sources.whole_fields import boxes_from_text
from launchers.build_shards import main
from tests.data_pipeline.raw_images import picture
from tests.data_pipeline.test_fields import HEIGHT, WIDTH, write_field

CELLS = (Box("WBC", 60, 40, 80, 60), Box("RBC", 2, 2, 30, 30))
LINES = "image,label,xmin,ymin,xmax,ymax\na.png,WBC,60,40,80,60\na.png,RBC,2,2,30,30\nb.png,,,,,\n"
COCO = {
    "images": [{"id": n, "file_name": f"x/{n}.png", "width": WIDTH, "height": HEIGHT} for n in ("a", "b")],
    "categories": [{"id": 7, "name": "WBC"}, {"id": 3, "name": "RBC"}],
    "annotations": [
        {"image_id": "a", "category_id": 7, "bbox": [60, 40, 20, 20]},
        {"image_id": "a", "category_id": 3, "bbox": [2.2, 1.9, 28, 28]},
    ],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two fields, the second without cells, annotated three times."""
    root = tmp_path / "raw"
    write_field(root, "a", 1, *((box.name, box.left, box.top, box.right, box.bottom) for box in CELLS))
    write_field(root, "b", 2)
    (root / "instances.json").write_text(json.dumps(COCO))
    (root / "other.json").write_text("[1, 2]")
    (root / "boxes.csv").write_text(LINES)
    return root


@pytest.mark.parametrize("annotations", ["voc", "coco", "csv"])
def test_all_formats_say_the_same_boxes(root: Path, annotations: AnnotationFormat) -> None:
    fields, warnings = read_annotations(root, annotations)
    assert fields == [
        AnnotatedField("JPEGImages/a.png", WIDTH, HEIGHT, CELLS),
        AnnotatedField("JPEGImages/b.png", WIDTH, HEIGHT, ()),
    ]
    assert warnings == []


@pytest.mark.parametrize(
    ("annotations", "file", "content", "said"),
    [
        ("voc", "Annotations/a.xml", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "XML entities"),
        ("coco", "instances.json", json.dumps({**COCO, "categories": []}), "not in COCO's format (no 7)"),
        ("coco", "instances.json", '{"images": [', "not in COCO's format"),
        ("csv", "boxes.csv", LINES.replace("40,80", "40,far"), "boxes.csv, line 2: xmin,ymin,xmax,ymax=60,40,far,60"),
        ("csv", "boxes.csv", "image,label\na.png,WBC\n", "the column xmin"),
    ],
)
def test_a_damaged_annotation_is_one_line_that_names_it(
    root: Path, annotations: AnnotationFormat, file: str, content: str, said: str
) -> None:
    (root / file).write_text(content)
    with pytest.raises(UserError) as refused:
        read_annotations(root, annotations)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_boxes_and_images_without_their_like_are_counted_and_cost_nothing_else(root: Path) -> None:
    for name in ("c", "d"):
        picture(ord(name), WIDTH).save(root / "JPEGImages" / f"{name}.png")
    more = "c.png,WBC,-5,10,30,40\nc.png,WBC,400,10,430,40\nc.png,WBC,9,9,9,20\ngone.png,WBC,1,1,20,20\n"
    (root / "boxes.csv").write_text(LINES + more)
    fields, warnings = read_annotations(root, "csv")
    assert fields[-1].boxes == (Box("WBC", 0, 10, 30, 40),)
    assert [warning.partition(" (JPEG")[0].partition(" (gone")[0] for warning in warnings] == [
        "1 box(es) without area left out",
        "2 box(es) reach past their field and are cut or left out",
        "1 annotation(s) without a field of the same name",
        "1 image(s) without an annotation left out; one without boxes says: no cells",
    ]


def test_a_whole_field_keeps_its_pixels_and_its_boxes(root: Path, tmp_path: Path) -> None:
    """Through shards and catalogue; and other boxes are another data set, though no pixel has changed."""
    declared = SourceDeclaration("whole_fields", "lab", root, "giemsa", {"Smudge": "smudge cell"}, annotations="csv")
    build_dataset(tmp_path / "data", [declared], settings=ShardSettings(codec="png"), progress=False)
    verify_dataset(tmp_path / "data")
    dataset = Dataset.open(tmp_path / "data")
    rows = {row.path: row for row in dataset.samples().itertuples()}
    row = rows["JPEGImages/a.png"]
    assert boxes_from_text(row.source_label) == [Box("red cell", 2, 2, 30, 30), Box("white cell", 60, 40, 80, 60)]
    assert boxes_from_text(rows["JPEGImages/b.png"].source_label) == []
    raw = np.asarray(Image.open(root / row.path).convert("RGB"))
    assert np.array_equal(np.asarray(decode_rgb(dataset.read_encoded(row))), raw)
    (root / "boxes.csv").write_text(LINES + "b.png,Smudge,1,1,20,20\n")
    build_dataset(tmp_path / "data", [], progress=False)
    assert Dataset.open(tmp_path / "data").content_hash != dataset.content_hash
    (root / "boxes.csv").write_text(LINES + "b.png,thing,1,1,20,20\n")
    with pytest.raises(UserError, match="unknown label 'thing'"):
        survey(declared)
    write_field(root, "a", 1, size=(640, 480))
    with pytest.raises(UserError, match=r"a\.png has 160x120 pixels, its annotation says 640x480"):
        survey(SourceDeclaration("whole_fields", "lab", root, "giemsa"))


def test_boxes_are_those_of_the_picture_as_it_is_shown(root: Path, tmp_path: Path) -> None:
    """A camera held upright stores a turned picture: boxes, squares and pixels are of the upright one."""
    shown = picture(1, WIDTH).crop((0, 0, HEIGHT, WIDTH))  # upright: higher than wide
    exif = Image.Exif()
    exif[0x0112] = 6
    shown.transpose(Image.Transpose.ROTATE_90).save(root / "JPEGImages" / "a.png", exif=exif)
    (root / "JPEGImages" / "b.png").unlink()
    (root / "boxes.csv").write_text("image,label,xmin,ymin,xmax,ymax\na.png,WBC,60,120,80,140\n")
    ((field,), _) = read_annotations(root, "csv")
    assert (field.width, field.height) == (HEIGHT, WIDTH)
    for kind in ("fields", "whole_fields"):
        declared = SourceDeclaration(kind, "lab", root, "giemsa", annotations="csv")
        data = tmp_path / kind
        build_dataset(data, [declared], settings=ShardSettings(codec="png"), ratio=(1, 0, 0), progress=False)
        (row,) = Dataset.open(data).samples().itertuples()
        pixels = np.asarray(decode_rgb(Dataset.open(data).read_encoded(row)))
        left, top, side = (50, 110, 40) if kind == "fields" else (0, 0, WIDTH)
        assert np.array_equal(pixels, np.asarray(shown)[top : top + side, left : left + side])
    with pytest.raises(UserError, match=r"a\.png is 120x160 as it is shown, its annotation says 160x120"):
        read_annotations(root, "voc")


def test_the_format_of_boxes_is_remembered_and_goes_with_fields_alone(root: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    main([f"shards={data}", f"fields={root}", "annotations=coco", "name=lab", "domain=giemsa"])
    assert Dataset.open(data).metadata["sources"][0]["annotations"] == "coco"
    main([f"shards={data}"])
    with pytest.raises(UserError, match=r"annotations= goes with fields=RAW or whole_fields=RAW"):
        main([f"shards={data}", f"folder={root}", "annotations=coco", "name=other", "domain=giemsa"])
