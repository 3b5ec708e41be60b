"""If these fail, cells cut from fields are wrong ones, carry the neighbour's type, or lie in training and in test."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from data_pipeline.audit import audit_dataset
from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.ingest.regions import Region, split_region
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration, layouts, survey
from data_pipeline.sources.annotations import AnnotatedField, Box
from data_pipeline.sources.fields import square_round
from launchers.build_shards import main as build
from tests.data_pipeline.raw_images import files_below, picture

WIDTH, HEIGHT = 160, 120
Drawn = tuple[str, int, int, int, int]  # name, left, top, right, bottom
LOSSLESS = ShardSettings(codec="png")


def write_field(root: Path, name: str, seed: int, *boxes: Drawn, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    """A field of 160 x 120 pixels and its annotation, as Pascal VOC has them."""
    for folder in ("JPEGImages", "Annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    picture(seed, WIDTH).crop((0, 0, WIDTH, HEIGHT)).save(root / "JPEGImages" / f"{name}.png")
    annotation = ElementTree.Element("annotation")
    place = ElementTree.SubElement(annotation, "size")
    for side, pixels in zip(("width", "height"), size, strict=True):
        ElementTree.SubElement(place, side).text = str(pixels)
    for label, *edges in boxes:
        thing = ElementTree.SubElement(annotation, "object")
        ElementTree.SubElement(thing, "name").text = label
        box = ElementTree.SubElement(thing, "bndbox")
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), edges, strict=True):
            ElementTree.SubElement(box, edge).text = str(value)
    ElementTree.ElementTree(annotation).write(root / "Annotations" / f"{name}.xml")


@pytest.fixture
def fields(tmp_path: Path) -> Path:
    """Thirty fields of two white cells and a red one; the first has one white cell, and a type."""
    root = tmp_path / "fields"
    write_field(root, "f00", 0, ("WBC", 60, 40, 80, 60), ("RBC", 2, 2, 30, 30))
    for number in range(1, 30):
        boxes: tuple[Drawn, ...] = (("WBC", 20, 20, 40, 40), ("WBC", 100, 60, 125, 80), ("RBC", 60, 60, 70, 70))
        write_field(root, f"f{number:02}", number, *boxes)
    (root / "types.csv").write_text("image,white_cells\nf00.png,monocyte\nf01.png,monocyte eosinophil\n")
    return root


def source(root: Path, **labels: str) -> SourceDeclaration:
    return SourceDeclaration("fields", "lab", root, "giemsa", labels)


def rows_of(data: Path) -> list[Sample]:
    return from_table(Dataset.open(data).table)


def test_each_white_cell_is_a_sample_with_the_pixels_round_its_box(fields: Path, tmp_path: Path) -> None:
    build_dataset(tmp_path / "data", [source(fields)], settings=LOSSLESS, progress=False)
    dataset = Dataset.open(tmp_path / "data")
    rows = [row for row in rows_of(tmp_path / "data") if row.kept]
    assert len(rows) == len({row.id for row in rows}) == 1 + 2 * 29
    first = next(row for row in rows if row.cell_type)
    assert (first.path, first.cell_type) == ("JPEGImages/f00.png#xywh=50,30,40,40", "monocyte")
    assert (first.width, first.height) == (40, 40)
    for row in rows[:5]:
        name, region = split_region(row.path)
        assert region is not None
        stored = next(sample for sample in dataset.samples().itertuples() if sample.id == row.id)
        field = np.asarray(Image.open(fields / name).convert("RGB"))
        cut = field[region.y : region.y + region.height, region.x : region.x + region.width]
        assert np.array_equal(np.asarray(decode_rgb(dataset.read_encoded(stored))), cut)


def test_cells_of_one_field_are_never_divided_between_splits(fields: Path, tmp_path: Path) -> None:
    build_dataset(tmp_path / "data", [source(fields)], progress=False)
    split_of_field: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "data"):
        field = split_region(row.path)[0]
        assert row.group == f"lab/{field}"
        split_of_field.setdefault(field, set()).add(row.split)
    assert all(len(splits) == 1 for splits in split_of_field.values())
    assert len(set.union(*split_of_field.values())) > 1
    checks, _ = audit_dataset(Dataset.open(tmp_path / "data"), progress=False)
    assert [check.name for check in checks if check.found] == []


def test_a_rebuild_writes_the_same_bytes_and_one_more_box_moves_no_other_cell(fields: Path, tmp_path: Path) -> None:
    build_dataset(tmp_path / "data", [source(fields)], progress=False)
    build_dataset(tmp_path / "again", [source(fields)], progress=False)
    assert files_below(tmp_path / "data") == files_below(tmp_path / "again")
    verify_dataset(tmp_path / "data")
    before = {row.id: (row.split, row.fold) for row in rows_of(tmp_path / "data")}
    write_field(fields, "f00", 0, ("WBC", 60, 40, 80, 60), ("eosinophil", 100, 20, 120, 40))
    build_dataset(tmp_path / "data", [], progress=False)
    after = {row.id: (row.split, row.fold) for row in rows_of(tmp_path / "data")}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_a_type_is_given_only_where_box_and_name_match_without_doubt(tmp_path: Path) -> None:
    root = tmp_path / "fields"
    cell, other = (20, 20, 40, 40), (90, 60, 110, 80)
    write_field(root, "one", 1, ("WBC", *cell))
    write_field(root, "two", 2, ("WBC", *cell), ("WBC", *other))
    write_field(root, "two_names", 3, ("WBC", *cell))
    write_field(root, "no_name", 4, ("WBC", *cell))
    write_field(root, "named_box", 5, ("neutrophil", *cell), ("WBC", *other))
    names = {"one": "basophil", "two": "basophil", "two_names": "basophil monocyte", "named_box": "lymphocyte"}
    lines = [f"{field}.png,{name}" for field, name in names.items()]
    (root / "types.csv").write_text("\n".join(["image,white_cells", *lines]))
    found = [(Path(split_region(image.path)[0]).stem, image.cell_type) for image in survey(source(root)).images]
    assert sorted(found) == [
        ("named_box", "lymphocyte"),
        ("named_box", "neutrophil"),
        ("no_name", ""),
        ("one", "basophil"),
        ("two", ""),
        ("two", ""),
        ("two_names", ""),
    ]
    (root / "types.csv").write_text("image,white_cells\none.png,bazophil\n")
    with pytest.raises(UserError, match="unknown label 'bazophil'"):
        survey(source(root))
    assert "basophil" in {image.cell_type for image in survey(source(root, bazophil="basophil")).images}


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((60, 40, 80, 60), Region(50, 30, 40, 40)),
        ((0, 0, 20, 10), Region(0, 0, 40, 40)),
        ((150, 110, 160, 120), Region(140, 100, 20, 20)),
        ((10, 10, 110, 60), Region(0, 0, 120, 120)),
    ],
    ids=["inside", "at the upper left border", "in the lower right corner", "larger than the field"],
)
def test_a_square_lies_inside_the_field_and_holds_the_box(box: tuple[int, int, int, int], square: Region) -> None:
    assert square_round(Box("WBC", *box), AnnotatedField("f", WIDTH, HEIGHT, ())) == square


def test_squares_of_one_side_in_microns_have_the_scale_of_their_field(fields: Path, tmp_path: Path) -> None:
    """Of fields of two scales; the side does not depend on the box."""
    lines = ["image,label,xmin,ymin,xmax,ymax,microns_per_pixel"]
    lines += [f"{name}.png,WBC,60,40,{right},60,{scale}" for name, right, scale in (("f00", 80, ""), ("f01", 90, 0.4))]
    (fields / "boxes.csv").write_text("\n".join(lines))
    data, given = tmp_path / "data", [f"fields={fields}", "name=lab", "domain=giemsa", "annotations=csv"]
    with pytest.raises(UserError, match=r"f00\.png: side_microns=10 needs microns_per_pixel="):
        build([f"shards={data}", *given, "side_microns=10"])
    build([f"shards={data}", *given, "side_microns=10", "microns_per_pixel=0.2"])
    build([f"shards={data}"])  # remembered
    found = {row.path.partition("#xywh=")[2]: row.microns_per_pixel for row in rows_of(data)}
    assert found == {"45,25,50,50": 0.2, "62,37,25,25": 0.4}
    for wrong in (["side_microns=-1", "microns_per_pixel=0.2"], ["microns_per_pixel=0"]):
        with pytest.raises(UserError, match="must be a number above 0"):
            build([f"shards={data}", *given, *wrong])
    with pytest.raises(UserError, match="go with fields=RAW"):
        build([f"shards={data}", f"whole_fields={fields}", "name=whole", "domain=giemsa", "side_microns=10"])


def test_what_is_wrong_in_annotations_is_said_and_costs_no_other_cell(fields: Path, tmp_path: Path) -> None:
    write_field(fields, "f01", 1, ("WBC", 20, 20, 20, 40), ("WBC", 100, 60, 125, 80))
    write_field(fields, "f02", 2, ("RBC", 20, 20, 40, 40))
    write_field(fields, "wrong_size", 60, ("WBC", 300, 300, 340, 340), size=(640, 480))
    (fields / "JPEGImages" / "f03.png").unlink()
    warnings = " ".join(survey(source(fields)).warnings)
    for said in (
        "1 box(es) without area",
        "1 field(s) without a box of a white cell",
        "1 annotation(s) without a field",
    ):
        assert said in warnings
    (fields / "SegmentationClass").mkdir()
    (fields / "SegmentationClass" / "f04.png").write_bytes(b"a mask of the same name, as Pascal VOC has them")
    build_dataset(tmp_path / "data", [source(fields)], progress=False)
    reasons = {row.path: row.reason for row in rows_of(tmp_path / "data") if not row.kept}
    assert list(reasons.values()) == ["unreadable: the region reaches past the picture of 160x120 pixels"]
    (fields / "Annotations" / "f04.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"f04\.xml: not an annotation"):
        survey(source(fields))


def test_a_table_lists_regions_of_files_and_keeps_those_of_a_file_together(tmp_path: Path) -> None:
    picture(1, 160).save(tmp_path / "field.png")
    table = tmp_path / "cells.csv"
    table.write_text("image,label\n" + "".join(f'"field.png#xywh={20 * n},0,40,40",monocyte\n' for n in range(6)))
    declared = SourceDeclaration("table", "cells", table, "giemsa")
    build_dataset(tmp_path / "data", [declared], ratio=(1, 0, 0), progress=False)
    rows = rows_of(tmp_path / "data")
    assert {row.group for row in rows} == {"cells/field field.png"}
    assert len({row.id for row in rows}) == 6


def test_bccd_has_a_keyword_of_its_own(real_images: Path, tmp_path: Path) -> None:
    assert layouts()["bccd"].public
    found = survey(SourceDeclaration("bccd", "bccd", real_images / "BCCD", "bccd")).images
    assert len(found) == 186
    assert sum(image.cell_type != "" for image in found) == 173
