"""If these fail, one odd file ends the build of all others, or its name breaks what comes after the build."""

import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest import scan
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import format_report
from data_pipeline.ingest.file_names import on_disk, printable
from data_pipeline.ingest.images import inspect_image
from data_pipeline.shards.verify import verify_dataset
from tests.data_pipeline.raw_images import encoded, files_below, folder_source, picture, write_classes
from tests.examples import examples


def build(root: Path, raw: Path, **options: Any) -> dict[str, Any]:
    return build_dataset(root, [folder_source(raw, "lab")], progress=False, **options)


def rows_of(root: Path) -> dict[str, Sample]:
    return {row.path: row for row in from_table(Dataset.open(root).table)}


def test_what_is_no_file_or_no_cell_is_a_row_and_the_others_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 4, "monocyte": 4}, 0)
    odd = raw / "basophil"
    os.mkfifo(odd / "pipe.png")
    listening = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(odd)  # a socket's path has 107 characters at most
    listening.bind("socket.png")
    (odd / "nowhere.png").symlink_to("gone.png")
    (odd / "itself.png").symlink_to("itself.png")
    (odd / "zero.png").symlink_to("/dev/zero")
    (odd / "folder.png").mkdir()
    Image.new("RGB", (66_000, 8)).save(odd / "strip.png")
    Image.new("RGB", (1, 1)).save(odd / "dot.png")
    report = build(tmp_path / "data", raw)
    listening.close()
    reasons = {path: row.reason for path, row in rows_of(tmp_path / "data").items() if not row.kept}
    assert reasons == {
        "basophil/pipe.png": "unreadable: a pipe, no file",
        "basophil/socket.png": "unreadable: a socket, no file",
        "basophil/nowhere.png": "unreadable: a link to nothing",
        "basophil/itself.png": "unreadable: a link to nothing",
        "basophil/zero.png": "unreadable: a device, no file",
        "basophil/strip.png": "unreadable: 66000x8 pixels: no single-cell image",
        "basophil/dot.png": "unreadable: 1x1 pixels: too small to show a cell",
    }
    assert report["samples"] == 8
    printed = format_report(report)
    assert "lab:basophil/dot.png: 1x1 pixels: too small to show a cell" in printed
    assert printed.count("lab:basophil") == 3, "the first few are named, the others counted"
    before = files_below(tmp_path / "data")
    assert build(tmp_path / "data", raw)["shards_written"] == 0
    assert files_below(tmp_path / "data") == before


def test_files_that_the_system_will_not_read_are_named_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That says nothing about their images, which one moment's trouble would take out of the data set."""
    raw = write_classes(tmp_path / "raw", {"basophil": 6}, 0)
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name in ("0001.jpg", "0004.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"0001\.jpg: cannot be read \(Permission denied\).*1 more: 0004\.jpg"):
        build(tmp_path / "data", raw)
    assert not (tmp_path / "data").exists()


def test_a_file_that_goes_while_the_folder_is_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 6}, 0)
    identify = scan._identify

    def vanish(path: Path) -> Any:
        if path.name == "0003.jpg":
            path.unlink()
        return identify(path)

    monkeypatch.setattr(scan, "_identify", vanish)
    assert build(tmp_path / "data", raw)["samples"] == 5
    assert rows_of(tmp_path / "data")["basophil/0003.jpg"].reason == "unreadable: gone since the folder was listed"


