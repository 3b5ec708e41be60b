"""If these fail, an unknown cell passes for a known one, or a set of types holds the true one less often than said."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from launchers.export import main as export
from launchers.predict import main as predict
from launchers.train_classifier import main as train
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.features import Layers, last_layer, watch_features
from models.errors import ModelError
from tests.launchers.test_launchers import TINY
from trainer.metrics.conformal import conformal_quantile, least_probability, prediction_sets
from trainer.metrics.evaluation import load_evaluations
from trainer.metrics.uncertainty import auroc
from trainer.tasks.classification.evaluation.everyday_pictures import KIND, everyday_pictures
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.uncertainty.reference import FILE, load_reference, save_reference
from trainer.tasks.classification.uncertainty.training_distance import TrainingDistance

COLUMNS = ["path", "type", "confidence", "unfamiliarity", "out_of_distribution", "set"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> list[Path]:
    """Two runs on the same images."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        train([f"shards={tiny_dataset.address}", f"run={folder / str(seed)}", f"seed={seed}", *TINY])
    return [folder / "0", folder / "1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, tiny_dataset: Dataset) -> Path:
    """All cells of the data set, and a picture of noise."""
    folder = tmp_path_factory.mktemp("images") / "all"
    shutil.copytree(tiny_dataset.root.parent / "raw", folder)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


def predicted(run: Path | str, images: Path, out: Path, *arguments: str) -> pd.DataFrame:
    predict([f"run={run}", f"images={images}", f"out={out}", *arguments])
    return pd.read_csv(out / "predictions.csv", keep_default_na=False)


def test_sets_hold_the_truth_as_often_as_asked_for() -> None:
    """Probabilities that are systematically wrong change the sets' sizes, not their coverage."""
    rng = np.random.default_rng(0)
    logits, noise = rng.normal(0, 2, (40_000, 5)), rng.gumbel(size=(40_000, 5))
    labels = (logits + noise).argmax(axis=1)
    overconfident = np.exp(3 * logits)
    probabilities = overconfident / overconfident.sum(axis=1, keepdims=True)
    for coverage in (0.5, 0.9, 0.99):
        least = least_probability(probabilities[:20_000], labels[:20_000], coverage)
        sets = prediction_sets(probabilities[20_000:], least)
        assert sets[np.arange(20_000), labels[20_000:]].mean() == pytest.approx(coverage, abs=0.01)


def test_too_few_images_for_a_coverage_give_sets_of_all_types() -> None:
    scores = np.arange(9.0)
    assert conformal_quantile(scores, 0.9) == 8  # the ninth of ten
    assert conformal_quantile(scores, 0.5) == 4
    assert conformal_quantile(scores, 0.91) == np.inf
    probabilities = np.array([[0.9, 0.1]] * 9)
    assert prediction_sets(probabilities, least_probability(probabilities, np.zeros(9, np.int64), 0.95)).all()


def test_a_type_that_was_not_learned_is_further_than_those_that_were() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn((4, 300), generator=generator)

    def drawn(kind: int) -> torch.Tensor:
        return centres[kind] + torch.randn((100, 300), generator=generator)

    features, validation = (torch.cat([drawn(kind) for kind in range(3)]) for _ in range(2))
    distance = TrainingDistance.fit(features, torch.arange(3).repeat_interleave(100), validation, [100, 200])
    known, unknown = distance(torch.cat([drawn(kind) for kind in range(3)])), distance(drawn(3))
    assert (unknown[:, None] > known).double().mean() > 0.99
    assert (distance(20 * torch.randn((100, 300), generator=generator)) > 1).all()


@pytest.mark.parametrize(
    ("architecture", "more"),
    [
        ("senet", {"timm_name": ""}),
        ("sequential", {"timm_name": ""}),
        ("timm", {"timm_name": "test_efficientnet"}),
        ("timm", {"timm_name": "test_vit"}),
        ("frozen", {"timm_name": "test_efficientnet", "head": "linear"}),
    ],
)
def test_features_are_what_the_last_layer_sees(architecture: str, more: dict[str, Any]) -> None:
    small = ClassifierConfig(block="basic", layers=(1, 1), widths=(8, 16), groups=1, reduction=4, stem_widths=(8,))
    config = dataclasses.replace(small, architecture=architecture, **more)
    network = build_classifier(config, 3, 160).eval()
    with torch.no_grad(), watch_features(network) as seen:
        logits = network(torch.rand(2, 3, 160, 160) * 2 - 1)
        assert seen[0].ndim == 2
        torch.testing.assert_close(last_layer(network)(seen[0]), logits)
        layers = Layers(network, 160)
        assert layers(torch.rand(2, 3, 160, 160)).shape == (2, sum(layers.sizes))
        assert len(layers.sizes) > 2


def test_naive_bayes_has_no_features_to_watch() -> None:
    with pytest.raises(ModelError, match="no last layer"):
        last_layer(NaiveBayes(3))


def test_a_prediction_says_what_is_unfamiliar_and_what_an_image_may_be(
    runs: list[Path], images: Path, tmp_path: Path
) -> None:
    frame = predicted(runs[0], images, tmp_path / "out")
    assert list(frame)[: len(COLUMNS)] == COLUMNS
    assert (frame["out_of_distribution"] == (frame["unfamiliarity"] > 1)).all()
    noise = frame["path"].str.endswith("noise.png")
    assert frame.loc[noise, "out_of_distribution"].all()
    assert frame.loc[~noise, "out_of_distribution"].mean() < 0.2
    ensemble = Ensemble.load([runs[0]], 1)
    assert ensemble.uncertainty is not None
    least = ensemble.uncertainty.least_probability(0.9)
    for row in frame.to_dict("records"):
        expected = [name for name in ensemble.cell_types if row[f"p:{name}"] >= least]
        assert row["set"].split("; ") == (expected or [""])
    everything = predicted(runs[0], images, tmp_path / "out", "coverage=0.999")
    assert (everything["set"].str.count("; ") == 2).all()  # too few validation images for it
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("<em>out of distribution</em>") == frame["out_of_distribution"].sum()


def test_runs_and_views_have_one_scale(runs: list[Path], images: Path, tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Of the validation images half are below 0, whatever answers; heat maps change nothing."""
    rows = tiny_dataset.samples(["validation"])
    paths = [str(images / path) for path in rows["path"]]
    several = f"[{runs[0]},{runs[1]}]"
    for run, arguments in ((runs[0], ["heatmaps=true"]), (runs[0], ["views=4"]), (several, ["views=2"])):
        frame = predicted(run, images, tmp_path / "out", *arguments).set_index("path").loc[paths]
        assert frame["unfamiliarity"].median() == pytest.approx(0, abs=0.02)
        assert frame["unfamiliarity"].max() == pytest.approx(1, abs=0.02)
        truth = [kind in held.split("; ") for kind, held in zip(rows["cell_type"], frame["set"], strict=True)]
        assert np.mean(truth) >= 0.9


def test_the_report_says_how_often_sets_hold_the_truth_and_whether_unknown_types_are_noticed(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train([f"shards={tiny_dataset.address}", f"run={run}", "data.cell_types=[basophil,eosinophil]", *TINY])
    (saved,) = load_evaluations(run)
    found, cells = saved.record.uncertainty, saved.predictions
    assert found is not None
    assert cells is not None
    assert list(found.unknown) == [KIND, "lymphocyte"]
    assert found.unknown[KIND].count == len(everyday_pictures()) > 10
    assert found.unknown["lymphocyte"].count == saved.record.not_scored["lymphocyte"]
    assert found.unfamiliar.value == pytest.approx((cells["unfamiliarity"] > 1).mean())
    ensemble = Ensemble.load([run], 1)
    assert ensemble.uncertainty is not None
    for sets in found.sets:
        least = ensemble.uncertainty.least_probability(sets.coverage)
        true = [row[f"p:{row['cell_type']}"] for row in cells.to_dict("records")]
        assert sets.covered.value == pytest.approx(np.mean(np.array(true) >= least), abs=1e-6)
        assert sets.size.value == pytest.approx((cells.filter(like="p:") >= least).sum(axis=1).mean(), abs=1e-6)
    page = (run / "report.html").read_text()
    assert "sets with the true type" in page
    assert "types that the classifier does not know" in page


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    known, unknown = (
        pd.DataFrame({"unfamiliarity": rng.normal(mean, 1, 200), "group": [f"{mean}-{i // 4}" for i in range(200)]})
        for mean in (0.0, 1.0)
    )
    found = auroc(known, unknown)
    pairs = unknown["unfamiliarity"].to_numpy()[:, None] > known["unfamiliarity"].to_numpy()
    assert found.value == pytest.approx(pairs.mean())
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high


def test_a_run_of_before_predicts_says_what_is_missing_and_gets_it(
    runs: list[Path], images: Path, tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "old"
    shutil.copytree(runs[0], old)
    whole = (old / FILE).read_bytes()
    (old / FILE).unlink()
    frame = predicted(old, images, tmp_path / "out")
    assert "set" not in frame
    assert "unfamiliarity" not in frame
    assert f"no {FILE}" in capsys.readouterr().err
    both = predicted(f"[{old},{runs[1]}]", images, tmp_path / "out")
    assert "set" not in both
    shutil.copytree(runs[0], tmp_path / "again")
    (tmp_path / "again" / FILE).unlink()
    arguments = [f"shards={tiny_dataset.address}", f"run={tmp_path / 'again'}", "seed=0", *TINY]
    train(arguments)
    assert (tmp_path / "again" / FILE).read_bytes() == whole
    (old / FILE).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{FILE}: damaged"):
        predicted(old, images, tmp_path / "out")


def test_a_compact_run_keeps_it_and_an_export_says_that_it_has_none(
    runs: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = predicted(runs[0], images, tmp_path / "out")
    export([f"run={runs[0]}", "format=safetensors", f"out={tmp_path / 'small'}"])
    small = predicted(tmp_path / "small", images, tmp_path / "out")
    np.testing.assert_allclose(small["unfamiliarity"], whole["unfamiliarity"], atol=0.05)
    assert (small["set"] == whole["set"]).mean() > 0.95
    capsys.readouterr()
    export([f"run={runs[0]}", "format=torch_export", f"out={tmp_path / 'exported'}"])
    assert "set" not in predicted(tmp_path / "exported", images, tmp_path / "out")
    assert f"no {FILE}" in capsys.readouterr().err


def test_a_reference_is_of_one_checkpoint(runs: list[Path], tmp_path: Path) -> None:
    digest = Ensemble.load([runs[0]], 1).members[0].checkpoint.digest
    reference = load_reference(runs[0], digest)
    assert reference is not None
    assert load_reference(runs[0], "another") is None
    save_reference(tmp_path, dataclasses.replace(reference, checkpoint="another"))
    again = load_reference(tmp_path, "another")
    assert again is not None
    assert again.ids == reference.ids
    assert torch.equal(again.answers, reference.answers)


def test_a_coverage_that_is_no_share_is_refused(runs: list[Path], images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="coverage=90"):
        predicted(runs[0], images, tmp_path / "out", "coverage=90")
