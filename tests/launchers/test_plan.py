"""If these fail, a user learns only by an out-of-memory error what fits a GPU."""

from pathlib import Path

from data_pipeline.catalog import Dataset
from tests.conftest import Launch
from trainer.runs.run_directory import read_run_config

SMALL = ("config=train_classifier", "model=senet_tiny_ge", "data.image_size=32", "train.global_batch=12")


def test_a_run_that_fits_is_planned_with_steps_and_hours(tiny_dataset: Dataset, launch: Launch) -> None:
    shards = f"shards={tiny_dataset.root}"
    done = launch("plan", *SMALL, shards, "train.epochs=3", "processes=2", "images_per_second=0.5")
    assert done.returncode == 0, done.stderr
    steps = 3 * (len(tiny_dataset.samples(splits=["train"], columns=["id"])) // 12)
    assert f"steps: {steps}, {12 * steps:,} images" in done.stdout
    assert "GiB  activations" in done.stdout
    assert "gradients in exchange" in done.stdout
    assert f"hours: {12 * steps / 0.5 / 3600:,.1f} at 0.5 images/s" in done.stdout


def test_a_run_that_does_not_fit_names_what_does(launch: Launch) -> None:
    done = launch("plan", *SMALL, "gpu_memory=1450MiB", "train.global_batch=400", "data.image_size=64")
    assert done.returncode == 2
    assert "does not fit" in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert "set train.micro_batch=" in line


def test_a_plan_of_nothing_is_one_line(launch: Launch) -> None:
    done = launch("plan")
    assert done.returncode == 2
    assert "config=LAUNCHER" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_run_finds_its_micro_batch_and_keeps_it(launch: Launch, tiny_dataset: Dataset, tmp_path: Path) -> None:
    command = (
        "train_classifier",
        f"shards={tiny_dataset.root}",
        "run=run",
        "model=senet_tiny_ge",
        "data.image_size=32",
        "train.global_batch=12",
        "train.iterations_per_epoch=2",
        "train.find_micro_batch=true",
    )
    done = launch(*command, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    config = tmp_path / "run/config.yaml"
    assert read_run_config(config.parent)["train"]["micro_batch"] == 12
    on_purpose = [line for line in config.read_text().splitlines() if not line.startswith("checksum:")]
    config.write_text("\n".join(on_purpose).replace("micro_batch: 12", "micro_batch: 4"))
    done = launch(*command, "train.epochs=1")
    assert done.returncode == 0, done.stderr
    assert read_run_config(config.parent)["train"]["micro_batch"] == 4
