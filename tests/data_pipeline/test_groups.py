"""If these fail, images of one patient lie on both sides of a split, or an old data set's images change sides."""

import csv
import dataclasses
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import SPLITS, Dataset, Sample, to_table
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import unmatched_exclusions
from data_pipeline.ingest.curate import DEFAULT_RATIO, Exclusion, Ratio, apply_exclusions, check_ratio, split_of
from data_pipeline.ingest.split_check import check_splits, way_out
from data_pipeline.sources import SourceDeclaration, survey
from data_pipeline.sources.declaration import GroupRule
from data_pipeline.sources.identifiers import canonical, identifier_warnings
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from tests.data_pipeline.raw_images import survey_or_refusal, write_image


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (["7", "7.0", " 7 ", "007", "7,0", "7e0", "+7", "'007", '="007"', "7."], "7"),
        (["1000", "1e3", "1E+03", "1000.00"], "1000"),
        (["0.5", "00.50", "5e-1"], "0.5"),
        (["0", "000", "0.0"], "0"),
        (["-5", "-5.0"], "-5"),
        (["1" * 40, "0" + "1" * 40], "1" * 40),
        (["2023-01-05", "2023-01-05 00:00:00", "2023-01-05T00:00:00.000"], "2023-01-05"),
        (["P 07", "P  07", "P\u00a007", "P\u200b 07", "Ｐ 07"], "P 07"),
        (["", " ", "unknown", "NA", "n/a", "#N/A", "nan", "None", "-", "--", "?", "NULL", "<NA>", "Unbekannt"], ""),
    ],
)
def test_what_a_spreadsheet_makes_of_an_identifier_is_that_identifier(spellings: list[str], name: str) -> None:
    assert {canonical(spelling) for spelling in spellings} == {name}


@pytest.mark.parametrize("name", ["P07", "p07", "P-7", "1,234", "1-2", "slide 3", "AB_12", "7a", "3.1.2", "NA12"])
def test_an_ordinary_identifier_stays_as_it_is(name: str) -> None:
    """Its split follows from it: a new data set of an old table must split as the old one does."""
    assert canonical(name) == name


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"7": 1, "7.0": 2}, "patient '7' and '7.0' are taken for one"),
        ({"unknown": 9, "P1": 1}, "9 image(s) have the patient 'unknown', which looks like a missing one"),
        ({"": 3, "P1": 1}, "3 image(s) name no patient"),
        ({"P1": 1, "p1": 1}, "patient 'P1' and 'p1' may be one"),
        ({"P-7": 1, "P_07": 1}, "may be one"),
        ({"7": 1, "patient 7": 1}, "may be one"),
        ({"1.23457E+15": 2, "5": 1}, "a number that a spreadsheet has rounded"),
        ({"01-Feb": 2, "1-3": 1}, "looks like a date"),
    ],
)
def test_identifiers_that_look_wrong_are_told(counts: dict[str, int], says: str) -> None:
    assert says in "; ".join(identifier_warnings(counts, "patient", merged=True))


def test_identifiers_that_look_right_are_not_told() -> None:
    assert identifier_warnings({"P01": 3, "P02": 4, "1-2": 1, "12": 3, "2.1": 1}, "patient", merged=True) == []
    assert identifier_warnings({"2023-01-05": 3, "2023-02-05": 3}, "slide", merged=True) == [], "all are dates"


def write_table(folder: Path, lines: list[str], header: str = "image,label,patient,slide") -> SourceDeclaration:
    for line in lines:
        path = folder / line.split(",")[0]
        if not path.exists():
            write_image(path, int(path.stem))
    (folder / "t.csv").write_text("\n".join([header, *lines]) + "\n")
    return SourceDeclaration("table", "t", folder / "t.csv", "d")


