"""If these fail, a user is told to write what is already written, or a name is taken for another one's."""

import codecs
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.cell_types import in_our_words
from data_pipeline.errors import UserError
from data_pipeline.names import Names, difference, plain, shown
from data_pipeline.sources import SourceDeclaration, read_label_mapping, survey
from data_pipeline.sources.csv_files import read_csv
from data_pipeline.stream.config import StreamConfig
from tests.data_pipeline.raw_images import folder_source, survey_or_refusal, write_image
from trainer.experiments.ablation import AblationConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.generation.synthesis_config import SynthesizeConfig


def apart(name: str) -> str:
    return unicodedata.normalize("NFD", name)


SPELLINGS = {
    "Éosinophile": apart("Éosinophile"),
    "Lymphozyten": "Lymphozyten ",
    "smudge cell": "smudge\u00a0\u200bcell",
    "Neutrophile": "NEUTROPHILE",
    "band form": "band_form",
    "Straße": "STRASSE",
}


@pytest.mark.parametrize(("name", "other"), SPELLINGS.items())
def test_spellings_of_one_name_find_each_other(name: str, other: str) -> None:
    assert Names([name, "another"]).matches(other) == [name]
    assert Names([other, "another"]).matches(name) == [other]
    assert difference(name, other)


def test_the_exact_name_goes_before_and_the_strictest_form_decides() -> None:
    assert Names(["a b", "A b", "a_b"]).matches("a b") == ["a b"]
    assert Names(["A b", "a_b"]).matches("a  B") == ["A b"], "case is less of a difference than a separator"
    assert Names(["A b", "a B"]).matches("a b") == ["A b", "a B"], "two can be meant: the caller must ask"
    assert Names(["-", "_"]).matches(" ") == [], "nothing but separators is like no other name"


def test_what_no_eye_sees_is_escaped() -> None:
    assert shown(apart("é")) == "e\\u0301"
    assert shown("é") == "é"
    assert shown("a\u200b\udcfc\t") == "a\\u200b\\udcfc\\t"
    hint = Names(["neutrophil"]).hint("n\u0435utrophil")
    assert "U+0435 CYRILLIC SMALL LETTER IE is not U+0065" in hint
    assert "equal to 'A b' and 'a B' but for case" in Names(["A b", "a B"]).hint("a b")


def test_cell_types_are_known_as_users_write_them() -> None:
    written = ["Neutrophil", "SMUDGE-CELL", "immature_granulocyte ", "blast", ""]
    assert in_our_words(written) == ["neutrophil", "smudge cell", "immature granulocyte", "blast", ""]
    assert SynthesizeConfig(cell_types=["Smudge-Cell"]).cell_types == ["smudge cell"]
    assert FewShotRunConfig(rich_types=["Basophil"], rare_types=["smudge_cell"]).rare_types == ["smudge cell"]
    assert AblationConfig(moderate_types=["BASOPHIL"]).moderate_types == ["basophil"]
    assert StreamConfig(cell_types=["Basophil", "smudge_cell"]).cell_types == ["basophil", "smudge cell"]


@pytest.mark.parametrize(("mapped", "folder"), SPELLINGS.items())
def test_a_mapping_finds_its_folder(mapped: str, folder: str, tmp_path: Path) -> None:
    write_image(tmp_path / "raw" / folder / "0.jpg", 1)
    (tmp_path / "map.csv").write_text(f"label,cell_type\n{mapped},Myeloblast\n", encoding="utf-8")
    labels = read_label_mapping(tmp_path / "map.csv")
    found = survey(SourceDeclaration("folder", "f", tmp_path / "raw", "d", labels))
    assert [image.cell_type for image in found.images] == ["myeloblast"]


def test_a_folder_that_two_lines_of_the_mapping_can_mean_is_refused_with_both(tmp_path: Path) -> None:
    write_image(tmp_path / "BLASTEN" / "0.jpg", 1)
    labels = {"blasten": "myeloblast", "Blasten": "monoblast"}
    with pytest.raises(UserError, match="'Blasten' and 'blasten' but for case: write it exactly"):
        survey(SourceDeclaration("folder", "f", tmp_path, "d", labels))
    labels["Blasten"] = "myeloblast"
    found = survey(SourceDeclaration("folder", "f", tmp_path, "d", labels))
    assert found.images[0].cell_type == "myeloblast", "both mean the same"


def test_an_unknown_label_names_the_one_that_may_be_meant(tmp_path: Path) -> None:
    write_image(tmp_path / "neutrophils" / "0.jpg", 1)
    with pytest.raises(UserError, match="did you mean 'neutrophil'"):
        survey(folder_source(tmp_path, "f"))
    write_image(tmp_path / "by_patient" / "P1" / "neutrophil" / "0.jpg", 2)
    with pytest.raises(UserError, match="put the type's folder above the patient's"):
        survey(folder_source(tmp_path / "by_patient", "f"))


def table(folder: Path, *listed: str) -> SourceDeclaration:
    lines = "".join(f'"{name}",basophil\n' for name in listed)
    (folder / "t.csv").write_text("image,label\n" + lines, encoding="utf-8")
    return SourceDeclaration("table", "t", folder / "t.csv", "d")


