"""If these fail, a run under DeepSpeed is another run, cannot be taken up elsewhere, or ignores what was launched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.conftest import Launch, Start
from tests.launching import ROOT, Launched
from tests.trainer.test_stain_training import DEPTH, final_state, joined
from tests.trainer.test_stain_training import TINY as TINY_STAIN
from tests.trainer.test_training import TINY, kill_when, losses
from trainer.learners.choices import EngineChoice
from trainer.learners.topology import join_processes, resolve_engine
from trainer.learners.zero_engine import _LossScale
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import read_records

USE, STAGE = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_DEEPSPEED_ZERO_STAGE"


ARGUMENTS = (
    "model=timm",
    "model.timm_name=test_efficientnet_gn",
    "train.epochs=2",
    "train.checkpoint_every=2",
    "optimizer.schedule=constant",
    "optimizer.warmup=0",
    "optimizer.clip_norm=0.5",
    "optimizer.layer_decay=0.5",
    "train.frozen_epochs=1",
    *TINY,
)


@pytest.mark.parametrize(
    ("engine", "between", "optimizer"),
    [("zero1", ("ddp", 2), ()), ("zero2", ("zero2", 1), ("optimizer.name=sgd", "optimizer.learning_rate=0.005"))],
)
def test_a_run_under_zero_goes_on_under_another_engine_and_on_another_number_of_processes(
    tiny_dataset: Dataset,
    launch: Launch,
    start: Start,
    tmp_path: Path,
    engine: str,
    between: tuple[str, int],
    optimizer: tuple[str, ...],
) -> None:
    """Killed twice; the part between on other terms, whose sums differ in their last bits.

    On fewer processes SGD in place of Adam, which divides noise by noise where gradients vanish. Several micro-batches
    to a step, gradient clipping at work, no dropout, a learning rate for each stage.
    """
    arguments = [f"shards={tiny_dataset.root}", *ARGUMENTS, *optimizer, "train.micro_batch=3"]
    undisturbed = launch("train_classifier", *arguments, "run=undisturbed", processes=2)
    assert undisturbed.returncode == 0, undisturbed.stderr
    run = tmp_path / "killed"
    store = CheckpointStore(run / "checkpoints")

    def saved(step: int) -> bool:
        checkpoint = store.latest()
        return checkpoint is not None and checkpoint.step >= step

    def begin(name: str, processes: int) -> Launched:
        return start("train_classifier", *arguments, "run=killed", f"train.engine={name}", processes=processes)

    kill_when(begin(engine, 2), lambda: saved(2))
    kill_when(begin(*between), lambda: saved(6))
    done = begin(engine, 2).finish()
    assert done.returncode == 0, done.stderr
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert min(record["gradient_norm"] for record in steps) > 0.5  # or nothing was clipped
    torch.testing.assert_close(losses(run), losses(tmp_path / "undisturbed"), rtol=1e-4, atol=1e-5)
    state, expected = (final_state(folder)["learners"]["classifier"] for folder in (run, tmp_path / "undisturbed"))
    torch.testing.assert_close(state, expected, rtol=1e-3, atol=1e-4)  # the optimiser's state with it, whole


def test_penalties_go_through_zero(two_stains: Dataset, launch: Launch, tmp_path: Path) -> None:
    """W-CycleGAN-GP, one step of plain descent under ZeRO-2: both learners move as in one process."""
    plain = [
        f"model.{learner}_optimizer.{setting}"
        for learner in ("generator", "critic")
        for setting in ("name=sgd", "momentum=0.0", "learning_rate=0.02", "schedule=constant")
    ]
    resting = [f"model.{learner}_optimizer.learning_rate=1e-12" for learner in ("generator", "critic")]
    for name, processes, more in (
        ("begun", 1, resting),
        ("alone", 1, []),
        ("zero2", 2, ["train.engine=zero2", "train.micro_batch=2"]),
    ):
        arguments = [f"shards={two_stains.root}", f"run={name}", *TINY_STAIN, DEPTH, "train.iterations_per_epoch=1"]
        done = launch("train_stain_gan", *arguments, *plain, *more, processes=processes)
        assert done.returncode == 0, done.stderr
    begun, alone, spread = (final_state(tmp_path / name) for name in ("begun", "alone", "zero2"))
    for learner in ("generators", "critics"):
        moved, expected = (joined(state, learner) - joined(begun, learner) for state in (spread, alone))
        assert expected.norm() > 0.001
        assert (moved - expected).norm() < 1e-4 * expected.norm()


def test_the_loss_scale_moves_as_torch_s_own() -> None:
    scale, torchs = _LossScale(), torch.amp.GradScaler("cpu")
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for overflowed in [True, True, *[False] * 2001, True, *[False] * 10]:
        torchs.scale(weight.sum() * (float("inf") if overflowed else 1.0)).backward()
        torchs.step(optimizer)
        torchs.update()
        optimizer.zero_grad()
        scale.update(overflowed=overflowed)
        assert scale.value == torchs.get_scale()
    taken_up = torch.amp.GradScaler("cpu")
    taken_up.load_state_dict(scale.state_dict())
    assert taken_up.state_dict() == torchs.state_dict()


@pytest.mark.parametrize(
    ("launched", "choice", "engine"),
    [({}, "auto", "ddp"), ({}, "zero1", "zero1"), ({USE: "true"}, "auto", "zero2"), ({STAGE: "1"}, "zero1", "zero1")],
)
def test_the_launch_decides_where_the_run_does_not(
    monkeypatch: pytest.MonkeyPatch, launched: dict[str, str], choice: EngineChoice, engine: str
) -> None:
    for name, value in {USE: "true", **launched}.items() if launched else ():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    join_processes()
    assert resolve_engine(choice) == engine


@pytest.mark.parametrize(
    ("launched", "choice", "says"),
    [
        ({STAGE: "3"}, "auto", "ZeRO stage 3: use 1 or 2"),
        ({STAGE: "1"}, "zero2", "ZeRO stage 1, the run for train.engine=zero2"),
        ({STAGE: "2"}, "ddp", "ZeRO stage 2, the run for train.engine=ddp"),
        ({STAGE: "2", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, "auto", "clipping is optimizer.clip_norm"),
        ({STAGE: "2", "ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, "auto", "deepspeed_config_file=ds.json"),
        ({STAGE: "1", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "auto", "learners stay on their device"),
    ],
)
def test_a_launch_that_contradicts_the_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, launched: dict[str, str], choice: EngineChoice, says: str
) -> None:
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=says.replace(".", r"\.")):
        resolve_engine(choice)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_accelerate_launches_the_engine_of_its_configuration(tiny_dataset: Dataset, tmp_path: Path, stage: int) -> None:
    """The user's command, with two processes on the CPU in place of four GPUs."""
    configuration = ROOT / f"configs/accelerate/deepspeed_zero{stage}.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(configuration)]
    arguments = [f"shards={tiny_dataset.root}", "run=run", "model=senet_tiny_ge", "train.epochs=1", *TINY]
    command = [*launcher, "--num_processes", "2", str(ROOT / "launchers/train_classifier.py"), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def launched(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], cwd=tmp_path, env=environment, capture_output=True, text=True)

    refused = launched("train.engine=ddp")
    assert refused.returncode != 0
    assert f"ZeRO stage {stage}, the run for train.engine=ddp" in refused.stderr
    done = launched()
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/report.html").exists()
