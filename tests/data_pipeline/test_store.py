"""If these fail, a store that is away for a moment ends a training, or a mistake in its URL is met as a traceback."""

import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.shards.store import PATIENCE, Store, folder_of, root_of
from tests.s3_server import BUCKET, S3Server


@pytest.fixture
def store(s3: S3Server) -> Store:
    return Store(f"s3://{BUCKET}/store")


def test_an_address_is_a_folder_or_a_store(tmp_path: Path) -> None:
    assert root_of("data/blood") == Path("data/blood")
    assert root_of(f"file://{tmp_path}") == tmp_path
    assert root_of("s3://bucket/some/prefix/") == Store("s3://bucket/some/prefix")
    assert Store("s3://bucket/some/prefix").at("../other") == Store("s3://bucket/some/other")
    with pytest.raises(UserError, match=r"out=s3://bucket/new: written to a disk only"):
        folder_of("s3://bucket/new", "out")


def test_no_url_reaches_a_shell(tmp_path: Path) -> None:
    """webdataset runs what follows `pipe:`; here it is the name of a folder that is not there."""
    witness = tmp_path / "witness"
    for address in (f"pipe:touch {witness}", f"pipe:touch {witness} ://x", f"s3://$(touch {witness})/x"):
        root = root_of(address)
        if isinstance(root, Store):
            with pytest.raises(UserError):
                root.read("catalog.parquet")
    assert not witness.exists()


@pytest.mark.usefixtures("s3")
def test_objects_come_and_go_whole(store: Store, tmp_path: Path) -> None:
    store.put("one", b"0123456789")
    (tmp_path / "two").write_bytes(b"two")
    store.put_file("below/two", tmp_path / "two")
    assert store.read("one") == b"0123456789"
    assert store.read("one", 2, 5) == b"234"
    assert store.listing() == {"one": 10, "below": None}
    assert store.listing("below") == {"two": 3}
    store.fetch("one", tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"0123456789"
    assert store.create("lock", b"mine")
    assert not store.create("lock", b"another's")
    assert store.create("lock", b"mine")  # as after an answer that was lost
    store.remove(["one", "below/two", "lock", "never there"])
    assert store.listing() == store.listing("below") == {}
    with pytest.raises(FileNotFoundError):
        store.read("one")


def test_a_mistake_is_one_line_at_once(s3: S3Server, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    for url, what in (
        ("s3://nowhere/data", "The specified bucket does not exist"),
        ("nonsense://bucket/data", "Protocol not known: nonsense"),
        ("s3://", "names no bucket"),
        ("simplecache::s3://bucket/data", "a URL inside a URL"),
    ):
        with pytest.raises(UserError, match=what) as refused:
            Store(url).put("object", b"")
        assert "\n" not in str(refused.value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="Unable to locate credentials"):
        Store(store.url).put("object", b"")
    assert time.monotonic() - started < PATIENCE / 3


def test_an_outage_is_waited_out_and_told_of(s3: S3Server, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put("object", b"here")
    s3.kill()
    started = time.monotonic()
    threading.Timer(2.5, s3.start).start()
    assert store.read("object") == b"here"
    assert 2 < time.monotonic() - started < PATIENCE / 3
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{store}: no answer for ")
    assert last == f"{store}: answers again"


def test_an_outage_without_end_is_one_line(s3: S3Server) -> None:
    s3.kill()
    try:
        with pytest.raises(
            UserError, match=r"cannot read object: the store has not answered for \d+ s .*AWS_ENDPOINT_URL"
        ):
            Store(f"s3://{BUCKET}/store", patience=1.5).read("object")
    finally:
        s3.start()
