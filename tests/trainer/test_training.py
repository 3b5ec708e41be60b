"""If these fail, a run on more processes or after a power cut is another run."""

import functools
import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.catalog import Dataset
from tests.conftest import Launch, Start
from tests.launching import TIMEOUT, Launched
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import read_records

TINY = (
    "data.image_size=32",
    "data.threads=1",
    "train.global_batch=12",
    "train.log_every=1",
    "optimizer.average_decay=0.9",
)


def final_state(run: Path) -> dict[str, Any]:
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    assert checkpoint is not None
    return dict(checkpoint.load()["learners"]["classifier"])


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in read_records(run) if record["kind"] == "step"]


def test_equal_states_are_equal_files_whichever_process_saves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made by a checkpoint names its digest: a training done again would else be another data set's parent."""
    for process in (7, 12345):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        CheckpointStore(tmp_path / str(process)).save(1, {"weights": torch.arange(5.0)})
    first, second = ([path.name for path in (tmp_path / str(process)).iterdir()] for process in (7, 12345))
    assert first == second
    assert len(first) == 1


def test_a_state_that_was_read_is_written_as_it_was(tmp_path: Path) -> None:
    """Pickle refers back to a text that is the same object: what was read has other objects for equal texts."""
    state = {"progress": {"step": 3, "name": "step"}, "learners": {"step": torch.arange(5.0), "betas": (0.9, 0.99)}}
    first, second = CheckpointStore(tmp_path / "first"), CheckpointStore(tmp_path / "second")
    first.save(3, state)
    written = first.latest()
    assert written is not None
    read = written.load()
    second.save(3, {"progress": {**read["progress"], "step": 3}, "learners": read["learners"]})
    again = second.latest()
    assert again is not None
    assert again.digest == written.digest


