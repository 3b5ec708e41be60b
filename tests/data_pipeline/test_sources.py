"""If these fail, images come in under the wrong label or group, or vanish without a word."""

from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.sources import RawImage, SourceDeclaration, discover, read_label_mapping, survey
from tests.data_pipeline.raw_images import folder_source, write_classes, write_image


def by_path(declaration: SourceDeclaration) -> dict[str, RawImage]:
    return {image.path: image for image in discover(declaration)}


def message(declaration: SourceDeclaration) -> str:
    with pytest.raises(UserError) as caught:
        discover(declaration)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_barcelona_takes_the_class_from_the_folder_and_the_finer_label_from_the_prefix(tmp_path: Path) -> None:
    for path in ("ig/PMY_1.jpg", "ig/MY_2.jpg", "neutrophil/BNE_3.jpg", "neutrophil/.DS_169665.jpg"):
        write_image(tmp_path / path, seed=1)
    source = SourceDeclaration("barcelona", "barcelona", tmp_path, "giemsa")
    images = by_path(source)
    assert images["ig/PMY_1.jpg"] == RawImage("ig/PMY_1.jpg", "PMY", "immature granulocyte", "", "giemsa", None)
    assert images["neutrophil/BNE_3.jpg"].cell_type == "neutrophil"
    assert images["neutrophil/.DS_169665.jpg"].hidden, "a stray system file must come in, to be excluded by name"
    other_reading = SourceDeclaration("barcelona", "b", tmp_path, "giemsa", promyelocytes="promyelocyte")
    assert by_path(other_reading)["ig/PMY_1.jpg"].cell_type == "promyelocyte"
    assert by_path(other_reading)["ig/MY_2.jpg"].cell_type == "immature granulocyte"
    mapped = SourceDeclaration("barcelona", "b", tmp_path, "giemsa", {"BNE": ""})
    assert by_path(mapped)["neutrophil/BNE_3.jpg"].cell_type == ""


def test_munich_copies_of_one_original_share_a_group(tmp_path: Path) -> None:
    names = ("BAS/BAS_0053_0_6588_109.tiff", "BAS/BAS_0053_0_8415_103.tiff", "BAS/BAS_0053.tiff")
    for name in (*names, "MYB/MYB_0053.tiff", "MYO/odd.tiff"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    images = by_path(SourceDeclaration("munich", "munich", tmp_path, "munich"))
    assert {images[name].group for name in names} == {"BAS_0053"}
    assert images["MYB/MYB_0053.tiff"].group == "MYB_0053", "another code with the same number is another cell"
    assert images["MYB/MYB_0053.tiff"].cell_type == "immature granulocyte", "MYB is the myelocyte"
    assert images["MYO/odd.tiff"].cell_type == "myeloblast"
    assert images["MYO/odd.tiff"].group == ""
    assert images["MYO/odd.tiff"].microns_per_pixel == 0.07


@pytest.mark.parametrize("kind", ["barcelona", "munich"])
def test_a_folder_that_the_public_set_does_not_have_is_named(kind: str, tmp_path: Path) -> None:
    write_image(tmp_path / "PBC" / "basophil" / "BA_1.jpg", 1)
    text = message(SourceDeclaration(kind, "x", tmp_path, "d"))  # type: ignore[arg-type]
    assert "unknown label 'PBC' (1 image)" in text
    assert "platelet" in text if kind == "barcelona" else "PMO" in text


def test_class_folders_are_known_by_any_usual_spelling(tmp_path: Path) -> None:
    spellings = {
        "Basophil": "basophil",
        "IMMATURE_GRANULOCYTE": "immature granulocyte",
        "smudge-cell": "smudge cell",
        "ig": "immature granulocyte",
        "LYT": "lymphocyte",
        "myb": "immature granulocyte",
    }
    write_classes(tmp_path, dict.fromkeys(spellings, 1), 0)
    found = {image.source_label: image.cell_type for image in discover(folder_source(tmp_path, "f"))}
    assert found == spellings


def test_an_unknown_label_names_label_count_and_the_file_to_write(tmp_path: Path) -> None:
    write_classes(tmp_path, {"basophil": 1, "Blast": 3, "dirt": 1, ".ipynb_checkpoints": 2}, 0)
    text = message(folder_source(tmp_path, "f"))
    assert str(tmp_path) in text
    assert "'Blast' (3 images)" in text
    assert "'dirt' (1 image)" in text
    assert "label,cell_type" in text
    assert "labels=FILE" in text
    assert "checkpoints" not in text
    mapping = tmp_path / "labels.csv"
    mapping.write_text("label,cell_type\nBlast,Myeloblast\ndirt,\n")
    labels = read_label_mapping(mapping)
    images = by_path(SourceDeclaration("folder", "f", tmp_path, "d", labels))
    assert images["Blast/0000.jpg"].cell_type == "myeloblast"
    assert images["dirt/0000.jpg"].cell_type == "", "mapped to nothing: kept for the stain models"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("label:cell_type\na:basophil\n", "column label, cell_type is missing"),
        ("label,cell_type\nBlast,blastoid\n", "line 2: 'blastoid' is no cell type"),
        ("label,cell_type\nx,basophil\nx,monocyte\n", "line 3: 'x' has another cell type further up"),
        ("label,cell_type\nx\n", "line 2: expected 2 values"),
        ("", "found: nothing"),
    ],
)
def test_a_label_mapping_that_is_wrong_names_the_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv") as caught:
        read_label_mapping(path)
    assert says in str(caught.value)


