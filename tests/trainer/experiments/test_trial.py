"""If these fail, a sweep imports torch for each trial, trains on against its scheduler, or loses what went wrong."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from launchers.console import read_config
from trainer.experiments import launch_server
from trainer.experiments.resources import Resources
from trainer.experiments.trial import PlannedTrial, read_ending, read_epochs, train_forked
from trainer.tasks.classification.config import ClassifierRunConfig

pytestmark = pytest.mark.timeout(900)

TINY = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.global_batch=12", "train.epochs=2")
# Imported first by every Python process: notes each process that imports torch.
COUNTING = """
import os, sys

class Counting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            with open(os.environ["IMPORTS_OF_TORCH"], "a") as file:
                file.write(f"{os.getpid()}\\n")

sys.meta_path.insert(0, Counting())
"""


@pytest.fixture
def trial_of(tiny_dataset: Dataset, tmp_path: Path) -> Callable[..., PlannedTrial]:
    def planned(name: str, *arguments: str) -> PlannedTrial:
        overrides = (*TINY, *arguments)
        told = [f"shards={tiny_dataset.root}", f"run={tmp_path / 'trials' / name}", *overrides]
        config = read_config(ClassifierRunConfig, "train_classifier", told)
        return PlannedTrial(name, "arm", "Arm", None, 0, {}, overrides, config, "hash")

    return planned


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each import of torch in a process that is started from now on."""
    folder = tmp_path / "counting"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IMPORTS_OF_TORCH", str(tmp_path / "imports"))
    return tmp_path / "imports"


def test_trials_share_one_import_and_wait_for_the_scheduler_after_each_epoch(
    trial_of: Callable[..., PlannedTrial], imports: Path
) -> None:
    for number in range(3):
        trial = trial_of(f"trial{number}", f"seed={number}")
        reported: list[dict[str, Any]] = []

        def report(scores: dict[str, Any], trial: PlannedTrial = trial, reported: Any = reported) -> None:
            reported.append(scores)
            # The next epoch has not begun, and its scorer has not ended the run, before this returns.
            assert len(read_epochs(trial.run)) == len(reported)
            assert (read_ending(trial.run) is None) == (len(reported) < 2)

        train_forked(trial, Resources(), report)
        assert [scores["epoch"] for scores in reported] == [1, 2]
        assert "validation_balanced_accuracy" in reported[0]
        ending = read_ending(trial.run)
        assert ending is not None
        assert (ending.status, ending.epochs) == ("finished", 2)
        assert (trial.run / "evaluation/metrics.json").exists()
    assert len(imports.read_text().splitlines()) == 1


def test_a_trial_that_is_stopped_ends_at_once_and_goes_on_from_its_checkpoint(
    trial_of: Callable[..., PlannedTrial],
) -> None:
    trial = trial_of("stopped")

    def stop(scores: dict[str, Any]) -> None:
        raise SystemExit  # as Ray Tune's report does

    with pytest.raises(SystemExit):
        train_forked(trial, Resources(), stop)
    first = read_epochs(trial.run)
    assert len(first) == 1
    assert read_ending(trial.run) is None
    (server,) = launch_server._idle
    reported: list[dict[str, Any]] = []
    train_forked(trial, Resources(), reported.append)
    assert [scores["epoch"] for scores in reported] == [2]
    assert read_epochs(trial.run)[:1] == first
    assert launch_server._idle == [server]


def test_what_goes_wrong_in_a_trial_reaches_who_runs_it(
    trial_of: Callable[..., PlannedTrial], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = trial_of("refused", "model=sequential_cnn", "data.image_size=3")
    with pytest.raises(UserError, match=r"set data\.image_size="):
        train_forked(refused, Resources(), print)
    broken = dataclasses.replace(trial_of("broken"), config=None)  # type: ignore[arg-type]  # a bug
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*AttributeError"):
        train_forked(broken, Resources(), print)

    def kill(scores: dict[str, Any]) -> None:
        (server,) = serving
        (child,) = Path(f"/proc/{server._process.pid}/task/{server._process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)

    serving: list[launch_server.LaunchServer] = list(launch_server._idle)
    with pytest.raises(RuntimeError, match="the process of killed ended with code -9"):
        train_forked(trial_of("killed"), Resources(), kill)
    assert launch_server._idle == serving
