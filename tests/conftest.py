"""What all tests share: a tiny data set, the launchers as a user starts them, the real images where they are."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from data_pipeline.build import build_dataset
from data_pipeline.catalog import Dataset
from data_pipeline.shards import ShardSettings
from data_pipeline.sources import SourceDeclaration
from data_pipeline.sources.phantom import render_phantoms

ROOT = Path(__file__).resolve().parents[1]
TINY_TYPES = ("basophil", "eosinophil", "lymphocyte")

# The time of one example says nothing on a busy machine.
settings.register_profile("steady", deadline=None, max_examples=50)
settings.load_profile("steady")

Launch = Callable[..., "subprocess.CompletedProcess[str]"]


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


def launch_command(name: str, *arguments: str, processes: int = 1) -> list[str]:
    """The command line of a launcher; several processes are started as torchrun starts them."""
    script = str(ROOT / "launchers" / f"{name}.py")
    if processes == 1:
        return [sys.executable, script, *arguments]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*torchrun, script, *arguments]


def launch_environment() -> dict[str, str]:
    """One compute thread per process: equal sums whatever else the machine does."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run a launcher to its end, in a folder of its own."""

    def run(name: str, *arguments: str, processes: int = 1, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            launch_command(name, *arguments, processes=processes),
            cwd=tmp_path,
            env={**launch_environment(), **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
