"""If these fail, a run is scored on what it, or what it began with, had seen, or cannot be used without its data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.learned_images import FILE, LearnedImages
from data_pipeline.sources import SourceDeclaration
from tests.conftest import Launch
from tests.launchers.test_launchers import TINY, assert_refused
from tests.launching import Launched
from trainer.runs.provenance import learned_by_run, learned_by_weights


@pytest.fixture(scope="module")
def data(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run whose data set may be taken away."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(str(tiny_dataset.root), folder / "data")
    done = Launched(folder, "train_classifier", ("shards=data", "run=run", *TINY), 1, {}).finish()
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """A copy of the run, its data set away from where it was."""
    shutil.copytree(data / "run", tmp_path / "run")
    _say(tmp_path / "run", shards=str(tmp_path / "elsewhere"))
    return tmp_path / "run"


def _say(run: Path, **values: object) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text())
    content.pop("checksum", None)  # changed on purpose
    (run / "config.yaml").write_text(yaml.safe_dump(content | values, sort_keys=False))


def _record(run: Path, name: str = "metrics") -> dict[str, Any]:
    return dict(json.loads((run / f"evaluation/{name}.json").read_text()))


def test_weights_that_saw_what_is_held_out_now(
    data: Path, run: Path, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """The same images under another name fall on other sides: refused before the training, or left out and said."""
    raw = Path(str(tiny_dataset.root)).parent / "raw"
    table = next(raw.glob("*.csv"))
    source = SourceDeclaration(kind="table", name="renamed", root=table, domain="phantom")
    build_dataset(tmp_path / "new", [source], ratio=(0.5, 0.25, 0.25), progress=False)
    arguments = ("shards=new", "run=later", "model.weights=run", *TINY)
    assert_refused(launch("train_classifier", *arguments), "through run (model.weights=)", "seen_images=leave_out")
    assert not (tmp_path / "later").exists()
    done = launch("train_classifier", *arguments, "seen_images=leave_out")
    assert done.returncode == 0, done.stderr
    learned = LearnedImages.load(tmp_path / "run" / FILE)
    held_out = Dataset.open(tmp_path / "new").samples(splits=["test"])
    groups = set(held_out["group"][held_out["id"].isin(learned.table["id"])])
    answers = pd.read_parquet(tmp_path / "later/evaluation/metrics.parquet")
    assert set(answers["id"]) == set(held_out["id"][~held_out["group"].isin(groups)])
    seen = _record(tmp_path / "later")["seen_images"]
    left_out = len(held_out) - len(answers)
    assert seen["left_out"] == left_out > 0
    assert f"test: {left_out} of {len(held_out)} images left out" in done.stderr
    assert f"{left_out} images, or their patients" in (tmp_path / "later/model_card.md").read_text()
    # What the older run learned from goes on with the later one.
    later = LearnedImages.load(tmp_path / "later" / FILE)
    assert set(learned.table["id"]) <= set(later.table["id"])
    assert "run (model.weights=)" in set(later.table["through"])
    done = launch("audit", "run=later")
    assert "evaluation metrics: ok" in done.stdout, done.stdout


def test_a_run_without_its_data_set_is_scored_audited_and_exported(
    run: Path, two_stains: Dataset, launch: Launch, tmp_path: Path
) -> None:
    assert_refused(launch("evaluate", "run=run"), "elsewhere: the data set that the run was trained on is not there")
    done = launch("evaluate", "run=run", f"shards={two_stains.root}", "split=all")
    assert done.returncode == 0, done.stderr
    (name,) = (path.stem for path in (run / "evaluation").glob("data-*.json"))
    told = {"compared_with": len(LearnedImages.load(run / FILE)), "left_out": 0, "why": "", "unchecked": []}
    assert _record(run, name)["seen_images"] == told
    done = launch("audit", "run=run")
    assert done.returncode == 1, done.stderr
    assert "data set: NOT CHECKED: " in done.stdout
    done = launch("export", "run=run", "format=torch_export", "out=out")
    assert done.returncode == 0, done.stderr
    assert "64 rendered cells" in done.stdout
    checked = json.loads((tmp_path / "out/model.json").read_text())["checked"]
    assert (checked["on"], checked["split"], checked["images"]) == ("rendered cells", None, 64)


def test_what_a_run_of_old_learned_from_is_told_by_its_data_set_or_unknown(
    data: Path, run: Path, two_stains: Dataset
) -> None:
    written = LearnedImages.load(run / FILE)
    (run / FILE).unlink()
    (lost,) = learned_by_run(run).unknown
    assert "its data set is not at" in lost
    _say(run, shards=str(data / "data"))
    assert learned_by_run(run).to_bytes() == written.to_bytes()
    _say(run, shards=str(two_stains.root))
    assert "has changed since" in learned_by_run(run).unknown[0]


def test_weights_are_known_by_the_run_that_they_lie_in(run: Path, tmp_path: Path) -> None:
    assert not len(learned_by_weights(None)) + len(learned_by_weights("pretrained"))
    inside = run / "checkpoints" / "weights.pt"
    assert len(learned_by_weights(str(inside))) == len(learned_by_weights(str(run))) > 0
    bare = learned_by_weights(str(tmp_path / "alone" / "weights.pt"))
    assert "says nothing of the images" in bare.unknown[0]
    with pytest.raises(UserError, match=r"not written by a launcher that trains|no config\.yaml"):
        learned_by_run(tmp_path)


def test_more_epochs_begin_anew_from_its_weights(data: Path, launch: Launch, tmp_path: Path) -> None:
    shutil.copytree(data / "run", tmp_path / "run")
    arguments = (f"shards={data / 'data'}", *TINY, "train.epochs=2")
    refused = launch("train_classifier", "run=run", *arguments)
    assert_refused(refused, "train.epochs was 1, is now 2", "run=NEW model.weights=run")
    done = launch("train_classifier", "run=more", "model.weights=run", *arguments)
    assert done.returncode == 0, done.stderr
    assert _record(tmp_path / "more")["seen_images"]["left_out"] == 0
