"""If these fail, a user meets a traceback, a hang or a wrong file where one clear line was due."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.conftest import Launch
from tests.launching import ROOT, Finished
from trainer.learners.topology import resolve_precision

LAUNCHERS = sorted(path.stem for path in (ROOT / "launchers").glob("*.py") if path.stem not in ("__init__", "console"))
TINY = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.global_batch=12", "train.epochs=1")


def assert_refused(done: Finished, *words: str) -> None:
    """Exit code 2, and one line on the error output that says what and where."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in line


@pytest.mark.parametrize("name", LAUNCHERS)
def test_help_shows_usage_and_an_example(launch: Launch, name: str) -> None:
    done = launch(name, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert "example:" in done.stdout
    assert f"launchers/{name}.py" in done.stdout


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("train_classifier", ("shards=x", "run=y", "train.epoch=3"), ("train.epoch", "train.epochs")),
        ("train_classifier", ("shards=x", "run=y", "train.epochs=many"), ("train.epochs", "many")),
        ("train_classifier", ("shards=x", "run=y", "train.precision=fp8"), ("train.precision=fp8", "auto, fp32")),
        ("train_classifier", ("shards=x", "run=y", "model=resnet"), ("resnet",)),
        ("train_classifier", ("shards=x", "run=y", "model=timm", "model.block=odd"), ("model.block", "bottleneck")),
        ("train_classifier", ("shards=x",), ("run=DIR",)),
        ("train_classifier", ("run=y",), ("shards=DIR",)),
        ("train_classifier", ("shards=x", "run=y", "train.log_every=0"), ("train.log_every=0", "at least 1")),
        ("train_classifier", ("shards=x", "run=y", "optimizer.betas=[0.9]"), ("optimizer.betas",)),
        ("train_classifier", ("shards=nowhere", "run=y"), ("nowhere", "no data set here")),
        ("train_classifier", ("shards",), ("key=value",)),
        ("build_shards", ("barcelona=x",), ("shards=DIR",)),
        ("build_shards", ("shards=x", "barcelona=nowhere"), ("nowhere", "no such folder")),
        ("build_shards", ("shards=x", "folder=nowhere"), ("name=N", "domain=D")),
        ("build_shards", ("shards=x", "folder=a", "table=b", "name=n", "domain=d"), ("a command of its own",)),
        ("build_shards", ("shards=x",), ("no source declared",)),
        ("build_shards", ("shards=x", "promyelocytes=none"), ("promyelocytes=none", "immature granulocyte")),
        ("evaluate", ("run=nowhere",), ("nowhere", "no config.yaml")),
        ("predict", ("run=nowhere", "images=x"), ("out=DIR",)),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(
    launch: Launch, name: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert_refused(launch(name, *arguments), *words)


def test_a_path_with_spaces_and_signs_is_taken_as_it_is(launch: Launch, tmp_path: Path) -> None:
    folder = tmp_path / "my slides (2026), first=a"
    for name in ("basophil", "platelet"):
        (folder / name).mkdir(parents=True)
        pixels = np.random.default_rng(ord(name[0])).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / "a.png")
    done = launch("build_shards", "shards=out", f"folder={folder}", "name=own", "domain=lab", "workers=1")
    assert done.returncode == 0, done.stderr
    assert len(Dataset.open(tmp_path / "out").samples()) == 2


def test_a_launch_configuration_that_contradicts_the_run_is_refused(
    tiny_dataset: Dataset, launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (f"shards={tiny_dataset.root}", "run=run", *TINY)
    done = launch("train_classifier", *arguments, "train.precision=fp32", ACCELERATE_MIXED_PRECISION="fp16")
    assert_refused(done, "mixed_precision=fp16", "train.precision=fp32")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match="gradient_accumulation_steps=4"):
        resolve_precision("auto", torch.device("cpu"))
    monkeypatch.delenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_precision("auto", torch.device("cpu")) == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        resolve_precision("fp16", torch.device("cpu"))


def test_a_micro_batch_of_one_image_and_a_foreign_engine_are_one_line(tiny_dataset: Dataset, launch: Launch) -> None:
    arguments = (f"shards={tiny_dataset.root}", "run=run", *TINY)
    assert_refused(launch("train_classifier", *arguments, "train.micro_batch=1"), "too few", "train.micro_batch")
    assert_refused(launch("train_classifier", *arguments, ACCELERATE_USE_FSDP="true"), "asks for fsdp")


def test_the_tour_from_nothing_to_a_report_to_predictions(launch: Launch, tmp_path: Path) -> None:
    """The quickstart at tiny size, then its classifier on a folder of images with one that is broken."""
    small = ("phantom.per_type=12", "phantom.slides=24", "phantom.size=32", "data.image_size=32")
    done = launch("train_classifier", *small, "train.epochs=1", "train.global_batch=16", "data.threads=1")
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.strip().splitlines()[-1])
    assert report.name == "report.html"
    assert "<html" in report.read_text()

    (tmp_path / "runs/quickstart/phantoms/giemsa/broken.png").write_text("no image")
    done = launch(
        "predict", "run=runs/quickstart/classifier", "images=runs/quickstart/phantoms/giemsa", "out=predictions"
    )
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(tmp_path / "predictions/predictions.csv")
    assert frame.columns[:3].tolist() == ["path", "type", "confidence"]
    probabilities = frame.filter(like="p:")
    assert len(frame) == 72
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)
    assert (probabilities.idxmax(axis=1).str.removeprefix("p:") == frame["type"]).all()
    assert pd.read_csv(tmp_path / "predictions/unreadable.csv")["path"].str.endswith("broken.png").tolist() == [True]
    assert (tmp_path / "predictions/gallery.html").exists()
    _a_second_prediction_takes_the_place_of_the_first(launch, tmp_path)


