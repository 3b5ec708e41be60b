"""If these fail, views and ensembles answer otherwise than they were scored, or are sure of what they do not know."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from data_pipeline.stream.stream import Topology
from launchers import evaluate, export, predict
from launchers.console import read_config
from tests.launchers.test_launchers import TINY
from trainer.learners.choices import VIEWS
from trainer.metrics.evaluation import ClassifierEvaluation
from trainer.metrics.records import read_record
from trainer.runs.training import train
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.inference.logits import predict_all, scoring_stream
from trainer.tasks.classification.uncertainty.calibration import (
    FILE,
    Calibration,
    fit_temperature,
    load_calibration,
    save_calibration,
)
from trainer.tasks.classification.uncertainty.views import EachView, Views, views_of


def images_of(count: int, side: int = 32) -> Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def runs(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that see images at another size and crop."""
    folder = tmp_path_factory.mktemp("runs")
    domains = sorted(set(tiny_dataset.samples()["domain"]))
    crop = f"data.crop={{{', '.join(f'{name}: 0.8' for name in domains)}}}"
    arguments: dict[str, list[str]] = {"a": [], "b": ["data.image_size=40", crop, "seed=1"]}
    for name, more in arguments.items():
        train_tiny(tiny_dataset, folder / name, *more)
    return [folder / name for name in arguments]


def train_tiny(dataset: Dataset, run: Path, *arguments: str) -> Path:
    given = [f"shards={dataset.root}", f"run={run}", *TINY, *arguments]
    return train(read_config(ClassifierRunConfig, "train_classifier", given), Topology())


def together(runs: Sequence[Path]) -> str:
    return f"run=[{','.join(map(str, runs))}]"


def probabilities(table: pd.DataFrame) -> Any:
    return table[[name for name in table if str(name).startswith("p:")]].to_numpy()


@pytest.mark.parametrize("count", VIEWS)
def test_the_answer_is_the_mean_over_mirrored_and_turned_images(tiny_network: nn.Module, count: int) -> None:
    """The probabilities are averaged, of exactly these eight pictures and no other."""
    images = images_of(3)
    pictures = [images.rot90(turn, (2, 3)) for turn in range(4)]
    pictures += [each.flip(3) for each in pictures]
    chosen = {1: [0], 2: [0, 4], 4: [0, 4, 2, 6], 8: range(8)}[count]
    mean = sum(tiny_network(pictures[index]).softmax(dim=1) for index in chosen) / count
    torch.testing.assert_close(Views(tiny_network, count)(images).exp(), mean, atol=1e-6, rtol=1e-5)
    assert len(views_of(images, count)) == count


def test_a_mirrored_or_turned_image_gets_the_same_answer(tiny_network: nn.Module) -> None:
    images, answer = images_of(2), Views(tiny_network, 8)
    assert (tiny_network(images) - tiny_network(images.flip(3))).abs().max() > 1e-4  # without views it does not
    for other in (images.flip(3), images.flip(2), images.rot90(1, (2, 3)), images.transpose(2, 3)):
        torch.testing.assert_close(answer(other), answer(images), atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3))
    return network.eval().requires_grad_(False)


def test_a_training_fits_a_temperature_for_each_number_of_views(runs: list[Path], tiny_dataset: Dataset) -> None:
    """Averages are less sure than single answers: one temperature for both would be wrong for one of them."""
    trained = load_classifier(runs[0])
    fitted = [load_calibration(runs[0], trained.checkpoint.digest, count) for count in VIEWS]
    assert [each.views for each in fitted] == list(VIEWS)
    assert {each.images for each in fitted} == {len(tiny_dataset.samples(["validation"]))}
    assert trained.calibration == fitted[0]
    stream = scoring_stream(
        tiny_dataset,
        trained.config.data,
        splits=["validation"],
        cell_types=trained.cell_types,
        batch=12,
        topology=Topology(),
    )
    answers = predict_all(Views(trained.network, 8), stream)
    expected = fit_temperature(answers, torch.tensor(stream.labels), "").temperature
    assert fitted[-1].temperature == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(
        EachView(trained.network, 8)(images_of(2)).exp().mean(dim=1), Views(trained.network, 8)(images_of(2)).exp()
    )


