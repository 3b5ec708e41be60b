"""If these fail, a user waits six days for what the first minute could have told."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from tests.told_clock import Clock
from trainer.loop import forecast as module
from trainer.loop.forecast import DAY, Expectation, Forecast, span, try_out
from trainer.runs.training import train
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training import model_advice
from trainer.tasks.classification.training.model_advice import advise_model, trained_models


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def told(
    clock: Clock,
    seconds: Callable[[int], float],
    *,
    step: int = 0,
    scoring: float = 6.0,
    expectation: Expectation = Expectation(),
    may_end_early: bool = False,
) -> list[str]:
    """What a training of 20 epochs of 50 steps says. seconds: of each step, counted from 1."""
    lines: list[str] = []
    forecast = Forecast(
        expectation,
        step=step,
        total_steps=1000,
        epoch_steps=50,
        may_end_early=may_end_early,
        say=lines.append,
    )
    for number in range(step + 1, 1001):
        clock.now += seconds(number)
        forecast.step_done()
        if number % 50 == 0:
            clock.now += scoring
            forecast.epoch_done()
    return lines


def test_the_first_steps_tell_the_time_of_all_and_the_first_one_does_not_count(clock: Clock) -> None:
    (line,) = told(clock, lambda step: 9.0 if step == 1 else 0.5)
    assert line.startswith("this training takes 25 s an epoch, 8 min for 20 epochs, until ")
    assert "measured over 20 steps, without scoring" in line


def test_scoring_counts_as_soon_as_it_was_seen(clock: Clock) -> None:
    (line,) = told(clock, lambda step: 0.1)
    assert "takes 11 s an epoch" in line  # 50 steps and 6 s
    assert line.endswith("(measured over 100 steps)")


def test_a_resumed_training_counts_what_is_left_and_patience_makes_it_at_most(clock: Clock) -> None:
    (line,) = told(clock, lambda step: 1.0, step=900, may_end_early=True)
    assert "50 s an epoch, at most 89 s for what is left, 2 epochs, until" in line
    assert told(clock, lambda step: 1.0, step=1000) == []


def test_a_short_training_says_nothing(clock: Clock) -> None:
    assert told(clock, lambda step: 0.001, scoring=0.0) == []


def test_slow_steps_are_told_before_the_first_and_measured_after_it_with_one_advice(clock: Clock) -> None:
    def advice(seconds: float) -> str:
        assert seconds > DAY
        return "Take a smaller one"

    first, second = told(clock, lambda step: 130.0, expectation=Expectation(120.0, advice))
    assert "33 h for 20 epochs" in first
    assert "estimated from a trial" in first
    assert first.endswith(". Take a smaller one")
    assert "36 h for 20 epochs" in second
    assert "measured over 1 step, without scoring" in second
    assert "smaller" not in second
    assert "smaller" not in told(clock, lambda step: 130.0, step=900, expectation=Expectation(120.0, advice))[0]


def test_lengths_of_time_for_people() -> None:
    assert [span(seconds) for seconds in (3.25, 45, 600, 7200, 143 * 3600)] == [
        "3.2 s",
        "45 s",
        "10 min",
        "2.0 h",
        "143 h",
    ]


def test_a_trial_changes_neither_weights_nor_statistics_nor_random_numbers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    assert try_out(network, 8, 64) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert not network.training
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_advice_is_a_model_that_takes_a_day_with_the_key_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    models = dict(trained_models())
    assert "naive_bayes" not in models
    line = advise_model(models["senet154_ge"], 12, 224, 143 * 3600)
    assert "model=senet_small_ge would take about 9.4 h, by counted operations" in line
    assert "the same command resumes it from its newest checkpoint" in line
    # Where none fits at this size, small images do.
    few = [("senet154_ge", models["senet154_ge"]), ("senet_tiny_ge", models["senet_tiny_ge"])]
    monkeypatch.setattr(model_advice, "trained_models", lambda: iter(few))
    assert "model=senet_tiny_ge data.image_size=96" in advise_model(models["senet154_ge"], 12, 224, 14300 * 3600)


def test_a_real_training_says_what_it_takes(
    tiny_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(module, "_SLOW", 0.0)
    monkeypatch.setattr(module, "DAY", 0.0)
    settings = ("model=senet_tiny_ge", "data.image_size=32", "train.global_batch=24", "train.epochs=2")
    where = (f"shards={tiny_dataset.root}", f"run={tmp_path / 'run'}")
    config = read_config(ClassifierRunConfig, "train_classifier", [*where, *settings, "train.patience=5"])
    assert config.data == StreamConfig(image_size=32, augment=config.data.augment)
    train(config, Topology())
    log = capsys.readouterr().err
    assert "\r" not in log
    first, second = re.findall(r"this training takes .+", log)
    assert "estimated from a trial" in first
    assert "at most" in first
    assert "would take about" in first
    assert "measured over 1 step" in second