@pytest.mark.parametrize(
    ("there", "listed"),
    [
        (apart("Kühn_1.png"), "Kühn_1.png"),
        ("Kühn_1.png", apart("Kühn_1.png")),
        ("Slides/cell 1.png", "slides/Cell 1.PNG"),
        ("slides/cell  1 .png", "slides/cell 1.png"),
        ("slides/cell_1.png", "slides\\cell_1.png"),
        ("slides/cell_1.png", ".\\Slides\\cell-1.png"),
        ("a\\b.png", "a\\b.png"),
        (".hidden/cell.png", ".hidden/cell.png"),
    ],
)
def test_a_table_finds_the_file_that_it_means(there: str, listed: str, tmp_path: Path) -> None:
    write_image(tmp_path / there, 1)
    found = survey(table(tmp_path, listed))
    assert [(image.path, image.hidden) for image in found.images] == [(there, False)], "listed, so wanted"
    exact = there == listed.replace("\\", "/") or there == listed
    assert bool([warning for warning in found.warnings if "differs in" in warning]) != exact


@pytest.mark.parametrize(
    ("there", "listed", "says"),
    [
        (["A.png", "a.PNG"], "a.png", "can be 'A.png' or 'a.PNG'"),
        (["a.png"], "a", "there is 'a.png': write the suffix"),
        (["cell_01.png"], "cell_1.png", "did you mean 'cell_01.png'"),
        (["cell.png"], "sub/cell.png", "there is no folder 'sub'"),
        (["cell.png"], "C:\\data\\cell.png", "a path of a Windows machine"),
        ([os.fsdecode(b"K\xfchn.png")], "Kühn.png", "did you mean 'K\\udcfchn.png'"),
    ],
)
def test_a_file_that_is_not_found_is_told_what_differs(
    there: list[str], listed: str, says: str, tmp_path: Path
) -> None:
    for number, name in enumerate(there):
        write_image(tmp_path / name, number)
    with pytest.raises(UserError) as caught:
        survey(table(tmp_path, listed))
    assert says in str(caught.value)
    assert "t.csv, line 2" in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_files_as_spreadsheets_write_them_are_read(separator: str, encoding: str, tmp_path: Path) -> None:
    lines = [" Label ;CELL_TYPE;", "Éosinophile;eosinophil;", "Süß;;", ";;", ""]
    path = tmp_path / "map.csv"
    path.write_bytes("\r\n".join(lines).replace(";", separator).encode(encoding))
    found = read_csv(path, ("label", "cell_type"))
    assert [row for _, row in found.rows] == [
        {"label": "Éosinophile", "cell_type": "eosinophil"},
        {"label": "Süß", "cell_type": ""},
    ]
    assert [line for line, _ in found.rows] == [2, 3]
    assert ("not UTF-8" in "".join(found.warnings)) == (encoding == "cp1252")


def test_a_line_that_names_the_separator_is_not_the_header(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('sep=;\nlabel;cell_type\n"a;b";basophil\nx\n')
    with pytest.raises(UserError, match=r"m\.csv, line 4: expected 2 values; .* hold a semicolon"):
        read_csv(tmp_path / "m.csv", ("label", "cell_type"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("label,cell_type\nнейтрофил,neutrophil\n".encode("cp1251"), "line 2: not UTF-8 text"),
        ("label,cell_type\nKůň,neutrophil\n".encode("cp1250"), "its encoding is unknown"),
        ("label,cell_type\na,b\n".encode("utf-16-le"), "null characters"),
        (codecs.BOM_UTF16_LE + b"a", "not UTF-16 text"),
        (b"PK\x03\x04workbook", "a workbook"),
        (b"label,Label ,cell_type\n", "the column 'label' is there twice"),
        (b"labl,cell_type\n", "did you mean 'labl'"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_csv(tmp_path / "m.csv", ("label", "cell_type"))
    assert says in str(caught.value)


file_names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0") | st.sampled_from("aAbB _-.\u0301\u200b\\"),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", "..") and len(name.encode()) < 60)
spellings = st.sampled_from(
    [str, apart, str.upper, str.casefold, str.swapcase, lambda name: f" {name}  ", lambda name: name.replace("_", "-")]
)


@given(st.lists(file_names, min_size=1, max_size=4), st.lists(spellings, min_size=1, max_size=3), st.booleans())
def test_whatever_files_and_labels_are_called_they_are_found_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], written_as: list[object], in_table: bool
) -> None:
    """Never a traceback, and never the file or the label of another name."""
    folder = tmp_path_factory.mktemp("named")
    spelled = list(names)
    for change in written_as:
        spelled = [change(name) for name in spelled]  # type: ignore[operator]
    if in_table:
        for name in names:
            (folder / name).write_bytes(b"")
        csv = folder / f"{'t' * 100}.csv"
        quoted = "".join('"{}",basophil\n'.format(name.replace('"', '""')) for name in spelled)
        csv.write_text("image,label\n" + quoted, encoding="utf-8", newline="")
        source = SourceDeclaration("table", "t", csv, "d")
    else:
        for name in names:
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "0.png").write_bytes(b"")
        source = SourceDeclaration("folder", "f", folder, "d", dict.fromkeys(spelled, "basophil"))
    found, refusal = survey_or_refusal(source)
    assert "\n" not in refusal
    if not in_table:
        forms = {plain(name) for name in spelled}
        assert all(plain(image.source_label) in forms or not image.cell_type for image in found.images)
