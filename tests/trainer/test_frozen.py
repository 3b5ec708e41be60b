"""If these fail, a run of frozen features is not a run like any other, or pays for the same features twice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import zarr

from data_pipeline.banks.feature_bank import FeatureBank, Features
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from tests.conftest import Launch
from trainer.metrics.feature_space import ClassifierFeatures
from trainer.runs.training import train
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.grad_cam import GradCam
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.training import fitting

BACKBONE = "test_efficientnet"
CPU = torch.device("cpu")


def config_of(dataset: Dataset, folder: Path, *more: str) -> ClassifierRunConfig:
    """A run on the tiny data set, whose backbone has the weights of a file in `folder`."""
    weights = folder / "backbone.pt"
    if not weights.exists():
        torch.manual_seed(0)
        torch.save(timm.create_model(BACKBONE).state_dict(), weights)
    arguments = (f"model.timm_name={BACKBONE}", f"model.weights={weights}", f"cache={folder / 'cache'}")
    sizes = ("data.image_size=32", "data.threads=1", "train.global_batch=12")
    places = (f"shards={dataset.root}", f"run={folder / 'run'}", "model=frozen")
    return read_config(ClassifierRunConfig, "train_classifier", (*places, *arguments, *sizes, *more))


@pytest.fixture(scope="module")
def finished(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> ClassifierRunConfig:
    config = config_of(tiny_dataset, tmp_path_factory.mktemp("frozen"), "model.views=2")
    train(config, Topology())
    return config


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every image that is measured for a fit an error."""

    def measure(*_: Any) -> None:
        raise AssertionError("features were computed")

    monkeypatch.setattr(fitting, "_measure", measure)


def overall(run: Path) -> float:
    scores = json.loads((run / "evaluation/metrics.json").read_text())["scores"]
    return float(scores["overall"]["balanced_accuracy"]["value"])


def test_a_linear_head_on_frozen_features_tells_types_apart(finished: ClassifierRunConfig) -> None:
    run = Path(str(finished.run))
    assert overall(run) > 0.6  # of three types, from features of random weights
    network = load_classifier(run).network
    assert isinstance(network, FrozenClassifier)
    weights = torch.load(str(finished.model.weights))
    for name, value in network.backbone.network.state_dict().items():
        assert torch.equal(value, weights[name]), f"{name} was changed by the fit"


@pytest.mark.usefixtures("no_backbone")
def test_a_second_head_takes_the_features_of_the_first(finished: ClassifierRunConfig, tmp_path: Path) -> None:
    nearest = replace(finished, run=str(tmp_path / "run"), model=replace(finished.model, head="nearest"))
    train(nearest, Topology())
    assert overall(tmp_path / "run") > 0.6
    banks = list((Path(str(finished.cache)) / "features").iterdir())
    assert len(banks) == 3  # training images as they are, one augmented copy of each, validation images


@pytest.mark.usefixtures("no_backbone")
@pytest.mark.parametrize("change", ["weights", "image_size", "seed"])
def test_other_features_are_not_taken_for_these(finished: ClassifierRunConfig, tmp_path: Path, change: str) -> None:
    config = replace(finished, run=str(tmp_path / "run"))
    if change == "weights":
        torch.manual_seed(1)
        torch.save(timm.create_model(BACKBONE).state_dict(), tmp_path / "other.pt")
        config = replace(config, model=replace(config.model, weights=str(tmp_path / "other.pt")))
    elif change == "image_size":
        config = replace(config, data=replace(config.data, image_size=48))
    else:  # of the augmented copies
        config = replace(config, seed=1)
    with pytest.raises(AssertionError, match="features were computed"):
        train(config, Topology())


