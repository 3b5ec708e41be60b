"""If these fail, a kill leaves temporary files for ever, or a changed digit in a record passes for the truth."""

import errno
import os
import signal
from pathlib import Path

import pytest

from data_pipeline.disk import (
    aside,
    checked,
    create_through,
    naming,
    remove_leftovers,
    replace_through,
    replacing,
    with_checksum,
)


def _killed_while_writing(path: Path) -> None:
    child = os.fork()
    if child == 0:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_what_a_killed_process_was_writing_goes_with_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    for _ in range(3):
        _killed_while_writing(path)
        assert path.read_bytes() == b"old"
        assert len(os.listdir(tmp_path)) == 2
    replace_through(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["report.html"]


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    path, (hears, tells) = tmp_path / "report.html", os.pipe()
    told, goes_on = os.pipe()
    child = os.fork()
    if child == 0:
        with replacing(path) as temporary:
            temporary.write_bytes(b"slow")
            os.write(tells, b"x")
            os.read(told, 1)
        os._exit(0)
    os.read(hears, 1)
    replace_through(path, b"quick")
    assert path.read_bytes() == b"quick"
    os.write(goes_on, b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert path.read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_bytes(b"old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        temporary.with_name("nowhere").read_bytes()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_an_error_of_a_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full") as caught, naming(tmp_path / "log"):
        raise OSError(errno.ENOSPC, "full")
    assert caught.value.filename == str(tmp_path / "log")
    with pytest.raises(OSError, match="full") as caught, naming(tmp_path / "log"):
        raise OSError(errno.ENOSPC, "full", "another")
    assert caught.value.filename == "another"


def test_a_record_that_was_changed_is_noticed() -> None:
    record = {"temperature": 1.25, "images": 30, "model": {"layers": [1, 2]}}
    written = with_checksum(record)
    assert checked(written) == record
    assert checked(record) == record, "older records have no checksum"
    for changed in ({**written, "images": 31}, {**written, "checksum": "0" * 64}, {**written, "more": 1}):
        with pytest.raises(ValueError, match="checksum"):
            checked(changed)


def test_of_two_who_create_a_file_the_first_has_it(tmp_path: Path) -> None:
    path = tmp_path / "ended.json"
    assert create_through(path, b"first")
    assert not create_through(path, b"second")
    assert path.read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["ended.json"]


def test_what_was_left_of_a_file_that_is_there_goes_too(tmp_path: Path) -> None:
    """A process that is killed between its file's link and the end of the temporary one leaves both."""
    path = tmp_path / "ended.json"
    child = os.fork()
    if child == 0:
        with aside(path) as temporary:
            os.link(temporary, path)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert len(os.listdir(tmp_path)) == 2
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["ended.json"]
