"""If these fail, what a laboratory takes away gives other answers than what was scored, or cannot be read."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from data_pipeline.catalog import Dataset
from tests.conftest import Launch
from tests.launchers.test_launchers import TINY, assert_refused


@pytest.fixture
def run(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> Path:
    """A run that was trained for an epoch; its network stretches the channels, which is exported too."""
    settings = (f"shards={tiny_dataset.root}", "run=run", "model.stretch=true", *TINY)
    assert launch("train_classifier", *settings).returncode == 0
    return tmp_path / "run"


def test_an_exported_classifier_answers_as_the_run_does(
    run: Path, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """In both formats, through predict.py, and in a runtime that knows nothing of this project."""
    images = f"images={tiny_dataset.root.parent / 'raw'}"
    assert launch("predict", "run=run", images, "out=live").returncode == 0
    live = pd.read_csv(tmp_path / "live/predictions.csv")
    for form in ("onnx", "torch_export"):
        done = launch("export", "run=run", f"format={form}")
        assert done.returncode == 0, done.stderr
        folder = run / f"export-{form}"
        assert done.stdout.strip().splitlines()[-1] == str(folder)
        told = json.loads((folder / "model.json").read_text())
        assert told["checked"]["images"] > 10
        assert 0 <= told["checked"]["largest_difference"] < 1e-4
        assert told["dataset_hash"] == tiny_dataset.content_hash
        assert (folder / "model_card.md").read_text() == (run / "model_card.md").read_text()
        done = launch("predict", f"run={folder}", images, f"out={form}")
        assert done.returncode == 0, done.stderr
        exported = pd.read_csv(tmp_path / form / "predictions.csv")
        assert exported["path"].tolist() == live["path"].tolist()
        assert exported["type"].tolist() == live["type"].tolist()
        probabilities = [name for name in live if name.startswith("p:")]
        np.testing.assert_allclose(exported[probabilities], live[probabilities], atol=1e-4)
    some = torch.linspace(-1, 1, 3 * 3 * 32 * 32).reshape(3, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(run / "export-onnx/model.onnx"))
    (by_onnx,) = session.run(["probabilities"], {"images": some.numpy()})
    by_torch = torch.export.load(run / "export-torch_export/model.pt2").module()(some)
    np.testing.assert_allclose(by_onnx, by_torch.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(by_onnx.sum(axis=1), 1, atol=1e-5)


def test_mistakes_are_one_line_and_nothing_is_written(
    run: Path, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    assert_refused(launch("export", "run=run"), "format=onnx")
    assert_refused(launch("export", "run=run", "format=tflite"), "format=tflite", "onnx")
    assert_refused(launch("export", "run=nowhere", "format=onnx"), "nowhere", "no config.yaml")
    assert_refused(launch("export", "run=run", "format=onnx", "shards=nowhere"), "nowhere", "no data set")
    assert not (run / "export-onnx").exists()
    assert launch("export", "run=run", "format=onnx", "out=out", "domain=giemsa").returncode == 0
    assert_refused(launch("export", "run=run", "format=onnx", "out=out"), "out: there already")
    images = f"images={tiny_dataset.root.parent / 'raw'}"
    assert_refused(launch("predict", "run=out", images, "out=p", "domain=violet"), "giemsa, not violet")
    model = tmp_path / "out/model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    assert_refused(launch("predict", "run=out", images, "out=p"), "model.onnx are not those that were written")


@pytest.mark.parametrize("method", ["reinhard", "run"])
def test_the_normaliser_goes_into_the_model(two_stains: Dataset, launch: Launch, tmp_path: Path, method: str) -> None:
    """A classical one and a generator: raw violet images, through the export, as through the run."""
    made = ["method=reinhard", "a=giemsa", "b=violet"]
    if method == "run":
        tiny = ("data.image_size=32", "data.threads=1", "train.global_batch=6", "train.epochs=1", "samples_per_type=1")
        narrow = ("model.generator.width=4", "model.generator.depth=3", "model.critic.width=4", "model.critic.layers=2")
        stain = ["a=giemsa", "b=violet", "train.iterations_per_epoch=1", *tiny, *narrow]
        assert launch("train_stain_gan", f"shards={two_stains.root}", "run=stain", *stain).returncode == 0
        made = ["run=stain"]
    assert launch("normalize_stains", f"shards={two_stains.root}", "out=normalized", *made).returncode == 0
    # Another size than the normaliser's, so that resizing is exported too.
    sized = [*(setting for setting in TINY if "image_size" not in setting), "data.image_size=48"]
    assert launch("train_classifier", "shards=normalized", "run=run", *sized).returncode == 0
    done = launch("export", "run=run", "format=onnx", "out=out", f"shards={two_stains.root}", "domain=violet")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out/model.json").read_text())
    assert told["domain"] == "violet"
    assert told["normalizer"]["name"] == ("reinhard" if method == "reinhard" else "w_cyclegan_gp")
    images = f"images={two_stains.root.parent / 'raw' / 'violet'}"
    assert_refused(launch("predict", "run=run", images, "out=none"), "domain=NAME, one of giemsa, violet")
    for name, run in (("live", "run"), ("exported", "out")):
        done = launch("predict", f"run={run}", images, f"out={name}", "domain=violet")
        assert done.returncode == 0, done.stderr
    live, exported = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("live", "exported"))
    probabilities = [name for name in live if name.startswith("p:")]
    np.testing.assert_allclose(exported[probabilities], live[probabilities], atol=1e-4)
