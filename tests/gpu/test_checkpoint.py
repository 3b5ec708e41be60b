"""If these fail, a run that was begun on a GPU cannot be taken up on the CPU, or not again on a GPU."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from tests.benchmarks.gpu.parts import processes
from tests.gpu.algorithms import BUILD, start
from trainer.learners.choices import Precision
from trainer.learners.topology import join_processes
from trainer.loop.algorithm import Algorithm
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import read_records
from trainer.loop.progress import Progress, checkpoint_state, resume, saved_state
from trainer.runs import training
from trainer.tasks.classification.config import ClassifierRunConfig

pytestmark = pytest.mark.gpu

STEPS_OF_AN_EPOCH, EPOCHS = 3, 3


def settings_of(cells: Dataset, run: Path) -> ClassifierRunConfig:
    settings = [
        f"shards={cells.root}",
        f"run={run}",
        "model=senet_tiny_ge",
        *("data/augment=flip", "data.image_size=32", "data.threads=1", "data.deterministic=true"),
        *("train.global_batch=12", f"train.epochs={EPOCHS}", f"train.iterations_per_epoch={STEPS_OF_AN_EPOCH}"),
        *("train.checkpoint_every=1", "train.log_every=1", "train.precision=fp32"),
    ]
    return read_config(ClassifierRunConfig, "train_classifier", settings)


def train(config: ClassifierRunConfig, killed_after: int | None) -> None:
    """Train in this process; killed_after: the epoch whose end this process does not outlive."""
    epochs = 0

    def after_epoch(last: bool) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == killed_after:
            os.kill(os.getpid(), signal.SIGKILL)

    training.train(config, join_processes(), after_epoch)


def in_a_process(config: ClassifierRunConfig, killed_after: int | None) -> int | None:
    process = processes().Process(target=train, args=(config, killed_after))
    process.start()
    process.join()
    return process.exitcode


def test_a_run_that_was_killed_goes_on(cells: Dataset, run: Path) -> None:
    """SIGKILL after two epochs; then the third, and the report. Every step is logged once."""
    config = settings_of(cells, run)
    assert in_a_process(config, killed_after=2) == -signal.SIGKILL
    assert not (run / "report.html").exists()
    killed_at = CheckpointStore(run / "checkpoints").latest()
    assert killed_at is not None
    assert killed_at.step == 2 * STEPS_OF_AN_EPOCH
    assert in_a_process(config, killed_after=None) == 0
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, EPOCHS * STEPS_OF_AN_EPOCH + 1))
    assert steps[-1]["loss"] < 2 * steps[0]["loss"]
    assert (run / "report.html").exists()


@contextmanager
def joined(device: str) -> Iterator[Topology]:
    """This process as if it had begun on the device."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as environment:
        if device == "cpu":
            environment.setenv("ACCELERATE_USE_CPU", "true")
        yield join_processes()
    AcceleratorState._reset_state(reset_partial_state=True)


def state_of(algorithm: Algorithm) -> dict[str, Any]:
    """Weights and what the optimisers keep of them, on the CPU."""
    return {
        f"{name}.{kind}.{key}": value.detach().cpu()
        for name, learner in algorithm.learners.items()
        for kind, state in (("module", learner.module.state_dict()), ("optimizer", _moments(learner.state_dict())))
        for key, value in state.items()
    }


def _moments(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    found = state["optimizer"]["state"]
    return {f"{number}.{key}": value for number, kept in found.items() for key, value in kept.items()}


@pytest.mark.parametrize("name", ["classifier", "c_wgan_gp", "w_cyclegan_gp"])
def test_a_checkpoint_goes_from_the_gpu_to_the_cpu_and_back(name: str, device: torch.device, run: Path) -> None:
    """Weights and moments arrive as they were, whatever the precision there; each then takes a finite step."""
    assert name in BUILD
    on_gpu: Precision = "fp16" if device.type == "cuda" else "bf16"
    kept: dict[str, Any] = {}
    for number, (place, precision) in enumerate([(device.type, on_gpu), ("cpu", "fp32"), (device.type, on_gpu)]):
        with joined(place) as topology:
            running = start(name, precision, topology)
            progress = resume(running.algorithm, saved_state(run, {"run": name}, "another run=DIR"))
            assert progress.step == number
            found = state_of(running.algorithm)
            assert all(torch.equal(found[key], value) for key, value in kept.items())
            running.step()
            running.step()
            kept = state_of(running.algorithm)
            assert all(torch.isfinite(value).all() for value in kept.values())
            learners = {each: learner.state_dict() for each, learner in running.algorithm.learners.items()}
            saved = checkpoint_state(learners, running.algorithm.state_dict(), Progress(step=number + 1), {"run": name})
            CheckpointStore(run / "checkpoints").save(number + 1, saved, best=False)
