"""What the tests for a GPU share. Where there is none they run on the CPU, but for those that need one.

Run by `python -m tests.benchmarks.gpu parts=right`, or by `pytest tests/gpu --confcutdir=tests/gpu -m gpu`: the
conftest.py above this one hides GPUs.
"""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources.declaration import SourceDeclaration
from data_pipeline.stream.stream import Topology
from trainer.learners.topology import join_processes


@pytest.fixture(autouse=True)
def topology() -> Topology:
    """This process alone, on the GPU where there is one; as if it had just begun, in no precision yet."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return join_processes()


@pytest.fixture
def device(topology: Topology) -> torch.device:
    return topology.device


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    """A GPU, or the test is skipped."""
    if device.type != "cuda":
        pytest.skip("torch sees no CUDA device")
    return device


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """72 phantom cells of three types, 48 px."""
    folder = tmp_path_factory.mktemp("cells")
    table = render_phantoms(
        folder / "raw",
        24,
        slides=12,
        size=48,
        workers=1,
        paired=False,
        cell_types=("basophil", "eosinophil", "lymphocyte"),
        stains=("giemsa",),
        progress=False,
    )
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    settings = ShardSettings(max_samples=16)
    build_dataset(folder / "data", [source], settings=settings, ratio=(0.6, 0.2, 0.2), progress=False)
    return Dataset.open(folder / "data")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"
