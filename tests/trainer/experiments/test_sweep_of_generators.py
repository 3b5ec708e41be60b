"""If these fail, a sweep of generators is compared by nothing, or by another score than its runs choose by."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Topology
from tests.conftest import TINY_TYPES
from tests.trainer import test_conditional_training, test_few_shot_training
from tests.trainer.test_report import Page
from trainer.experiments.sweep import opened, plan_sweep, refuse_failures, write_trials
from trainer.experiments.sweep_config import SweepConfig
from trainer.experiments.sweep_report import write_sweep_report
from trainer.experiments.trial import read_epochs, train_here
from trainer.runs import validation_distance
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.task import TASK as STAIN
from trainer.tasks.stain.task import with_domains
from trainer.tasks.stain.validation import StainDistance

SETTINGS = {
    "train_conditional_gan": test_conditional_training.TINY,
    "train_few_shot_gan": (*test_few_shot_training.TINY, *test_few_shot_training.SHORT),
}


def search_of(launcher: str, shards: Dataset, *fixed: str, **space: Any) -> SweepConfig:
    settings = [*SETTINGS[launcher], *fixed]
    return SweepConfig(
        name="own", kind="search", launcher=launcher, shards=str(shards.root), fixed=settings, seeds=[0], space=space
    )


@pytest.mark.parametrize(
    ("launcher", "setting"),
    [("train_conditional_gan", "model.critic_steps"), ("train_few_shot_gan", "model.inner.rounds")],
)
def test_a_search_of_generators_is_ranked_by_the_distance_of_their_images(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, setting: str
) -> None:
    """In this process; on a cluster, killed and resumed: tests/launchers/test_ablate.py."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = search_of(launcher, tiny_dataset, "train.epochs=2", **{setting: {"grid_search": [1, 2]}})
    sweep = plan_sweep(config, tmp_path, Path("a.yaml"))
    assert (sweep.metric, sweep.mode) == ("validation_kernel_distance", "min")
    with opened(sweep):
        for trial in sweep.trials:
            reported: list[dict[str, Any]] = []
            train_here(trial, config.resources_per_trial, reported.append)
            assert [scores["epoch"] for scores in reported] == [1, 2]
            assert all(scores["validation_kernel_distance"] > 0 for scores in reported)
        write_trials(sweep)
    refuse_failures(sweep)
    page = Page(write_sweep_report(tmp_path))
    assert f"{launcher}.py" in page.text
    (points,) = [each for each in page.tables if each[0][0] == "place"]
    curves = [[each["validation_kernel_distance"] for each in read_epochs(trial.run)] for trial in sweep.trials]
    kept = [curve[-1] if launcher == "train_few_shot_gan" else min(curve) for curve in curves]
    assert [row[1] for row in points[1:]] == [f"{value:.4f}" for value in sorted(kept)]
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert {line[setting] for line in lines} == {"1", "2"}
    assert all(float(line["seconds"]) > 0 and int(line["parameters"]) > 0 for line in lines)


def test_what_has_no_score_after_an_epoch_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = search_of("train_few_shot_gan", tiny_dataset, model={"grid_search": ["fast_gan", "diff_augment"]})
    with pytest.raises(UserError, match=r"a\.yaml: trials are compared by one score.*: None"):
        plan_sweep(config, tmp_path, Path("a.yaml"))


def test_a_stain_run_is_compared_by_the_distance_of_normalised_images(
    two_stains: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grey images are farther from those of the other stain than images left as they are."""
    assert STAIN.selection(StainRunConfig(), two_stains) is None, "a handful of validation images"
    monkeypatch.setattr(validation_distance, "FEWEST", 2)
    config = with_domains(two_stains, StainRunConfig(data=StreamConfig(image_size=32, threads=1)))
    selection = STAIN.selection(config, two_stains)
    assert selection is not None
    assert (selection.score, selection.higher_is_better) == ("kernel_distance", False)
    distance = StainDistance(two_stains, config, TINY_TYPES, Topology())
    same, grey = (distance.scores((network, network))["kernel_distance"] for network in (Painted(1.0), Painted(0.0)))
    assert grey > same > 0


class Painted(nn.Module):
    """Images of so much contrast."""

    def __init__(self, contrast: float) -> None:
        super().__init__()
        self.contrast = contrast

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.contrast * images