def test_a_killed_run_goes_on_with_the_banks_that_are_whole(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_dataset, tmp_path)
    measure, counted = fitting._measure, []

    def killed_at_second(*arguments: Any) -> Features:
        counted.append(arguments[1])
        if len(counted) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(fitting, "_measure", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        train(config, Topology())
    assert not list((tmp_path / "run/checkpoints").glob("*.pt"))
    train(config, Topology())
    assert len(counted) == 3  # training images once, validation images again
    overall(tmp_path / "run")


def test_a_damaged_bank_is_made_again(tmp_path: Path) -> None:
    bank = FeatureBank(tmp_path, {"network": "a"})
    features = Features(np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32), np.arange(40))
    bank.write(features)
    found = bank.read()
    assert found is not None
    assert (found.values == features.values).all()
    assert (found.rows == features.rows).all()
    content = bytearray(bank.path.read_bytes())
    content[len(content) // 2] ^= 255
    bank.path.write_bytes(content)
    assert bank.read() is None
    bank.write(features)
    assert bank.read() is not None
    assert FeatureBank(tmp_path, {"network": "b"}).read() is None


def test_its_run_is_evaluated_predicted_with_and_exported_like_any_other(
    finished: ClassifierRunConfig, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    run = tmp_path / "moved"
    shutil.copytree(str(finished.run), run)
    raw = tiny_dataset.root.parent / "raw"
    scored = pd.read_parquet(run / "evaluation/metrics.parquet")
    assert launch("evaluate", f"run={run}", "seen_images=leave_out").returncode == 0
    done = launch("export", f"run={run}", "format=onnx", "out=export")
    assert done.returncode == 0, done.stderr
    for name in (run, "export"):
        done = launch("predict", f"run={name}", f"images={raw}", "out=out")
        assert done.returncode == 0, done.stderr
        predicted = pd.read_csv(tmp_path / "out/predictions.csv").set_index("path")
        for row in scored.to_dict("records"):
            assert predicted.loc[str(raw / row["path"]), "type"] == row["predicted"]


def test_two_processes_fit_what_one_does(finished: ClassifierRunConfig, launch: Launch, tmp_path: Path) -> None:
    """Fresh features of two processes, and the head that is fitted to them."""
    model = (f"model.timm_name={BACKBONE}", f"model.weights={finished.model.weights}", "model.views=2")
    sizes = ("data.image_size=32", "data.threads=1", "train.global_batch=12", "train.micro_batch=4", "cache=cache")
    done = launch(
        "train_classifier", f"shards={finished.shards}", "run=run", "model=frozen", *model, *sizes, processes=2
    )
    assert done.returncode == 0, done.stderr
    banks = sorted((tmp_path / "cache/features").iterdir())
    assert len(banks) == 3
    for path in banks:
        with zarr.storage.ZipStore(path, mode="r") as store:
            both = zarr.open_group(store, mode="r")
            with zarr.storage.ZipStore(Path(str(finished.cache)) / "features" / path.name, mode="r") as other:
                alone = zarr.open_group(other, mode="r")
                np.testing.assert_array_equal(both["rows"][:], alone["rows"][:])
                np.testing.assert_allclose(both["values"][:], alone["values"][:], atol=1e-4)
    assert overall(tmp_path / "run") == pytest.approx(overall(Path(str(finished.run))), abs=0.1)


@pytest.mark.parametrize("head", ["linear", "nearest"])
def test_heat_and_features_are_the_backbone_s(head: Any) -> None:
    config = ClassifierConfig(name="frozen", architecture="frozen", timm_name=BACKBONE, head=head)
    network = build_classifier(config, 3, 64).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    logits, heat = GradCam(network, network, 64, CPU)(images)
    torch.testing.assert_close(logits, network(images))
    assert heat.shape[0] == 2
    features, _ = ClassifierFeatures(network, "frozen", 64)(images)
    torch.testing.assert_close(features, network.features(images))


@pytest.mark.parametrize("size", [160, 64])
def test_a_file_of_dinobloom_s_form_gives_its_features(size: int, tmp_path: Path) -> None:
    """DinoBloom's teacher: DINOv2's names behind `backbone.`, heads of its training, positions of 224 pixels."""
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit", num_classes=0, img_size=size).eval()
    state = {f"backbone.{name}": value for name, value in teacher.state_dict().items()}
    if size != 160:
        trained = timm.create_model("test_vit", num_classes=0, img_size=224)
        state["backbone.pos_embed"] = trained.state_dict()["pos_embed"]
        kept = timm.models.vision_transformer.checkpoint_filter_fn(
            {"pos_embed": trained.state_dict()["pos_embed"]}, teacher
        )
        teacher.load_state_dict(kept, strict=False)
    state |= {"backbone.mask_token": torch.zeros(1, 64), "dino_head.mlp.0.weight": torch.zeros(3, 3)}
    torch.save({"teacher": state}, tmp_path / "DinoBloom.pth")
    config = ClassifierConfig(
        architecture="frozen", timm_name="test_vit", weights=str(tmp_path / "DinoBloom.pth"), dropout=0.0
    )
    network = build_classifier(config, 3, size).eval()
    images = torch.rand(2, 3, size, size) * 2 - 1
    assert isinstance(network, FrozenClassifier)
    torch.testing.assert_close(network.features(images), teacher(network.backbone.adapted(images)))


def test_a_run_s_own_trained_network_can_be_the_frozen_one(tmp_path: Path) -> None:
    """Its trunk alone: a laboratory fits a new head for its types to features learned elsewhere."""
    trained = build_classifier(ClassifierConfig(architecture="timm", timm_name=BACKBONE, dropout=0.0), 5, 32).eval()
    torch.save(trained.state_dict(), tmp_path / "run.pt")
    config = ClassifierConfig(architecture="frozen", timm_name=BACKBONE, weights=str(tmp_path / "run.pt"), dropout=0.0)
    network = build_classifier(config, 3, 32).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    expected, _ = ClassifierFeatures(trained, "trained", 32)(images)
    assert isinstance(network, FrozenClassifier)
    torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-5)


def test_frozen_features_need_a_backbone_and_a_view(tiny_dataset: Dataset, tmp_path: Path) -> None:
    for key in ("model.timm_name=", "model.views=0", "model.head=svm"):
        with pytest.raises(UserError, match=key.split("=")[0]):
            config_of(tiny_dataset, tmp_path, key)
