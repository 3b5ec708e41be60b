"""If these fail, a night of training is done twice, or another's result is taken for one's own."""

import contextlib
import dataclasses
import fcntl
import importlib.util
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from launchers.console import read_config
from trainer.experiments import launch_server, stages
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.experiments.resources import Resources
from trainer.experiments.stages import Inputs, Stage, describe, in_order, run_stage
from trainer.runs.arguments import later_wins
from trainer.tasks.stain.normalization_config import NormalizeConfig

# Launchers that import torch from scratch take their time on a busy machine.
pytestmark = pytest.mark.timeout(900)

ONE, TWO = Resources(), Resources(cpu=2, workers=2)
# A launcher that prints how it was started.
_TELLING = """
import atexit, os, sys
atexit.register(print, "at exit")
print(__name__, sys.argv, sys.path[0], sys.executable, os.getcwd(), os.path.samefile(0, os.devnull))
print({name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "ACCELERATE_USE_CPU", "VALUE")})
if "fail=true" in sys.argv:
    raise ArithmeticError("a bug")
if "leave=true" in sys.argv:
    sys.exit("told, and left")
"""
_CONTEXT = multiprocessing.get_context("forkserver")
REINHARD = ("method=reinhard", "a=giemsa", "b=violet", "image_size=32")
CLASSIFIER = (
    "model=senet_tiny_ge",
    "data.image_size=32",
    "data.threads=1",
    "train.global_batch=8",
    "train.epochs=12",
    "train.iterations_per_epoch=2",
    "train.checkpoint_every=1",
    "train.log_every=1",
)


@dataclasses.dataclass(frozen=True)
class Number:
    """Settings of a launcher of the test's own."""

    number: int = 0


NONE = Number()


def stage_of(name: str, launcher: str, arguments: tuple[str, ...], inputs: Inputs, output: str) -> Stage:
    settings = read_config(LAUNCHER_CONFIGS[launcher], launcher, later_wins(arguments))
    return Stage(name, launcher, arguments, inputs, output, settings)


def normalized(shards: Path | Stage, *arguments: str, name: str = "normalized data") -> Stage:
    return stage_of(name, "normalize_stains", (*REINHARD, *arguments), {"shards": shards}, "out")


def bank(shards: Path | Stage, *arguments: str, name: str = "cells") -> Stage:
    run = stage_of("cell GAN", "train_conditional_gan", arguments, {"shards": shards}, "run")
    return stage_of(name, "synthesize", ("count=3",), {"run": run}, "bank")


def filled(shards: Path | Stage, *banks: Stage) -> Stage:
    return stage_of("filled data", "balance", ("per_type=9",), {"shards": shards, "banks": banks}, "out")


@pytest.fixture
def raw_table(two_stains: Dataset) -> Path:
    """The table that `two_stains` was built from."""
    return two_stains.root.parent / "raw/images.csv"


@pytest.fixture
def built(raw_table: Path) -> Stage:
    """A stage that needs no network and so starts quickly."""
    arguments = (f"table={raw_table}", "name=phantom", "domain=phantom", "workers=1")
    return Stage("built data", "build_shards", arguments, {}, "shards", NONE)


def start(stage: Stage, root: Path) -> BaseProcess:
    """`run_stage` in a process of its own."""
    process = _CONTEXT.Process(target=run_stage, args=(stage, root, ONE))
    process.start()
    return process


def wait_until(condition: Callable[[], bool], deadline: float = 500) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def log_of(stage: Stage, root: Path) -> str:
    return stage.folder(root).with_suffix(".log").read_text()


def launches(stage: Stage, root: Path) -> int:
    return sum(line.startswith("$ ") for line in log_of(stage, root).splitlines())