def test_a_table_takes_spellings_of_a_patient_for_one_and_missing_ones_for_none(tmp_path: Path) -> None:
    lines = ["1.png,basophil,7,", "2.png,basophil,7.0,", "3.png,basophil,unknown,", "4.png,basophil,unknown,s1"]
    images = survey(write_table(tmp_path, lines)).images
    assert [image.group for image in images] == ["patient 7", "patient 7", "", "slide s1"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["1.png,basophil,A,s1", "2.png,basophil,B,s1"], "slide 's1' is of several patients ('A', 'B')"),
        (["1.png,basophil,A,s1", "2.png,basophil,,s1"], "slide 's1' has images with a patient ('A') and without"),
        (["1.png,basophil,A,", "1.png,basophil,A,"], "1 file(s) listed more than once, by the same patient"),
        (["1.png,basophil,A,", "./1.png,basophil,B,"], "1 file(s) listed more than once, of different patients"),
    ],
)
def test_a_table_that_contradicts_itself_is_told(lines: list[str], says: str, tmp_path: Path) -> None:
    assert says in "; ".join(survey(write_table(tmp_path, lines)).warnings)


@pytest.mark.parametrize("header", ["image,label,Patient ID", "image,label,pateint", "image,label,Case"])
def test_a_column_that_may_name_patients_is_told(header: str, tmp_path: Path) -> None:
    found = survey(write_table(tmp_path, ["1.png,basophil,A"], header))
    assert "to patient if it names one" in found.warnings[0]
    spelled = write_table(tmp_path, ["1.png,basophil,A"], " Image ,LABEL,Patient")
    assert survey(spelled).images[0].group == "patient A"
    old = survey(dataclasses.replace(spelled, group=None))
    assert old.images[0].group == "", "the column was not used when this source was declared"
    assert "rename 'Patient' to patient" in old.warnings[0]
    with pytest.raises(UserError, match="the column 'patient' is there twice"):
        survey(write_table(tmp_path, ["1.png,basophil,A,B"], "image,label,patient,Patient "))


def folder_groups(root: Path, rule: GroupRule | None, *paths: str) -> dict[str, str]:
    for number, path in enumerate(paths):
        write_image(root / path, number)
    found = survey(SourceDeclaration("folder", "f", root, "d", group=rule))
    return {image.path: image.group for image in found.images}


def test_sub_folders_name_patients(tmp_path: Path) -> None:
    paths = ["basophil/Patient_1/0.png", "monocyte/patient 1/0.png", "basophil/train/P2/slide/0.png", "basophil/0.png"]
    groups = ["folder patient 1", "folder patient 1", "folder p2", ""]
    assert folder_groups(tmp_path, "auto", *paths) == dict(zip(paths, groups, strict=True))
    assert folder_groups(tmp_path, "folder")["basophil/train/P2/slide/0.png"] == "folder train"
    assert set(folder_groups(tmp_path, "none").values()) == {""}
    assert set(folder_groups(tmp_path, None).values()) == {""}, "as data sets were built before there was a choice"


@pytest.mark.parametrize("folder", ["train", "Images", "fold_1", "segmented", "PMO", "unknown", "lymphocyte"])
def test_sub_folders_of_another_kind_name_nobody(folder: str, tmp_path: Path) -> None:
    assert folder_groups(tmp_path, "auto", f"neutrophil/{folder}/0.png") == {f"neutrophil/{folder}/0.png": ""}


def test_what_sub_folders_are_taken_for_is_told(tmp_path: Path) -> None:
    def told(rule: GroupRule | None, kind: Any = "folder") -> str:
        return " ".join(survey(SourceDeclaration(kind, "f", tmp_path, "d", group=rule)).warnings)

    paths = [f"{label}/P{patient}/{number}.png" for label in CELL_TYPES[:2] for patient in (1, 2) for number in (1, 2)]
    folder_groups(tmp_path, "auto", *paths)
    assert "2 sub-folder(s) (p1, p2) are taken for patients or slides" in told("auto")
    assert "group=none if they are neither." in told("auto")
    assert "(p1, p2) are taken for patients" in told("auto", "unlabelled"), "the folders of types above them are none"
    assert "look like patients or slides, and their images lie in several splits" in told(None)
    assert told("folder") == told("none") == ""
    write_image(tmp_path / "basophil" / "P-01" / "0.png", 80)
    for rule in ("auto", "folder"):
        assert "sub-folder 'p 01' and 'p1' may be one: they are taken for several" in told(rule)
    finer = tmp_path / "finer"
    folder_groups(finer, "auto", "monocyte/classical/0.png", "monocyte/classical/1.png")
    said = survey(SourceDeclaration("folder", "f", finer, "d")).warnings[0]
    names = [f"monocyte/patient{patient:02}_{number}.png" for patient in range(3) for number in range(3)]
    folder_groups(tmp_path / "names", "auto", *names)
    named = survey(SourceDeclaration("folder", "f", tmp_path / "names", "d")).warnings
    assert "file names look as if they named patients or slides ('patient00', 3 in all)" in named[0]
    assert "None is found below two cell types: if they are finer types, say group=none" in said


