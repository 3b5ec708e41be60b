"""If these fail, a gallery points at places that a classifier did not look at."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from tests.conftest import Launch
from tests.launchers.test_launchers import TINY, assert_refused
from trainer.metrics.evaluation import HEAT, shown_cells
from trainer.reports.gallery import thumbnail
from trainer.runs.normalizers.bundle import NormalizerBundle, Selection
from trainer.runs.normalizers.classical import CLASSICAL
from trainer.tasks.classification.inference.ensemble import NormalizedClassifier
from trainer.tasks.classification.inference.grad_cam import HEAT_SIDE, GradCam, in_picture
from trainer.tasks.classification.uncertainty.calibration import Calibrated

CPU = torch.device("cpu")


class Masked(nn.Module):
    """Brightness of 2x2 pixels in two channels: of the upper left quarter alone, and of the whole image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = nn.functional.avg_pool2d(images.mean(1, keepdim=True), 2)
        side = bright.shape[-1] // 2
        mask = torch.zeros_like(bright)
        mask[..., :side, :side] = 1
        return torch.cat([bright * mask, bright], dim=1)


class OfOneCorner(nn.Module):
    """Type 1 for what is bright in one corner; the rest of the image speaks, a little, against it."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Masked()
        self.feature_info = [{"module": "stage"}]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        corner, whole = self.stage(images).relu_().mean((2, 3)).unbind(1)  # in place, as networks do
        return torch.stack([torch.zeros_like(corner), corner - 0.01 * whole], dim=1)


def test_heat_lies_where_the_answer_comes_from() -> None:
    """A map that is warm everywhere must not colour what had no part in the answer."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    images[3] = -1  # nothing is bright, so nothing speaks for type 1
    network = OfOneCorner()
    logits, heat = GradCam(Calibrated(network, 2.0), network, 64, CPU)(images)
    assert logits.argmax(dim=1).tolist() == [1, 1, 1, 0]
    assert heat.shape == (4, 32, 32)
    assert heat.amax((1, 2)).tolist() == [1, 1, 1, 0]
    assert (heat[:3, :16, :16] > 0.1).all()
    assert heat[:, 16:].max() == heat[:, :, 16:].max() == 0
    # As of whole pictures, of whose sides the network saw a half: the corner lies a quarter in.
    for one in in_picture(heat[:3], 0.5):
        picture = np.frombuffer(one, np.uint8).reshape(HEAT_SIDE, HEAT_SIDE)
        assert picture[8:15, 8:15].min() > 20
        picture = picture.copy()
        picture[8:17, 8:17] = 0
        assert picture.max() == 0


def test_heat_is_of_the_equations_and_the_answer_stays(tiny_network: nn.Module) -> None:
    """By the network's own maps and head, and through a normaliser as without it on what the normaliser gives."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits, heat = GradCam(tiny_network, tiny_network, 32, CPU)(images)
    torch.testing.assert_close(logits, tiny_network(images))
    maps = tiny_network.stages[:3](images).detach().requires_grad_()  # 4 pixels; the fourth stage has 2
    tiny_network.forward_head(tiny_network.stages[3:](maps)).max(dim=1).values.sum().backward()
    expected = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    torch.testing.assert_close(heat, expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-12))
    assert expected.amax((1, 2)).max() > 0

    reinhard = CLASSICAL["reinhard"].fit(torch.rand(4, 3, 32, 32) * 2 - 1)
    bundle = NormalizerBundle(reinhard, "violet", "giemsa", 32, 1.0, Selection("", None, None))
    through = GradCam(NormalizedClassifier(tiny_network, bundle, 32), tiny_network, 32, CPU)(images)
    torch.testing.assert_close(through, GradCam(tiny_network, tiny_network, 32, CPU)(reinhard(images)))


@pytest.fixture
def tiny_network() -> nn.Module:
    torch.manual_seed(0)
    config = ClassifierConfig(architecture="sequential", timm_name="", layers=[1, 1, 1, 1], widths=[8, 8, 8, 8])
    return build_classifier(config, 3, 32).eval()


@pytest.mark.parametrize(
    "config",
    [
        ClassifierConfig(architecture="naive_bayes", timm_name=""),
        ClassifierConfig(architecture="timm", timm_name="test_vit"),
    ],
)
def test_a_network_without_maps_is_refused(config: ClassifierConfig) -> None:
    network = build_classifier(config, 3, 64)
    with pytest.raises(UserError, match="has no feature maps"):
        GradCam(network, network, 64, CPU)


def test_an_overlay_has_the_shape_of_its_picture(tmp_path: Path) -> None:
    """Stretched by the page, it would point beside the cell."""
    Image.new("RGB", (300, 200), "white").save(tmp_path / "cell.png")
    heat = bytes([255]) * HEAT_SIDE**2
    for middle_square, coloured in ((False, 72), (True, 48)):
        address = re.findall(
            r"data:image/png;base64,([^\"]+)", thumbnail(tmp_path / "cell.png", "", heat, middle_square=middle_square)
        )[0]
        with Image.open(io.BytesIO(base64.b64decode(address))) as overlay:
            assert overlay.size == (72, 48)
            alpha = np.asarray(overlay)[..., 3]
        assert (alpha > 0).sum(axis=1).tolist() == [coloured] * 48
        assert alpha[24, 36] > 0


def test_galleries_show_where_the_classifier_looked(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """The cells of the report, and with heatmaps=true all that predict.py shows."""
    assert launch("train_classifier", f"shards={tiny_dataset.root}", "run=run", *TINY).returncode == 0
    predictions = pd.read_parquet(tmp_path / "run/evaluation/metrics.parquet")
    types = [name.removeprefix("p:") for name in predictions if name.startswith("p:")]
    shown = pd.concat(shown_cells(predictions, types))
    assert {len(each) for each in shown[HEAT]} == {HEAT_SIDE**2}
    assert predictions[HEAT].notna().sum() == len(shown)
    assert (tmp_path / "run/report.html").read_text().count('class="heat"') == len(shown)

    images = f"images={tiny_dataset.root.parent / 'raw'}"
    assert launch("predict", "run=run", images, "out=bare").returncode == 0
    done = launch("predict", "run=run", images, "out=out", "heatmaps=true")
    assert done.returncode == 0, done.stderr
    bare, hot = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("bare", "out"))
    pd.testing.assert_frame_equal(bare, hot)
    assert (tmp_path / "out/gallery.html").read_text().count('class="heat"') == len(hot)
    assert 'class="heat"' not in (tmp_path / "bare/gallery.html").read_text()
    assert launch("export", "run=run", "format=torch_export", "out=export").returncode == 0
    refused = launch("predict", "run=export", images, "out=none", "heatmaps=true")
    assert_refused(refused, "export", "has no feature maps")
    assert not (tmp_path / "none").exists()
