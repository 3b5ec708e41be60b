"""If this fails, minutes on a GPU are spent on finding out why: the whole command, at tiny sizes, on the CPU."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.catalog import Dataset
from tests.benchmarks.gpu.data import CELLS, LOADED
from tests.benchmarks.gpu.parts import MINUTES
from tests.conftest import Launch, Start
from tests.trainer.test_training import kill_when

COMMAND = "tests/benchmarks/gpu/__main__.py"
TINY = (
    "minutes=20",
    "image_size=32",
    *("seconds=0.01", "repeats=1", "loader_batch=8", "workers=1"),
    *("models=senet_tiny_ge", "batch=8", "compile=false", "capped_micro_batch=4"),
    *("gans=ac_gan,cgan", "gan_steps=1"),
    "gan_settings=data.image_size=32,train.global_batch=4,model.generator.width=4,model.critic.width=4",
    *("result_model=senet_tiny_ge", "result_domain=giemsa", "result_passes=1"),
)


@pytest.fixture
def data(tmp_path: Path, two_stains: Dataset) -> Path:
    """Laid out as tests/benchmarks/gpu/data.py does it."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in (CELLS, *LOADED):
        (folder / name).symlink_to(two_stains.root)
    return folder


def content(out: Path, part: str) -> dict[str, Any]:
    path = out / f"{part}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"rows": {}, "attempts": {}}


def test_stopped_in_its_middle_and_given_again_it_measures_everything_once(
    data: Path, tmp_path: Path, start: Start, launch: Launch
) -> None:
    out = tmp_path / "out"
    given = (COMMAND, f"out={out}", f"data={data}", *TINY)
    kill_when(start(*given), _within(out, "classifier"))
    rows = {part: content(out, part)["rows"] for part in MINUTES}
    (cut_off,) = content(out, "classifier")["attempts"]
    assert rows["classifier"]
    assert cut_off not in rows["classifier"]

    done = launch(*given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("no GPU, all on the CPU; 20 minutes:")
    assert f"right: {20 * 2 / 9:.1f} minutes, {len(rows['right'])} rows are there already" in done.stdout
    assert "everything was measured" in done.stdout
    for part, before in rows.items():
        found = content(out, part)
        assert list(found["rows"]) != []
        assert set(found["rows"]) == set(found["planned"])
        assert {name: found["rows"][name] for name in before} == before  # kept, not measured again
        assert found["machine"]["gpu"] is None
    outcomes = {name: row["outcome"] for name, row in content(out, "right")["rows"].items()}
    assert set(outcomes.values()) == {"passed"}
    loaded = content(out, "loader")["rows"]
    assert loaded["original: stream, flip"]["images_per_second"]["median"] > 0
    assert content(out, "classifier")["rows"]["senet_tiny_ge: timm"]["images_per_second"] > 0
    assert {"data", "critic", "generator"} <= set(content(out, "gans")["rows"]["ac_gan"]["phases"])
    accuracy = content(out, "result")["rows"]["senet_tiny_ge"]["evaluation"]["scores"]["accuracy"]
    assert 0 <= accuracy["value"] <= 1
    assert (out / "report.html").exists()


def _within(out: Path, part: str) -> Callable[[], bool]:
    """While a part measures a row, and others of its rows are there."""
    return lambda: bool(content(out, part)["rows"] and content(out, part)["attempts"])
