"""If these fail, a detector learns boxes that lie beside the cells, or its boxes and scores are not the field's."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from data_pipeline.sources.annotations import Box
from data_pipeline.stream.stream import Topology
from launchers.console import models_of, read_config
from launchers.train_detector import main as train
from models.detection.config import DetectorConfig
from models.detection.fcos import build_fcos
from models.errors import ModelError
from tests.conftest import Launch
from tests.trainer.test_nuclei import NUCLEUS, draw_field
from trainer.loop.log import read_records
from trainer.metrics.detection import ScoredField, choose_least_score, score_kinds
from trainer.metrics.evaluation import OWN_TEST
from trainer.tasks.detection.config import DetectorRunConfig
from trainer.tasks.detection.load import load_detector
from trainer.tasks.detection.scoring import detect_all, field_stream
from trainer.tasks.detection.targets import FieldBoxes, Square, fields_of, kinds_of
from trainer.tasks.detection.task import training_stream

SETTINGS = (
    *("data.image_size=64", "data.threads=1", "train.epochs=2", "train.iterations_per_epoch=2"),
    *("train.global_batch=4", "train.log_every=1", "model.network.width=32", "model.network.head_layers=1"),
)


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Intervals of few resamples: each is a COCO evaluation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.metrics.detection._RESAMPLES", 4)
        yield


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twenty-four fields, each with two lymphocytes, which are annotated as white cells and drawn as violet discs."""
    root = tmp_path_factory.mktemp("fields")
    draw, lines = np.random.default_rng(0), ["image,label,xmin,ymin,xmax,ymax"]
    for number in range(24):
        places = [(int(draw.integers(60, 260)), 250), (int(draw.integers(380, 560)), int(draw.integers(160, 400)))]
        noise = draw.integers(-12, 12, (480, 640, 3))
        pixels = (draw_field(lymphocytes=places) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines += [f"{number}.png,WBC,{x - 48},{y - 48},{x + 49},{y + 49}" for x, y in places]
        lines.append(f"{number}.png,RBC,20,20,101,101")
    (root / "boxes.csv").write_text("\n".join(lines))
    source = SourceDeclaration("whole_fields", "lab", root, "giemsa", annotations="csv")
    data = tmp_path_factory.mktemp("data")
    build_dataset(data, [source], settings=ShardSettings(codec="png"), ratio=(0.5, 0.2, 0.3), progress=False)
    return Dataset.open(data)


@pytest.fixture(scope="module")
def run(fields: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps."""
    run = tmp_path_factory.mktemp("runs") / "detector"
    train([f"shards={fields.address}", f"run={run}", *SETTINGS])
    return run


@pytest.mark.parametrize(
    "augment",
    [
        ("rotation_step=90", "scale=1.4", "shift=0.1"),
        ("rotation=180", "rotation_step=0", "scale=1.2"),
        ("rotation=0", "scale=1", "shift=0"),
        ("rotation=0", "scale=1", "shift=0", "flip=false"),
    ],
    ids=["region", "affine", "mirror", "none"],
)
def test_boxes_move_with_the_image(fields: Dataset, augment: tuple[str, ...]) -> None:
    """Whatever turns, zooms and shifts: in the middle of each white cell's box is the nucleus that was drawn there."""
    colours = ("dye_amount=0", "channel_gain=0", "channel_mixing=0", "density_offset=0")
    arguments = [f"data.augment.{each}" for each in (*augment, *colours)]
    address = f"shards={fields.address}"
    config = read_config(DetectorRunConfig, "train_detector", [address, "data.image_size=160", *arguments])
    stream = training_stream(fields, config, Topology())
    boxes = FieldBoxes(stream, fields, ["white cell"], config.seed)
    seen = 0
    batches = stream.read()
    for _ in range(2):
        part = next(batches)
        for image, target in zip(part.images, boxes.of(part), strict=True):
            for left, top, right, bottom in target["boxes"].round().int().tolist():
                if min(left, top) <= 0 or max(right, bottom) >= 160:
                    continue
                middle = image[:, (top + bottom) // 2, (left + right) // 2]
                assert torch.allclose((middle + 1) * 127.5, torch.tensor(NUCLEUS).float(), atol=24)
                corner = image[:, top - 1, left - 1] if min(left, top) > 0 else None
                assert corner is None or float((corner + 1).mean()) > float((middle + 1).mean())
                seen += 1
    assert seen > 8


def test_a_square_gives_back_the_boxes_of_its_field() -> None:
    square = Square(640, 480, 320)
    edges = np.array([[0, 0, 640, 480], [100, 50, 200, 150]], float)
    assert square.inside(edges).tolist() == [[0, 40, 320, 280], [50, 65, 100, 115]]
    assert np.array_equal(square.back(square.inside(edges)), edges)
    assert square.back(np.array([[-5.0, 0, 400, 320]])).tolist() == [[0, 0, 640, 480]]


def test_a_run_is_trained_scored_and_reported(run: Path, fields: Dataset) -> None:
    page = (run / "report.html").read_text()
    for word in ("white cell", "red cell", "classical finder", "fields counted right"):
        assert word in page
    assert (run / "evaluation" / OWN_TEST).exists()
    trained = load_detector(run)
    assert trained.kinds == ("white cell", "red cell")
    assert set(trained.least_scores) == {"white cell", "red cell"}
    before = (run / "metrics.jsonl").read_text()
    train([f"shards={fields.address}", f"run={run}", *SETTINGS])  # finished: scored and reported again
    assert (run / "metrics.jsonl").read_text() == before


def test_two_processes_learn_what_one_does(fields: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Losses and gradient norms of each step: the same fields, turned and shifted alike, with their own boxes."""
    settings = (*SETTINGS, "train.epochs=1", "train.iterations_per_epoch=3", "data.deterministic=true")
    shards = f"shards={fields.address}"
    train([shards, f"run={tmp_path / 'alone'}", *settings, "train.micro_batch=2"])  # one process's share of two
    done = launch("train_detector", shards, "run=both", *settings, processes=2)
    assert done.returncode == 0, done.stderr
    alone, both = (
        [each for each in read_records(tmp_path / run) if each["kind"] == "step"] for run in ("alone", "both")
    )
    assert len(alone) == len(both) == 3
    for first, second in zip(alone, both, strict=True):
        for name in ("classification", "regression", "ctrness", "gradient_norm"):
            assert second[name] == pytest.approx(first[name], rel=1e-4), name


def test_a_finder_sees_a_field_as_the_scores_do(run: Path, fields: Dataset) -> None:
    """Boxes of `find`, from a file's pixels, are those of the stream of a data set, to a few pixels."""
    trained = load_detector(run)
    stream = field_stream(fields, trained.config.data, "test", Topology())
    row = next(stream.samples.itertuples())
    scored = detect_all(trained.network, stream, fields, trained.kinds)[0]
    sample = next(each for each in fields.samples().itertuples() if each.id == row.id)
    found = trained.find(np.asarray(decode_rgb(fields.read_encoded(sample))))
    sure = [box for box in scored.found if box.score >= trained.least_scores[box.name]]
    assert abs(len(found) - len(sure)) <= max(2, len(sure) // 10)
    for box, other in list(zip(found, sure, strict=False))[:1]:
        assert abs(box.score - other.score) < 0.05


def test_scores_count_what_is_right() -> None:
    true = [Box("white cell", 0, 0, 10, 10), Box("white cell", 50, 50, 70, 70), Box("platelet", 30, 30, 34, 34)]
    right = [Box(box.name, box.left, box.top, box.right, box.bottom, 0.9) for box in true]
    wrong = Box("white cell", 80, 80, 90, 90, 0.4)
    fields = [ScoredField(true, [*right, wrong]), ScoredField([], [])] * 3
    bound = choose_least_score(fields, "white cell")
    assert 0.4 < bound <= 0.9
    scores = score_kinds(fields, {"white cell": bound, "platelet": 0.5})
    assert scores["white cell"].average_precision_50.value == pytest.approx(1)
    assert scores["white cell"].fields_counted_right.value == 1
    assert (scores["white cell"].cells, scores["white cell"].found) == (6, 6)
    loose = score_kinds(fields, {"white cell": 0.3})["white cell"]
    assert loose.fields_counted_right.value == 0.5
    assert loose.count_error.value == 0.5
    missed = score_kinds([ScoredField(true, right[1:])] * 4, {"white cell": 0.5})["white cell"]
    assert missed.average_precision_50.value == pytest.approx(0.5, abs=0.01)


def test_a_data_set_of_cells_is_refused_and_so_are_other_weights(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole field in split train: add fields with boxes"):
        train([f"shards={tiny_dataset.address}", f"run={tmp_path / 'run'}", *SETTINGS])
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: no such file"):
        build_fcos(DetectorConfig(weights="nowhere.safetensors"), 1)
    with pytest.raises(ModelError, match=r"its feature maps are not at strides|no feature maps"):
        build_fcos(DetectorConfig(backbone="vit_tiny_patch16_224"), 1)
    with pytest.raises(UserError, match="must be a multiple of 32"):
        read_config(DetectorRunConfig, "train_detector", ["data.image_size=100"])


def test_help_lists_the_presets_of_detectors_alone(fields: Dataset) -> None:
    assert models_of("detection") == "fcos_lite, fcos_resnet50"
    assert "fcos" not in models_of("classification")
    assert kinds_of(fields_of(fields)) == ("white cell", "red cell")
