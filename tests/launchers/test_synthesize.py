"""If these fail, generated images do not reach the classifier, or reach its score."""

import json
from pathlib import Path

import pytest

from data_pipeline.banks.image_bank import MANIFEST_FILE
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Topology
from tests.conftest import TINY_TYPES, Launch, Start
from tests.data_pipeline.raw_images import files_below
from tests.launchers.test_launchers import assert_refused
from tests.trainer.test_conditional_training import train
from tests.trainer.test_training import kill_when
from trainer.tasks.classification.inference.logits import scoring_stream

CLASSIFIER = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=1", "train.global_batch=12")


@pytest.fixture(scope="module")
def cells_run(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator of three types, 16 px, that has hardly learned anything."""
    return train(tiny_dataset, tmp_path_factory.mktemp("generator") / "cells", "model=cgan")


def test_processes_and_kills_leave_the_bank_as_it_is(
    cells_run: Path, launch: Launch, start: Start, tmp_path: Path
) -> None:
    for processes, name in ((1, "one"), (2, "two")):
        done = launch("synthesize", f"run={cells_run}", f"bank={name}", "count=150", processes=processes)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"450 images of {', '.join(TINY_TYPES)}: {tmp_path / name}"
    assert files_below(tmp_path / "one") == files_below(tmp_path / "two")
    killed = tmp_path / "killed"
    arguments = (f"run={cells_run}", "bank=killed", "count=150")
    kill_when(start("synthesize", *arguments, processes=2), lambda: (killed / "sha256/c/0").exists())
    assert not (killed / MANIFEST_FILE).exists()
    assert launch("synthesize", *arguments, processes=2).returncode == 0
    assert files_below(killed) == files_below(tmp_path / "one")


def test_from_a_generator_to_a_classifier_that_is_scored_on_real_images(
    tiny_dataset: Dataset, cells_run: Path, launch: Launch, tmp_path: Path
) -> None:
    assert launch("synthesize", f"run={cells_run}", "bank=cells", "count=20").returncode == 0
    done = launch("balance", f"shards={tiny_dataset.root}", "banks=[cells]", "out=out", "per_type=40", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["training", "images", "real", "synthetic", "total"]
    assert "warning: cells: its images of 16 px are stored at 32 px" in done.stdout
    verify_dataset(tmp_path / "out", progress=False)
    out = Dataset.open(tmp_path / "out")
    assert set(out.samples(splits=["train"])["cell_type"].value_counts()) == {40}
    for split in ("validation", "test"):
        assert out.samples(splits=[split])["id"].tolist() == tiny_dataset.samples(splits=[split])["id"].tolist()
    done = launch("train_classifier", "shards=out", "run=balanced", *CLASSIFIER)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "balanced/evaluation/metrics.json").read_text())
    assert record["dataset"]["content_hash"] == out.content_hash
    assert record["dataset"]["count"] == len(tiny_dataset.samples(splits=["test"]))
    scored = {"cell_types": TINY_TYPES, "batch": 8, "topology": Topology()}
    with pytest.raises(UserError, match="split train holds synthetic images, which are never scored"):
        scoring_stream(out, StreamConfig(image_size=32), splits=["train"], **scored)
    assert len(scoring_stream(out, StreamConfig(image_size=32), splits=["test"], **scored).samples) > 0


def test_a_mistake_is_one_line_and_writes_nothing(
    two_stains: Dataset, cells_run: Path, launch: Launch, tmp_path: Path
) -> None:
    run = f"run={cells_run}"
    assert launch("synthesize", run, "bank=cells", "count=1").returncode == 0
    assert_refused(launch("synthesize", run, "bank=new"), "count=N")
    assert_refused(launch("synthesize", run, "bank=new", "count=1", "cell_types=[platelet]"), "makes no 'platelet'")
    assert_refused(launch("synthesize", "run=cells", "bank=new", "count=1"), "no config.yaml")
    assert_refused(launch("balance", "shards=x", "banks=[cells]", "out=new"), "per_type=N")
    arguments = (f"shards={two_stains.root}", "banks=[cells]", "out=new")
    assert_refused(launch("balance", *arguments, "per_type=0"), "per_type=0", "at least 1")
    assert_refused(launch("balance", *arguments, "per_type=50"), "was not made from")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["synthesize", "balance"])
def test_help_shows_usage_and_an_example(launch: Launch, name: str) -> None:
    done = launch(name, "--help")
    assert done.returncode == 0
    assert all(words in done.stdout for words in ("usage:", "example:", f"launchers/{name}.py"))
