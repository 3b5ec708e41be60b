"""If these fail, a user learns only by an out-of-memory error what fits a GPU."""

from data_pipeline.catalog import Dataset
from tests.conftest import Launch

SMALL = ("config=train_classifier", "model=senet_tiny_ge", "data.image_size=32", "train.global_batch=12")


def test_a_run_that_fits_is_planned_with_steps_and_hours(tiny_dataset: Dataset, launch: Launch) -> None:
    done = launch("plan", *SMALL, f"shards={tiny_dataset.root}", "train.epochs=3", "processes=2")
    assert done.returncode == 0, done.stderr
    steps = 3 * (len(tiny_dataset.samples(splits=["train"], columns=["id"])) // 12)
    assert f"steps: {steps}, {12 * steps:,} images" in done.stdout
    assert "GiB  activations" in done.stdout
    assert "gradients in exchange" in done.stdout
    assert "h on 2 x NVIDIA GeForce RTX 3090" in done.stdout
    assert "scaled by multiply-accumulates" in done.stdout


def test_a_run_that_does_not_fit_names_what_does(launch: Launch) -> None:
    done = launch("plan", *SMALL, "gpu_memory=900MiB", "train.global_batch=400", "data.image_size=64")
    assert done.returncode == 2
    assert "does not fit" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "set train.micro_batch=" in line


def test_a_plan_of_nothing_is_one_line(launch: Launch) -> None:
    done = launch("plan")
    assert done.returncode == 2
    assert "config=LAUNCHER" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