def test_two_processes_train_to_the_weights_of_one(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """fp32, group normalisation in place of batch normalisation, no dropout; relative tolerance 1e-4."""
    arguments = [
        f"shards={tiny_dataset.root}",
        "model=timm",
        "model.timm_name=test_efficientnet_gn",
        "train.epochs=2",
        "optimizer.name=sgd",  # Adam divides noise by noise where a gradient is zero
        "optimizer.learning_rate=0.005",
        *TINY,
    ]
    for processes, micro in ((1, []), (2, []), (2, ["train.micro_batch=2"])):
        done = launch("train_classifier", *arguments, *micro, f"run=run-{processes}{len(micro)}", processes=processes)
        assert done.returncode == 0, done.stderr
    alone = final_state(tmp_path / "run-10")
    for name in ("run-20", "run-21"):
        torch.testing.assert_close(losses(tmp_path / name), losses(tmp_path / "run-10"), rtol=1e-4, atol=1e-5)
        for weights in ("module", "average"):
            torch.testing.assert_close(final_state(tmp_path / name)[weights], alone[weights], rtol=1e-4, atol=1e-5)


def kill_when(launched: Launched, condition: Callable[[], bool], deadline: float = TIMEOUT) -> None:
    """SIGKILL as soon as the condition holds."""
    launched.give_way()
    end = time.monotonic() + deadline
    while not condition():
        assert launched.running, "the run ended before it could be killed"
        assert time.monotonic() < end, "the run never came to where it was to be killed"
        time.sleep(0.001)
    launched.kill()


def test_a_killed_run_goes_on_to_the_same_bits(
    tiny_dataset: Dataset, launch: Launch, start: Start, tmp_path: Path
) -> None:
    """Killed twice within one epoch, then at an epoch's boundary; no step stands in the log twice."""
    arguments = [
        f"shards={tiny_dataset.root}",
        "model=senet_tiny_ge",
        "model.dropout=0.3",
        "train.epochs=4",
        "train.checkpoint_every=2",
        "optimizer.learning_rate=0.01",
        *TINY,
    ]
    undisturbed = launch("train_classifier", *arguments, "run=undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stderr
    epoch_steps = next(record["step"] for record in read_records(tmp_path / "undisturbed") if record["kind"] == "epoch")
    assert epoch_steps >= 5

    run = tmp_path / "killed"
    store = CheckpointStore(run / "checkpoints")

    def opened() -> int:
        """Changes when a process has cut the log and goes on with it."""
        log = run / "metrics.jsonl"
        return log.stat().st_ino if log.exists() else 0

    def logged(step: int, before: int) -> bool:
        return opened() != before and any(record["step"] >= step for record in read_records(run))

    def saved(step: int) -> bool:
        checkpoint = store.latest()
        return checkpoint is not None and checkpoint.step >= step

    within = epoch_steps + random.Random(0).randint(1, 3)
    for condition in (
        lambda before: logged(within, before),
        lambda before: logged(within + 1, before),
        lambda before: saved(2 * epoch_steps),
    ):
        log_before = opened()
        kill_when(start("train_classifier", *arguments, "run=killed"), functools.partial(condition, log_before))
    finished = launch("train_classifier", *arguments, "run=killed")
    assert finished.returncode == 0, finished.stderr

    expected, found = final_state(tmp_path / "undisturbed"), final_state(run)
    for weights in ("module", "average"):
        assert all(torch.equal(found[weights][name], value) for name, value in expected[weights].items())
    assert losses(run) == losses(tmp_path / "undisturbed")
    steps = [(record["kind"], record["step"]) for record in read_records(run)]
    assert len(steps) == len(set(steps))
    scores = [
        json.loads((tmp_path / name / "evaluation/metrics.json").read_text()) for name in ("undisturbed", "killed")
    ]
    assert scores[0]["scores"] == scores[1]["scores"]
    assert all(record["step"] <= later["step"] for record, later in itertools.pairwise(read_records(run)))


def test_a_finished_run_is_not_trained_again(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    arguments = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "train.epochs=1", "run=once", *TINY]
    assert launch("train_classifier", *arguments).returncode == 0
    records = read_records(tmp_path / "once")
    again = launch("train_classifier", *arguments)
    assert again.returncode == 0
    assert read_records(tmp_path / "once") == records
    assert again.stdout.strip().splitlines()[-1] == str(tmp_path / "once" / "report.html")


def test_a_run_begins_with_the_weights_of_another(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    arguments = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "train.epochs=1", *TINY]
    assert launch("train_classifier", *arguments, "run=first").returncode == 0
    done = launch("train_classifier", *arguments, "run=second", "model.weights=first", "optimizer.learning_rate=1e-12")
    assert done.returncode == 0, done.stderr
    first, second = (final_state(tmp_path / name) for name in ("first", "second"))
    name = next(name for name, value in first["average"].items() if value.ndim == 4)
    torch.testing.assert_close(second["module"][name], first["average"][name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("damage", ["cut short", "another model", "other settings"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, damage: str
) -> None:
    arguments = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "train.epochs=1", "run=run", *TINY]
    assert launch("train_classifier", *arguments).returncode == 0
    checkpoint = CheckpointStore(tmp_path / "run/checkpoints").latest()
    assert checkpoint is not None
    if damage == "cut short":
        content = checkpoint.path.read_bytes()
        checkpoint.path.write_bytes(content[: len(content) // 2])
        refused, message = launch("train_classifier", *arguments), "checkpoint is damaged"
    elif damage == "another model":
        settings = tmp_path / "run/config.yaml"
        changed = settings.read_text().replace("widths:\n  - 32", "widths:\n  - 40")
        settings.write_text(changed.partition("checksum: ")[0])
        refused, message = launch("evaluate", "run=run"), "checkpoint of another model"
    else:
        refused = launch("train_classifier", *arguments, "optimizer.learning_rate=0.5")
        message = "optimizer.learning_rate was 0.001, is now 0.5"
    assert refused.returncode == 2, refused.stderr
    assert message in refused.stderr.strip().splitlines()[-1]
    assert "Traceback" not in refused.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_names_its_batch(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    done = launch(
        "train_classifier",
        f"shards={tiny_dataset.root}",
        "model=timm",
        "model.timm_name=test_efficientnet_gn",
        "optimizer.name=sgd",
        "optimizer.learning_rate=1e30",
        "optimizer.clip_norm=null",
        "optimizer.warmup=0.0",
        "train.epochs=3",
        "run=run",
        *TINY,
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "the loss is not finite since step" in line
    noted = json.loads((tmp_path / "run/non_finite_batch.json").read_text())
    assert noted["step"] <= 4
    assert len(noted["ids"]) == 12
    assert noted["ids"][0] in line
    assert set(noted["ids"]) <= set(tiny_dataset.samples(splits=["train"])["id"])
