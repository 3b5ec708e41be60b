"""If these fail, every build in a store that is killed leaves a shard on the local disk, for ever."""

import os
import signal
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from data_pipeline.disk import temporary_folder


def test_folders_of_killed_processes_go_those_in_use_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "hemaforge-of_users").mkdir()
    (tmp_path / "hemaforge-abcdefgh").mkdir()  # a user's: nothing in it says that it is one of these
    child = os.fork()
    if child == 0:
        with temporary_folder() as folder:
            (folder / "shard.tar").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(os.listdir(tmp_path)) == 3
    with temporary_folder() as first, temporary_folder() as second:
        assert first.is_dir()
        assert second.is_dir()
        assert len(os.listdir(tmp_path)) == 4
    assert sorted(os.listdir(tmp_path)) == ["hemaforge-abcdefgh", "hemaforge-of_users"]


def test_a_folder_that_is_being_removed_is_not_taken_for_an_abandoned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes make and remove folders as fast as they can: none finds its files gone, nothing is left."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        assert list(pool.map(_make_folders, range(4))) == [200] * 4
    assert not os.listdir(tmp_path)


def _make_folders(_: int) -> int:
    made = 0
    while made < 200:
        with temporary_folder() as folder:
            for name in range(5):
                (folder / f"{name}.idx").touch()
            assert len(os.listdir(folder)) == 5
        made += 1
    return made