def test_names_that_are_no_text_are_shown_escaped_and_their_images_are_kept(tmp_path: Path) -> None:
    raw = write_classes(tmp_path / "raw", {"basophil": 2}, 0)
    folder = os.fsencode(raw / "basophil")
    names = [b"Zelle_\xe4.jpg", b"line\nbreak\t.jpg", b"'quoted' \"twice\".jpg", b"x" * 251 + b".jpg"]
    names += [b"\x1b[31mred.jpg", b"a\\b.jpg", b"A.jpg", b"a.jpg", "Zellen \u00e4\u2028.jpg".encode()]
    for number, name in enumerate(names):
        with open(os.path.join(folder, name), "wb") as file:
            file.write(encoded(100 + number))
    with open(os.path.join(folder, b"note\xe4.txt"), "wb"):
        pass
    report = build(tmp_path / "data", raw)
    rows = rows_of(tmp_path / "data")
    assert all(row.kept for row in rows.values())
    shown = {path.removeprefix("basophil/") for path in rows}
    assert {r"Zelle_\xe4.jpg", r"line\x0abreak\x09.jpg", r"\x1b[31mred.jpg", r"a\b.jpg", "A.jpg", "a.jpg"} <= shown
    assert "note\\xe4.txt" in format_report(report)
    format_report(report).encode()
    verify_dataset(tmp_path / "data")
    assert len(Dataset.open(tmp_path / "data").samples()) == len(names) + 2
    before = files_below(tmp_path / "data")
    build(tmp_path / "data", raw)
    assert files_below(tmp_path / "data") == before


@given(
    st.lists(
        st.binary(min_size=1, max_size=40).filter(
            lambda name: not set(b"/\0") & set(name) and name not in (b".", b"..")
        ),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
@examples(20)
def test_every_file_name_has_one_printable_form_that_leads_back_to_it(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("names")
    for name in names:
        (folder / os.fsdecode(name)).write_bytes(name)
    for name in names:
        shown = printable(os.fsdecode(name))
        shown.encode()
        assert "\n" not in shown
        assert shown.isprintable() or any(not character.isascii() for character in shown)
        if b"\\x" not in name:  # a name that looks escaped is itself
            assert on_disk(folder, shown).read_bytes() == name


@given(
    names=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=4, unique=True),
    contents=st.lists(st.sampled_from([b"", b"text", encoded(0)[:-99], encoded(1, "PNG"), encoded(2)]), min_size=4),
)
@examples(10)
def test_no_name_and_no_content_ends_a_build(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes], contents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    raw = write_classes(folder / "raw", {"basophil": 2}, 50)
    for name, content in zip(names, contents, strict=False):
        taken = name.translate(None, b"/\0") + b".png"
        with open(os.path.join(os.fsencode(raw / "basophil"), taken), "wb") as file:
            file.write(content)
    build(folder / "data", raw)
    before = files_below(folder / "data")
    build(folder / "data", raw)
    assert files_below(folder / "data") == before


def test_ranges_of_several_widths_in_one_source_are_said(tmp_path: Path) -> None:
    """A very dark image of a 12-bit camera passes for one of ten bits."""
    raw = tmp_path / "raw" / "basophil"
    raw.mkdir(parents=True)
    for number, exposure in enumerate((16, 16, 16, 3)):
        values = np.asarray(picture(number)).astype(np.uint16) * exposure
        tifffile.imwrite(raw / f"{number}.tif", values, photometric="rgb")
    report = build(tmp_path / "data", tmp_path / "raw")
    assert any("1 of 10 bits, as basophil/3.tif, 3 of 12 bits" in warning for warning in report["warnings"])


def test_a_data_set_of_an_earlier_decoder_is_looked_at_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it took may be refused now, and what it stored have other pixels."""
    raw = write_classes(tmp_path / "raw", {"basophil": 4}, 0)
    Image.new("RGB", (3, 3)).save(raw / "basophil" / "dot.png")
    with monkeypatch.context() as earlier:
        earlier.setattr("data_pipeline.ingest.images._MIN_SIDE", 1)
        for module in ("ingest.known_facts", "ingest.recipe", "shards.writer"):
            earlier.setattr(f"data_pipeline.{module}.DECODING", 1)
        assert build(tmp_path / "data", raw)["samples"] == 5
    report = build(tmp_path / "data", raw)
    assert report["samples"] == 4
    assert report["shards_kept"] == 0
    assert "too small" in rows_of(tmp_path / "data")["basophil/dot.png"].reason


def test_whatever_a_decoder_raises_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Image.Image) -> bytes:
        raise ZeroDivisionError("in the hash")

    monkeypatch.setattr("data_pipeline.ingest.images.perceptual_hash", broken)
    assert "in the hash" in inspect_image(encoded(0)).problem