def write_table(folder: Path, text: str) -> SourceDeclaration:
    for number in range(4):
        write_image(folder / "cells" / f"{number}.jpg", number)
    (folder / "table.csv").write_text(text, encoding="utf-8-sig")
    return SourceDeclaration("table", "t", folder / "table.csv", "giemsa")


def test_a_table_gives_groups_domains_and_unlabelled_images(tmp_path: Path) -> None:
    source = write_table(
        tmp_path,
        "image,label,patient,slide,domain,age\n"
        "cells/0.jpg,Neutrophil,7,a,,50\n"
        "./cells/1.jpg,,7,b,violet,50\n"
        "cells/2.jpg,PMO,,a,,\n"
        f"{tmp_path}/cells/3.jpg,monocyte,,,,\n",
    )
    found = survey(source)
    images = {image.path: image for image in found.images}
    assert images["cells/0.jpg"] == RawImage("cells/0.jpg", "Neutrophil", "neutrophil", "patient 7", "giemsa", None)
    assert images["cells/1.jpg"] == RawImage("cells/1.jpg", "", "", "patient 7", "violet", None)
    assert images["cells/2.jpg"].group == "slide a"
    assert images["cells/2.jpg"].cell_type == "promyelocyte"
    assert images[f"{tmp_path}/cells/3.jpg"].group == ""
    assert "t: column(s) not used: age" in found.warnings, "a misspelt `patient` would mix splits unseen"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,labels\ncells/0.jpg,basophil\n", "column label is missing"),
        ("image,label\ncells/0.jpg,basophil\ncells/9.jpg,basophil\n", "line 3: no such image cells/9.jpg (1 of 2"),
        ("image,label\n,basophil\n", "line 2: no image named"),
        ("image,label\n", "no image in this table"),
        ("image,label\ncells/0.jpg,Blast\n", "unknown label 'Blast' (1 image)"),
        ("image,label,domain\ncells/0.jpg,basophil,a/b\n", "line 2: domain 'a/b'"),
        ("image,label\ncells/0.jpg,basophil,extra\n", "line 2: expected 2 values"),
        ('image,label\n"cells/0.jpg,basophil\n', "not a CSV file"),
    ],
)
def test_a_table_that_is_wrong_names_the_line(text: str, says: str, tmp_path: Path) -> None:
    text_found = message(write_table(tmp_path, text))
    assert "table.csv" in text_found
    assert says in text_found


def test_unlabelled_images_come_in_from_any_depth(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0)
    write_image(tmp_path / "deep" / "er" / "b.JPG", 1)
    (tmp_path / "annotations.dat").write_text("x")
    found = survey(SourceDeclaration("unlabelled", "u", tmp_path, "violet"))
    assert [(image.path, image.cell_type) for image in found.images] == [("a.png", ""), ("deep/er/b.JPG", "")]
    assert found.warnings == ["u: 1 file(s) without an image's suffix passed over (annotations.dat)"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_image(tmp_path / "raw" / "basophil" / "a.jpg", 0)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "basophil").symlink_to(tmp_path / "raw" / "basophil")
    (tmp_path / "raw" / "basophil" / "loop").symlink_to(tmp_path / "raw")
    assert len(discover(folder_source(tmp_path / "raw", "f"))) == 1
    assert len(discover(folder_source(tmp_path / "elsewhere", "g"))) == 1


def test_a_missing_folder_and_one_without_images_are_two_messages(tmp_path: Path) -> None:
    assert f"{tmp_path}/none: no such folder" in message(folder_source(tmp_path / "none", "f"))
    (tmp_path / "notes.txt").write_text("x")
    assert f"{tmp_path}: no image in this folder" in message(folder_source(tmp_path, "f"))
    assert "no such file" in message(SourceDeclaration("table", "t", tmp_path / "t.csv", "d"))


def test_an_image_outside_the_class_folders_is_not_guessed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", 0)
    assert "unknown label '' (1 image)" in message(folder_source(tmp_path, "f"))


@pytest.mark.parametrize("name", ["", "a/b", "a b", "ü"])
def test_a_name_that_cannot_stand_in_a_file_name_is_refused(name: str, tmp_path: Path) -> None:
    write_image(tmp_path / "basophil" / "a.jpg", 0)
    assert "use letters, digits" in message(folder_source(tmp_path, name))
    assert "use letters, digits" in message(folder_source(tmp_path, "f", domain=name))


def test_the_public_sets_come_in_whole(real_images: Path) -> None:
    barcelona = discover(SourceDeclaration("barcelona", "b", real_images / "PBC_dataset_normal_DIB", "barcelona"))
    munich = discover(SourceDeclaration("munich", "m", real_images / "AML-Cytomorphology_LMU", "munich"))
    assert (len(barcelona), len(munich)) == (4000, 1150)
    assert {image.source_label for image in munich if image.cell_type == "promyelocyte"} == {"PMB", "PMO"}
