"""If this fails, nobody can check the project's claims about loading speed on a machine of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.phantoms.folders import render_phantoms
from tests.benchmarks.loader import Options, run, table
from tests.benchmarks.peers import PEERS, installed_peers
from tests.conftest import TINY_TYPES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_loader_benchmark_measures_every_contender(tmp_path: Path) -> None:
    """On phantoms, for an instant each; rivals that are not installed are left out and the JSON says so."""
    render_phantoms(
        tmp_path,
        16,
        slides=4,
        size=40,
        workers=1,
        paired=False,
        cell_types=TINY_TYPES,
        stains=("giemsa",),
        progress=False,
    )
    options = Options(
        images=str(tmp_path / "giemsa"),
        count=48,
        image_size=32,
        stored_size=36,
        training_size=32,
        training_stored_size=32,
        training_model="senet_tiny_ge",
        training_batch=8,
        largest_batch=16,
        tune=False,
        repeats=1,
        seconds=0.01,
        training_repeats=1,
        training_seconds=0.02,
    )
    result = json.loads(json.dumps(run(options, progress=False)))

    peers = {"torch ImageFolder"} | {PEERS[module] for module, here in installed_peers().items() if here}
    assert result["machine"]["cores"] >= 1
    assert result["machine"]["packages"]["torch"]
    assert set(result["loading"]) == {"original size", "stored_size=36"}
    for part in result["loading"].values():
        ours = {f"{kind}, {mode}" for kind in ("memory", "stream") for mode in ("flip", "geometry", "stain")}
        assert set(part["results"]) == {"decode only"} | ours | peers
        assert all(found["images_per_second"]["median"] > 0 for found in part["results"].values())
        assert part["best_peer"] in peers
        assert {"stream / memory, stain", "stream / best peer, flip"} <= set(part["ratios"])
    assert set(result["training"]) == {"original size", "stored_size=32"}
    for part in result["training"].values():
        assert part["ratios"]["stream / synthetic"]["median"] > 0
    assert any("stream / best peer" in line for line in table(result))