def _a_second_prediction_takes_the_place_of_the_first(launch: Launch, tmp_path: Path) -> None:
    """A slide's answers must not stand beside what is left of another slide's."""
    slide, out = tmp_path / "slide", tmp_path / "predictions"
    (slide / ".ipynb_checkpoints").mkdir(parents=True)
    for number, name in enumerate((b"a.png", b"Zelle_\xe4.png", b"no_suffix", b".ipynb_checkpoints/a.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        with open(os.path.join(os.fsencode(slide), name), "wb") as file:
            Image.fromarray(pixels).save(file, "PNG")
    (out / "notes.txt").write_text("the user's own")
    done = launch("predict", "run=runs/quickstart/classifier", f"images={slide}", "out=predictions")
    assert done.returncode == 0, done.stderr
    assert "2 file(s) passed over (a.png: hidden file, no_suffix: no suffix of an image)" in done.stdout
    assert {path.name for path in out.iterdir()} == {
        "gallery.html",
        "notes.txt",
        "passed_over.csv",
        "predictions.csv",
    }
    paths = pd.read_csv(out / "predictions.csv")["path"].tolist()
    assert paths == [rf"{slide}/Zelle_\xe4.png", f"{slide}/a.png"]
    assert (out / "gallery.html").read_text().count("<img") == 2
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/broken.png").write_text("no image")
    refused = launch("predict", "run=runs/quickstart/classifier", "images=cut", "out=predictions")
    assert_refused(refused, "none of its 1 images can be read (broken.png: not an image)")
    assert_refused(
        launch("predict", "run=runs/quickstart/classifier", "images=slide/.ipynb_checkpoints/x", "out=p"), "no such"
    )
    assert_refused(
        launch("predict", "run=runs/quickstart/classifier", "images=slide", "out=p", "domain=Giemsa"), "giemsa"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_scores_are_written_apart_and_training_images_are_refused(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    arguments = (f"shards={tiny_dataset.root}", "run=run", "data.domains=[giemsa]", *TINY)
    assert launch("train_classifier", *arguments).returncode == 0
    assert launch("evaluate", "run=run", "domain=violet").returncode == 0
    assert launch("evaluate", "run=run", "domain=violet", "split=all").returncode == 0
    written = {path.name for path in (tmp_path / "run/evaluation").glob("*.json")}
    assert written == {"metrics.json", "data-test-violet.json", "data-train+validation+test-violet.json"}
    assert_refused(launch("evaluate", "run=run", "split=train"), "used to train or choose")
    assert_refused(launch("evaluate", "run=run", "domain=purple"), "no domain 'purple'")


def test_a_prediction_equals_the_score_of_the_same_image(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Raw files must be seen as the data set's own images are, or the scores say nothing about use."""
    assert launch("train_classifier", f"shards={tiny_dataset.root}", "run=run", *TINY).returncode == 0
    scored = pd.read_parquet(tmp_path / "run/evaluation/metrics.parquet")
    raw = tiny_dataset.root.parent / "raw"
    assert launch("predict", "run=run", f"images={raw}", "out=out").returncode == 0
    predicted = pd.read_csv(tmp_path / "out/predictions.csv").set_index("path")
    assert len(scored) > 5
    for row in scored.to_dict("records"):
        again = predicted.loc[str(raw / row["path"])]
        assert again["type"] == row["predicted"]
        assert again[f"p:{row['predicted']}"] == pytest.approx(row[f"p:{row['predicted']}"], abs=1e-4)


def test_the_launch_commands_of_the_readme_work(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """`accelerate launch` on one process and `torchrun` on two, as real command lines."""
    script = str(ROOT / "launchers/train_classifier.py")
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    accelerate += [str(ROOT / "configs/accelerate/cpu.yaml"), script]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    running = [
        subprocess.Popen(
            [*command, f"shards={tiny_dataset.root}", f"run={name}", *TINY],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, command in (("accelerate", accelerate), ("torchrun", torchrun))
    ]
    for process in running:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
    assert (tmp_path / "accelerate/report.html").exists()
    assert (tmp_path / "torchrun/report.html").exists()