def build(root: Path, *sources: SourceDeclaration, **options: Any) -> dict[str, Any]:
    return build_dataset(root, sources, progress=False, **options)


def test_an_old_data_set_keeps_its_groups_until_it_is_told_otherwise(tmp_path: Path) -> None:
    """What was declared before there was a rule: the same bytes, though the command is given again without one."""
    raw, root = tmp_path / "raw", tmp_path / "data"
    paths = [f"basophil/P{patient}/{patient}{number}.png" for patient in (1, 2) for number in range(4)]
    folder_groups(raw, "auto", *paths)
    table = write_table(
        tmp_path / "more", [f"{number}.png,monocyte,7{'.0' * (number % 2)}," for number in range(60, 64)]
    )
    old = [
        SourceDeclaration("folder", "f", raw, "d", group=None),
        SourceDeclaration("table", "t", table.root, "d", group=None),
    ]
    build(root, *old)
    sources = json.loads((root / "dataset.json").read_text())["sources"]
    assert not any("group" in source for source in sources), "as it was written before there was a rule"
    before = (root / "catalog.parquet").read_bytes()
    report = build(root, SourceDeclaration("folder", "f", raw, "d"), table)
    assert (root / "catalog.parquet").read_bytes() == before
    assert "declare it again with group=folder" in "".join(report["warnings"])
    assert "'7' and '7.0' are taken for several, as when this source was declared" in "".join(report["warnings"])
    build(root, SourceDeclaration("folder", "f", raw, "d", group="folder"))
    build(root)
    rows = Dataset.open(root).samples()
    assert set(rows["group"][rows["source"] == "f"]) == {"f/folder p1", "f/folder p2"}
    assert set(rows["group"][rows["source"] == "t"]) == {"t/patient 7", "t/patient 7.0"}


def samples(groups: dict[str, dict[str, int]], ratio: Ratio = DEFAULT_RATIO) -> list[Sample]:
    """So many images of each cell type in each group."""
    return [
        Sample(f"{group} {cell_type} {number}", "s", "d", "p", "", cell_type, group, split_of(group, ratio), 0)
        for group, counts in groups.items()
        for cell_type, count in counts.items()
        for number in range(count)
    ]


def parts(groups: dict[str, dict[str, int]], ratio: Ratio = DEFAULT_RATIO) -> list[pa.Table]:
    return [to_table(samples(groups, ratio))]


def suggested(warnings: list[str]) -> Ratio | None:
    """The ratio that warnings tell the user to write."""
    text = " ".join(warnings)
    if "ratio=[" not in text:
        return None
    return check_ratio([float(share) for share in text.partition("ratio=[")[2].partition("]")[0].split(",")])


@pytest.mark.parametrize("patients", range(3, 9))
def test_the_ratio_that_a_build_suggests_gives_every_split_a_patient(patients: int) -> None:
    for seed in range(8):
        groups = {f"s/patient {seed}-{number}": {"basophil": 5, "monocyte": 5} for number in range(patients)}
        warnings = check_splits(parts(groups), DEFAULT_RATIO)
        assert f"{patients} groups" in warnings[0]
        splits = {split_of(group) for group in groups}
        ratio = suggested(warnings)
        if splits != set(SPLITS):
            assert "no " in warnings[0]
            assert ratio is not None
        if ratio is not None:
            assert {split_of(group, ratio) for group in groups} == set(SPLITS)


