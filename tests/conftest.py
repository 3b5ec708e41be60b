"""What all tests share: a tiny data set, the launchers as a user starts them, the real images where they are."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xdist
from hypothesis import HealthCheck, settings

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.examples import examples
from tests.launching import ROOT, Finished, Launched, compute_in_fp32, start_server
from tests.s3_server import S3Server

TINY_TYPES = ("basophil", "eosinophil", "lymphocyte")

# The time of one example, or of drawing it, says nothing on a busy machine.
settings.register_profile("steady", examples(50), suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

Launch = Callable[..., Finished]
Start = Callable[..., Launched]


@pytest.fixture(autouse=True, scope="session")
def same_precision() -> None:
    compute_in_fp32()


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What a test, or DeepSpeed in it, puts into the environment is nothing to the next."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        if not name.startswith("PYTEST_"):
            del os.environ[name]


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with the two public data sets; tests that need it are skipped where it is not."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """120 phantom cells of three types, 32 px, from twenty slides."""
    folder = tmp_path_factory.mktemp("tiny")
    table = render_phantoms(
        folder / "raw", 40, slides=20, size=32, workers=1, paired=False, cell_types=TINY_TYPES, progress=False
    )
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    build_dataset(
        folder / "data", [source], settings=ShardSettings(max_samples=16), ratio=(0.6, 0.2, 0.2), progress=False
    )
    return Dataset.open(folder / "data")


@pytest.fixture(scope="session")
def two_stains(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """60 phantom cells of three types, each in both stains, 32 px, from ten slides; none is in tiny_dataset."""
    folder = tmp_path_factory.mktemp("two-stains")
    table = render_phantoms(
        folder / "raw", 20, slides=10, size=32, seed=1, workers=1, cell_types=TINY_TYPES, progress=False
    )
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    build_dataset(
        folder / "data", [source], settings=ShardSettings(max_samples=16), ratio=(0.6, 0.2, 0.2), progress=False
    )
    return Dataset.open(folder / "data")


@pytest.fixture(scope="session")
def one_s3_server() -> S3Server:
    return S3Server()


@pytest.fixture
def s3(one_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    """A running S3 server that this process reaches as a user does, with an empty bucket; the cache is this test's."""
    for name, value in one_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one_s3_server.clear()
    yield one_s3_server
    one_s3_server.bytes_per_second = None


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a launcher in a folder of its own and go on."""

    def run(name: str, *arguments: str, processes: int = 1, **environment: str) -> Launched:
        return Launched(tmp_path, name, arguments, processes, environment)

    return run


@pytest.fixture
def launch(start: Start) -> Launch:
    """Run a launcher to its end, in a folder of its own."""

    def run(name: str, *arguments: str, processes: int = 1, **environment: str) -> Finished:
        return start(name, *arguments, processes=processes, **environment).finish()

    return run


def pytest_sessionstart(session: pytest.Session) -> None:
    if not xdist.is_xdist_controller(session):  # which runs no test itself
        start_server()