def test_the_hash_changes_with_what_decides_the_result_and_with_nothing_else(
    two_stains: Dataset, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    stage, training = normalized(two_stains.root), ("model.generator.width=4", "train.epochs=2")
    moved = shutil.copytree(two_stains.root, tmp_path / "moved")
    for same in (
        normalized(moved),
        normalized(two_stains.root, "batch=3", name="another name"),
    ):
        assert same == stage
        assert len({same, stage}) == 1
    whole = filled(stage, bank(stage, *training))
    free = ("data.threads=1", "train.micro_batch=2", "samples_per_type=1", "train.log_every=1")
    assert filled(normalized(moved), bank(normalized(moved), *free, *reversed(training))) == whole
    others = [
        stage,
        normalized(tiny_dataset.root),
        normalized(two_stains.root, "policy=to_b"),
        dataclasses.replace(stage, launcher="synthesize"),
        dataclasses.replace(stage, output="shards"),
        dataclasses.replace(stage, inputs={"run": two_stains.root}),
        whole,
        filled(stage, bank(stage, *training, "train.global_batch=8")),
        filled(stage, bank(two_stains.root, *training)),
        filled(stage, bank(stage, *training), bank(stage)),
        filled(stage, bank(stage), bank(stage, *training)),
        # Within one section the later argument has the last word.
        bank(stage, "data.crop.giemsa=0.6", "data.crop.giemsa=0.5"),
        bank(stage, "data.crop.giemsa=0.5", "data.crop.giemsa=0.6"),
    ]
    assert len({each.content_hash for each in others}) == len(others)
    with pytest.raises(UserError, match="no data set here"):
        _ = normalized(tmp_path / "nowhere").content_hash


def test_a_command_says_the_same_to_a_launcher_wherever_the_folders_lie(two_stains: Dataset, tmp_path: Path) -> None:
    root = tmp_path / 'Größe 2, [new] "x"\'s'
    stage = normalized(two_stains.root)
    whole = filled(stage, bank(stage, name="cells of both"), bank(two_stains.root))
    command = shlex.split(shlex.join(whole.command(root, ONE)))
    assert Path(command[1]).name == "balance.py"
    config = read_config(BalanceConfig, "balance", command[2:])
    assert [Path(folder) for folder in config.banks] == [each.folder(root) for each in whole.needs[1:]]
    assert (Path(str(config.shards)), Path(str(config.out))) == (stage.folder(root), whole.folder(root))
    assert config.banks[0].startswith(f"{root}/cells-of-both-")
    config = read_config(NormalizeConfig, "normalize_stains", stage.command(root, ONE)[2:])
    assert (config.shards, config.out) == (str(two_stains.root), str(stage.folder(root)))


def test_stages_come_in_order_each_once(two_stains: Dataset, tmp_path: Path) -> None:
    stage = normalized(two_stains.root)
    again = normalized(two_stains.root)
    whole = filled(stage, bank(again), bank(again, "train.epochs=2"))
    ordered = in_order([whole, stage, filled(stage, bank(stage))])
    assert len(ordered) == len(set(ordered)) == 7
    assert all(ordered.index(needed) < place for place, each in enumerate(ordered) for needed in each.needs)
    lines = describe([whole], tmp_path, ONE)
    assert lines[0] == "1. normalized data (to run)"
    assert lines[1::2] == [
        f"   cd {shlex.quote(os.getcwd())} && OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true "
        f"{shlex.join(each.command(tmp_path, ONE))}"
        for each in in_order([whole])
    ]
    # Nothing is made again for what is done already.
    normalized_first = next(each for each in ordered if each.name == "normalized data")
    folder = normalized_first.folder(tmp_path)
    folder.mkdir()
    folder.with_name(f"{folder.name}.done.json").touch()
    assert in_order([whole], tmp_path) == in_order([whole])[1:]
    with pytest.raises(ValueError, match="'normalized data' and 'Reinhard' are one stage under two names"):
        in_order([normalized(two_stains.root, name="Reinhard"), normalized(two_stains.root)])


def test_two_who_want_one_stage_at_once_run_it_once(built: Stage, tmp_path: Path) -> None:
    processes = [start(built, tmp_path / "stages") for _ in range(2)]
    for process in processes:
        process.join(500)
        assert process.exitcode == 0
    root = tmp_path / "stages"
    assert built.done(root)
    assert launches(built, root) == 1
    assert len(Dataset.open(built.folder(root)).samples()) == 120
    marker = json.loads(built.folder(root).with_suffix(".done.json").read_text())
    assert marker == {
        "name": "built data",
        "content_hash": built.content_hash,
        "command": ONE.shell_line(built.command(root, ONE)),
    }
    assert run_stage(built, root, ONE) == built.folder(root)
    assert launches(built, root) == 1
    shutil.rmtree(built.folder(root))
    assert not built.done(root)
    run_stage(built, root, ONE)
    assert launches(built, root) == 2


def test_what_a_launcher_refuses_and_what_it_fails_of_are_told_apart(built: Stage, tmp_path: Path) -> None:
    mistaken = dataclasses.replace(built, arguments=("table=nowhere.csv", "name=phantom", "domain=phantom"))
    with pytest.raises(UserError, match=r"^built data: build_shards\.py: .*nowhere\.csv.*\(.*\.log\)$"):
        run_stage(mistaken, tmp_path, ONE)
    assert not mistaken.done(tmp_path)
    # No refusal, though the exit code is Python's own 2.
    on_gpu = Resources(gpu=1)  # in a process that was started anew
    with pytest.raises(RuntimeError, match=r"(?s)built data: none\.py ended with code 2; .*can't open file"):
        run_stage(dataclasses.replace(built, launcher="none"), tmp_path, on_gpu)
    waiting = normalized(built)
    with pytest.raises(ValueError, match="normalized data reads what built data writes, which is not done"):
        run_stage(waiting, tmp_path, ONE)
    with pytest.raises(UserError, match=r"^built data: build_shards\.py: .*nowhere\.csv"):
        run_stage(mistaken, tmp_path, TWO)


@pytest.fixture
def launchers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for launchers of the test's own, as stages find them."""
    folder = tmp_path / "launchers"
    folder.mkdir()
    monkeypatch.setattr(stages, "LAUNCHERS", folder)
    return folder


def printed(stage: Stage, root: Path) -> list[str]:
    """The lines of the last launch, without those that say where in a file an exception was raised."""
    _, _, text = log_of(stage, root).rpartition("$ ")
    return without_frames(text.splitlines()[1:])


def without_frames(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("  ")]


@pytest.mark.parametrize("ending", ["end=true", "fail=true", "leave=true"])
def test_a_launcher_is_started_as_by_hand(
    launchers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    (launchers / "telling.py").write_text(_TELLING)
    stage, root = Stage("telling", "telling", (ending, "name=Größe 2"), {}, None, NONE), tmp_path / "stages"
    for number in range(2):  # the second time from another folder, in another environment
        monkeypatch.setenv("VALUE", str(number))
        monkeypatch.chdir(launchers if number else tmp_path)
        by_hand = subprocess.run(
            stage.command(root, ONE),
            env={**os.environ, **ONE.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with pytest.raises(RuntimeError, match="code 1;") if by_hand.returncode else contextlib.nullcontext():
            run_stage(stage, root, ONE)
        assert printed(stage, root) == without_frames(by_hand.stdout.splitlines())
        assert "at exit" in printed(stage, root)
        stage.folder(root).with_suffix(".done.json").unlink(missing_ok=True)


def test_stages_share_what_was_imported_and_nothing_else(launchers: Path, tmp_path: Path) -> None:
    (launchers / "balance.py").write_text("import sys; print('data_pipeline.banks.balance' in sys.modules)")
    (launchers / "marking.py").write_text("import sys; print(hasattr(sys, 'mark')); sys.mark = 1")
    balancing = Stage("balancing", "balance", (), {}, None, NONE)
    marking = [Stage("marking", "marking", (f"number={number}",), {}, None, Number(number)) for number in range(2)]
    for stage in (balancing, *marking):
        run_stage(stage, tmp_path, ONE)
    assert [printed(stage, tmp_path) for stage in (balancing, *marking)] == [["True"], ["False"], ["False"]]


def test_what_a_launcher_imports_is_known() -> None:
    for name, modules in launch_server.IMPORTED.items():
        assert (stages.LAUNCHERS / f"{name}.py").is_file() or importlib.util.find_spec(name) is not None
        assert all(importlib.util.find_spec(module) is not None for module in modules)


def run_in(launchers: Path, stage: Stage, root: Path) -> None:
    stages.LAUNCHERS = launchers
    with contextlib.suppress(RuntimeError):
        run_stage(stage, root, ONE)


def test_a_launcher_ends_with_its_runner_its_server_or_alone(launchers: Path, tmp_path: Path) -> None:
    """Whichever is killed: the lock is free when the launcher is gone, and the stage is not done."""
    (launchers / "sleeping.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    stage = Stage("sleeping", "sleeping", (), {}, None, NONE)

    for killed in ("runner", "server", "launcher"):
        root = tmp_path / killed
        log = stage.folder(root).with_suffix(".log")
        runner = _CONTEXT.Process(target=run_in, args=(launchers, stage, root))
        runner.start()
        wait_until(lambda log=log: log.exists() and log.read_text().count("\n") == 2)
        launcher = int(printed(stage, root)[0])
        server = int(Path(f"/proc/{launcher}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill({"runner": runner.pid, "server": server, "launcher": launcher}[killed], signal.SIGKILL)
        with log.with_suffix(".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        wait_until(lambda launcher=launcher: not Path(f"/proc/{launcher}").exists(), 60)
        runner.join(60)
        assert runner.exitcode == (-signal.SIGKILL if killed == "runner" else 0)
        assert not stage.done(root)


@pytest.mark.slow
def test_two_processes_on_the_cpu_work_on_one_stage(two_stains: Dataset, tmp_path: Path) -> None:
    stage = normalized(two_stains.root)
    derived = Dataset.open(run_stage(stage, tmp_path, TWO))
    assert derived.samples()["origin"].value_counts().to_dict() == {"real": 60, "normalized": 60}
    assert "--nproc-per-node=2" in log_of(stage, tmp_path)


@pytest.mark.slow
def test_a_stage_whose_runner_was_killed_goes_on_where_it_stopped(two_stains: Dataset, tmp_path: Path) -> None:
    """SIGKILL to the runner ends the launcher too; the second run has the records of the first."""
    stage = stage_of("classifier", "train_classifier", CLASSIFIER, {"shards": two_stains.root}, "run")
    records = stage.folder(tmp_path) / "metrics.jsonl"
    runner = start(stage, tmp_path)
    wait_until(lambda: records.exists() and len(records.read_text().splitlines()) > 6)
    runner.kill()
    runner.join()
    with stage.folder(tmp_path).with_suffix(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the launcher is gone as well
    before = records.read_text().splitlines()
    assert len(before) < 36  # 24 steps and 12 epochs
    assert not stage.done(tmp_path)
    run_stage(stage, tmp_path, ONE)
    assert stage.done(tmp_path)
    assert launches(stage, tmp_path) == 2
    # They tell the speed of the first launch, which the second cannot have had.
    assert records.read_text().splitlines()[:5] == before[:5]
    assert (stage.folder(tmp_path) / "evaluation/metrics.json").exists()