def test_a_cell_type_that_is_held_out_whole_is_told() -> None:
    test = next(name for name in map(str, range(99)) if split_of(name) == "test")
    groups = {f"g{number}": {"basophil": 5} for number in range(60)} | {test: {"platelet": 4}}
    warnings = check_splits(parts(groups), DEFAULT_RATIO)
    assert "no training image of platelet (4 image(s) of 1 group(s)): it cannot be learned" in warnings
    groups = {f"g{number}": {"basophil": 5} for number in range(200)}
    assert check_splits(parts(groups), DEFAULT_RATIO) == [], "nothing to say of a data set that is as it should be"


def test_a_group_with_most_images_and_a_single_one_are_told() -> None:
    groups = {f"g{number}": {"basophil": 5} for number in range(40)} | {"clinic/patient x": {"basophil": 150}}
    assert "group 'clinic/patient x' holds 43% of the images" in check_splits(parts(groups), DEFAULT_RATIO)[0]
    assert "all images are of one group (only)" in check_splits(parts({"only": {"basophil": 9}}), DEFAULT_RATIO)[0]
    assert (
        "make no three splits" in check_splits(parts({"a": {"basophil": 9}, "b": {"basophil": 9}}), DEFAULT_RATIO)[-1]
    )


def test_a_split_that_was_asked_to_be_empty_is_not_told() -> None:
    groups = {f"g{number}": {"basophil": 5} for number in range(60)}
    ratio = check_ratio([0.9, 0.1, 0.0])
    assert not [warning for warning in check_splits(parts(groups, ratio), ratio) if "no test" in warning]


def test_who_needs_an_empty_split_is_told_the_ratio(tmp_path: Path) -> None:
    names = [name for name in map(str, range(99)) if split_of(f"t/patient {name}") != "validation"]
    lines = [f"{number}.png,{CELL_TYPES[number % 2]},{names[number // 5]}," for number in range(20)]
    report = build(tmp_path / "data", write_table(tmp_path / "raw", lines))
    ratio = suggested(report["warnings"])
    assert ratio is not None
    dataset = Dataset.open(tmp_path / "data")
    assert way_out(dataset, ["train"]) == ""
    with pytest.raises(UserError, match=r"for split validation.*ratio=\[") as caught:
        Stream(
            dataset,
            StreamConfig(image_size=32),
            splits=["validation"],
            cell_types=CELL_TYPES[:2],
            global_batch=4,
            micro_batch=None,
            seed=0,
            training=False,
        )
    assert suggested([str(caught.value)]) == ratio
    build(tmp_path / "data", ratio=ratio)
    assert set(Dataset.open(tmp_path / "data").samples()["split"]) == set(SPLITS)