def test_a_calibration_of_an_older_version_is_read_and_lacks_views(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = load_classifier(runs[0]).checkpoint.digest
    (tmp_path / FILE).write_text(json.dumps({"temperature": 2.5, "images": 40, "remark": "", "checkpoint": digest}))
    assert load_calibration(tmp_path, digest) == Calibration(2.5, 40, "", digest)
    assert "not fitted" in load_calibration(tmp_path, digest, 8).remark
    whole = (runs[0] / FILE).read_bytes()
    save_calibration(runs[0], Calibration(2.5, 40, "", digest))
    Ensemble.load(runs[:1], 8).tell_if_uncalibrated()
    (runs[0] / FILE).write_bytes(whole)
    assert "none for this checkpoint and 8 views; not fitted" in capsys.readouterr().err


def test_members_of_other_sizes_crops_and_orders_of_types_answer_as_they_do_alone(runs: list[Path]) -> None:
    """Each member sees its own part of the image at its own size, and its types are aligned by their names."""
    ensemble = Ensemble.load(runs, 1)
    first, second = ensemble.members
    domain = second.domains[0]
    answering = ensemble.answering([domain, domain])
    assert (answering.crop, answering.shares, answering.image_size) == (1.0, (1.0, 0.8), 50)
    images = images_of(3, 50)
    small = nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    alone = [
        (member.network(member_images) / member.calibration.temperature).softmax(dim=1)
        for member, member_images in ((first, small), (second, images[:, :, 5:45, 5:45]))
    ]
    with torch.no_grad():
        torch.testing.assert_close(answering.network(images).exp(), sum(alone) / 2, atol=1e-6, rtol=1e-5)
        turned = dataclasses.replace(
            second, cell_types=second.cell_types[::-1], network=Reversed(second.network).eval()
        )
        again = Ensemble((first, turned)).answering([domain, domain]).network(images)
        torch.testing.assert_close(again, answering.network(images))


class Reversed(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).flip(1)  # type: ignore[no-any-return]


def test_what_cannot_answer_together_is_refused(runs: list[Path], tiny_dataset: Dataset, tmp_path: Path) -> None:
    first, second = (load_classifier(run) for run in runs)
    with pytest.raises(UserError, match=r"cannot answer together: one of them does not know basophil"):
        Ensemble((first, dataclasses.replace(second, cell_types=("eosinophil", "lymphocyte"))))
    other = ShardSettings(codec="png", stored_size=64)
    with pytest.raises(UserError, match=r"jpeg of quality 95 at their own size, of the other as png at 64 px"):
        Ensemble((first, dataclasses.replace(second, storage=other)))
    images, out = f"images={tiny_dataset.root.parent / 'raw'}", f"out={tmp_path / 'out'}"
    for launcher, arguments, says in (
        (predict, (together([runs[0], runs[0]]), images, out), "name at least one, and each once"),
        (predict, (f"run={runs[0]}", images, out, "views=3"), "views=3 is none of 1, 2, 4, 8"),
        (predict, (f"run={runs[0]}", images, out, "views=2", "heatmaps=true"), "give one run of a convolutional"),
        (evaluate, (together(runs),), "needs out=DIR"),
        (evaluate, ("run=shipped",), "needs out=DIR"),
        (export, (together(runs), "format=onnx"), "needs out=DIR"),
    ):
        with pytest.raises(UserError, match=says):
            launcher.main(arguments)
    assert not (tmp_path / "out").exists()


def test_a_score_of_several_views_stands_beside_the_one_without(runs: list[Path], tiny_dataset: Dataset) -> None:
    (run, *_), folder = runs, runs[0] / "evaluation"
    before = (folder / "metrics.json").read_bytes()
    evaluate.main([f"run={run}", "views=8"])
    (path,) = folder.glob("*-views8.json")
    record = read_record(ClassifierEvaluation, path)
    assert (record.views, record.members) == (8, [])
    assert record.calibration.temperature == load_calibration(run, record.checkpoint.sha256, 8).temperature
    assert (folder / "metrics.json").read_bytes() == before
    assert "8 views of each" in (run / "report.html").read_text()
    assert "8 views of each" in (run / "model_card.md").read_text()


def test_an_ensemble_is_scored_predicted_and_exported_alike(
    runs: list[Path], tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """With its views: as one score that names its members, one table, and one graph for any number of images."""
    evaluate.main([together(runs), "views=2", f"out={tmp_path / 'both'}"])
    (path,) = (tmp_path / "both/evaluation").glob("*.json")
    record = read_record(ClassifierEvaluation, path)
    assert [member.run for member in record.members] == [str(run) for run in runs]
    assert len({member.checkpoint.sha256 for member in record.members}) == 2
    assert "the mean of members calibrated each" in record.calibration.remark
    assert (tmp_path / "both/report.html").exists()
    raw = tiny_dataset.root.parent / "raw"
    predict.main([together(runs), "views=2", f"images={raw}", f"out={tmp_path / 'live'}"])
    live = pd.read_csv(tmp_path / "live/predictions.csv").set_index("path")
    scored = pd.read_parquet(path.with_suffix(".parquet"))
    same = live.loc[[str(raw / name) for name in scored["path"]]]
    np.testing.assert_allclose(probabilities(same), probabilities(scored), atol=1e-4)
    for form in ("onnx", "torch_export"):
        out = tmp_path / form
        export.main([together(runs), "views=2", f"format={form}", f"out={out}"])
        told = json.loads((out / "model.json").read_text())
        assert (told["views"], len(told["members"]), told["image_size"]) == (2, 2, 50)
        assert told["checked"]["largest_difference"] < 1e-6
        assert {each.name for each in out.glob("*.md")} == {"model_card_1.md", "model_card_2.md"}
        predict.main([f"run={out}", f"images={raw}", f"out={tmp_path / 'exported'}"])  # 120 images: not 64 each time
        exported = pd.read_csv(tmp_path / "exported/predictions.csv").set_index("path")
        np.testing.assert_allclose(probabilities(exported), probabilities(live), atol=1e-6)
    with pytest.raises(UserError, match="an export takes no other runs and no views="):
        predict.main([f"run={out}", "views=8", f"images={raw}", f"out={tmp_path / 'none'}"])


def test_an_image_that_any_member_has_seen_is_not_scored(
    runs: list[Path], tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under another name the same slides fall on other sides of the split."""
    table = next((tiny_dataset.root.parent / "raw").glob("*.csv"))
    source = SourceDeclaration(kind="table", name="renamed", root=table, domain="phantom")
    build_dataset(tmp_path / "renamed", [source], ratio=(0.5, 0.25, 0.25), progress=False)
    other = train_tiny(Dataset.open(tmp_path / "renamed"), tmp_path / "other", "seed=2")
    arguments = [together([runs[0], other]), f"shards={tiny_dataset.root}", f"out={tmp_path / 'both'}"]
    with pytest.raises(UserError, match=rf"through {other}\): score images that it has not seen"):
        evaluate.main(arguments)
    evaluate.main([*arguments, "seen_images=leave_out"])
    (path,) = (tmp_path / "both/evaluation").glob("*.json")
    record = read_record(ClassifierEvaluation, path)
    assert record.seen_images.left_out > 0
    assert record.dataset.count + record.seen_images.left_out == len(tiny_dataset.samples(["test"]))