def test_names_that_differ_for_machines_only_are_told(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number, name in enumerate(("Ours", "ours")):
        write_image(tmp_path / name / "basophil" / "0.png", number)
    one, other = (SourceDeclaration("folder", name, tmp_path / name, name) for name in ("Ours", "ours"))
    told = "; ".join(build(root, one, other)["warnings"])
    assert "sources 'Ours' and 'ours' differ only in case and count as two" in told
    assert "domains 'Ours' and 'ours' differ only in case" in told
    with pytest.raises(UserError, match=r"no source 'OURS' to remove .*equal to 'Ours' and 'ours' but for case"):
        build(root, remove=["OURS"])
    with pytest.raises(UserError, match=r"no domain 'OURS' here .*'Ours' and 'ours' but for case"):
        Dataset.open(root).samples(domains=["OURS"])


def test_a_line_of_the_experts_list_that_finds_nothing_says_what_is_near() -> None:
    rows = samples({"a": {"basophil": 1}})
    rows[0].path = "basophil/cell_07.png"
    told = [
        unmatched_exclusions([Exclusion(path=path)], lambda: (row.path for row in rows))[0]
        for path in ("raw/cell_07.png", "basophil/cel_07.png")
    ]
    assert "there is 'basophil/cell_07.png': paths count from the source's folder" in told[0]
    assert "did you mean 'cell_07.png'" in told[1]


@pytest.mark.parametrize("path", ["Basophil/Kühn 1.PNG", "basophil\\Ku\u0308hn_1.png"])
def test_the_experts_list_finds_the_image_that_it_means(path: str) -> None:
    rows = samples({"a": {"basophil": 1}, "b": {"basophil": 1}})
    rows[0].path, rows[1].path = "basophil/Kühn_1.png", "basophil/Kuhn_1.png"
    assert apply_exclusions(rows, [Exclusion(path=path, source="S ")]) == []
    assert [row.kept for row in rows] == [False, True]


identifiers = st.one_of(
    st.text(max_size=8),
    st.integers().map(str),
    st.floats().map(str),
    st.decimals().map(str),
    st.dates().map(str),
    st.datetimes().map(str),
    st.booleans().map(str),
    st.sampled_from(
        ["", "unknown", "NA", "-", "0", "7", "7.0", "007", "1e3", "7,0", "1E+999", "'7", '="7"', "٣", "½", "Ⅷ"]
    ),
)


@given(
    st.lists(st.tuples(identifiers, identifiers), min_size=1, max_size=8),
    st.sampled_from(["auto", None]),
    st.sampled_from(list(",;\t|")),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
)
def test_whatever_patients_and_slides_are_called_groups_are_sound_or_the_table_is_refused(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str]],
    rule: GroupRule | None,
    separator: str,
    encoding: str,
) -> None:
    """No traceback; an image's group follows from its own line; warnings are lines that can be printed."""
    folder = tmp_path_factory.mktemp("groups")
    with (folder / "t.csv").open("w", encoding=encoding, errors="surrogateescape", newline="") as file:
        table = csv.writer(file, delimiter=separator)
        table.writerow(["image", "label", "patient", "slide"])
        for number, (patient, slide) in enumerate(rows):
            (folder / f"{number}.png").touch()
            with suppress(UnicodeEncodeError):
                table.writerow([f"{number}.png", "basophil", patient, slide])
    found, refusal = survey_or_refusal(SourceDeclaration("table", "t", folder / "t.csv", "d", group=rule))
    assert "\n" not in refusal
    for image in found.images:
        patient, slide = rows[int(image.path.removesuffix(".png"))]
        if rule is not None and encoding != "cp1252" and "\0" not in patient + slide:
            named = f"patient {canonical(patient)}" if canonical(patient) else f"slide {canonical(slide)}"
            assert image.group in (named, "")
            assert canonical(image.group.partition(" ")[2]) == image.group.partition(" ")[2]
    groups = {f"t/{image.group or image.path}": {"basophil": 3} for image in found.images}
    for warning in found.warnings + check_splits(parts(groups), DEFAULT_RATIO):
        assert warning.isprintable()
        warning.encode()


@given(st.lists(st.integers(1, 30), min_size=3, max_size=40), st.floats(0.2, 0.8), st.floats(0.05, 0.2), st.integers())
def test_the_suggested_ratio_is_never_worse(sizes: list[int], train: float, validation: float, seed: int) -> None:
    ratio = check_ratio([train, validation, 1 - train - validation])
    groups = {f"{seed}-{number}": {"basophil": size} for number, size in enumerate(sizes)}
    better = suggested(check_splits(parts(groups, ratio), ratio))
    if better is None:
        return

    def shares(used: Ratio) -> Any:
        counted = Counter(dict.fromkeys(SPLITS, 0))
        for group, counts in groups.items():
            counted[split_of(group, used)] += counts["basophil"]
        return np.array([counted[split] for split in SPLITS]) / sum(sizes)

    assert shares(better).all()
    assert not shares(ratio).all() or np.abs(shares(better) - ratio).sum() < np.abs(shares(ratio) - ratio).sum()
