"""If these fail, a sweep that was cut off loses or repeats trainings, or its printed commands give other scores."""

import contextlib
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from data_pipeline.catalog import Dataset
from tests.conftest import Launch, Start
from tests.launchers.test_launchers import assert_refused
from tests.launching import ROOT, Finished, Launched
from tests.trainer import test_conditional_training, test_stain_training
from trainer.experiments.trial import forget_ending, read_ending, read_epochs, write_ending

# In fp32: workers of a cluster know nothing of what `auto` is in tests.
TINY = ["model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.precision=fp32", "train.global_batch=12"]
TINY += ["train.epochs=2"]
RATES = [0.004, 0.001]
NAMES = ["point0-seed0", "point1-seed0"]

Environment = dict[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Environment]:
    """A local Ray of two cores; what a process needs in its environment to join it."""
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
        yield joining(ray.get_runtime_context().gcs_address)


def joining(address: str) -> Environment:
    return {"RAY_ADDRESS": address, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}


def sweep_file(folder: Path, **content: Any) -> str:
    path = folder / "sweep.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"seeds": [0], "fixed": TINY, **content}))
    return f"sweep={path}"


def sweep_of(folder: Path, dataset: Dataset, rates: Sequence[float] = RATES) -> tuple[str, ...]:
    """The arguments of a sweep of a trial for each learning rate."""
    file = sweep_file(folder, kind="search", space={"optimizer.learning_rate": {"grid_search": list(rates)}})
    return (file, f"shards={dataset.root}")


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "trials.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def answers(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "evaluation/metrics.parquet")


def written_when(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}


def commands(done: Finished) -> list[str]:
    return [line.strip() for line in done.stdout.splitlines() if "train_classifier.py" in line]


@dataclass(frozen=True)
class Resumed:
    """A sweep of two trials whose launcher was killed when the first had ended, and started again.

    first: when the first trial's files were written, as they stood at the kill. done: the second launch.
    """

    arguments: tuple[str, ...]
    out: Path
    first: dict[str, int]
    done: Finished


@pytest.fixture(scope="module")
def resumed(cluster: Environment, tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    folder = tmp_path_factory.mktemp("resumed")
    arguments = (*sweep_of(folder, tiny_dataset), f"out={folder / 'out'}", "max_concurrent_trials=1")
    driver, out = Launched(folder, "ablate", arguments, 1, cluster), folder / "out"
    while not lines(out):
        assert driver.running, driver.finish().stderr
        time.sleep(0.1)
    driver.kill()
    first = written_when(out / "trials" / NAMES[0])
    return Resumed(arguments, out, first, Launched(folder, "ablate", arguments, 1, cluster).finish())


def test_a_killed_sweep_goes_on_and_repeats_nothing(resumed: Resumed) -> None:
    assert resumed.done.returncode == 0, resumed.done.stderr
    assert written_when(resumed.out / "trials" / NAMES[0]) == resumed.first
    assert [line["trial"] for line in lines(resumed.out)] == NAMES
    # A third time there is nothing to do.
    before = written_when(resumed.out / "trials")
    folder, nowhere = resumed.out.parent, {"RAY_ADDRESS": "127.0.0.1:1"}
    assert Launched(folder, "ablate", resumed.arguments, 1, nowhere).finish().returncode == 0
    assert written_when(resumed.out / "trials") == before


def test_a_sweep_leaves_trials_a_table_and_a_report(resumed: Resumed, tiny_dataset: Dataset) -> None:
    out = resumed.out
    content = json.loads((out / "sweep.json").read_text())
    assert (content["kind"], content["reference"], content["mode"]) == ("search", None, "max")
    for line, rate, command in zip(lines(out), RATES, commands(resumed.done), strict=True):
        assert line["parameters"] == {"optimizer.learning_rate": rate}
        assert (line["status"], line["epochs"], line["command"]) == ("finished", 2, command)
        assert line["dataset_hash"] == tiny_dataset.content_hash
        assert line["seconds"] > 0
        assert len(answers(out / line["run"])) == len(tiny_dataset.samples(splits=["test"]))
    assert resumed.done.stdout.splitlines()[-2:] == [str(out / "table.csv"), str(out / "report.html")]
    assert (out / "table.csv").exists()
    assert "<html" in (out / "report.html").read_text()


@pytest.mark.parametrize("number", [0, 1])
def test_a_printed_command_gives_the_same_answers(resumed: Resumed, launch: Launch, number: int) -> None:
    """As a shell would take it apart, in another folder, undisturbed."""
    words = shlex.split(commands(resumed.done)[number])
    start = words.index(sys.executable)
    assert words[:3] == ["cd", str(resumed.out.parent), "&&"]
    assert Path(words[start + 1]) == ROOT / "launchers/train_classifier.py"
    environment = dict(word.split("=") for word in words[3:start])
    assert launch("train_classifier", *words[start + 2 :], **environment).returncode == 0
    replay, trial = (resumed.out / folder / NAMES[number] for folder in ("replays", "trials"))
    pd.testing.assert_frame_equal(answers(replay), answers(trial))


@pytest.mark.slow
def test_more_seeds_are_trained_beside_what_is_there_and_a_removed_trial_again(
    resumed: Resumed, cluster: Environment, launch: Launch, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(resumed.out, tmp_path / "out"))
    shutil.rmtree(out / "trials" / NAMES[1])
    before = written_when(out / "trials" / NAMES[0])
    arguments = [argument for argument in resumed.arguments if not argument.startswith("out=")]
    again = launch("ablate", *arguments, f"out={out}", **cluster)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(answers(out / "trials" / NAMES[1]), answers(resumed.out / "trials" / NAMES[1]))
    more = launch("ablate", *arguments, f"out={out}", "seeds=[0,3]", **cluster)
    assert more.returncode == 0, more.stderr
    assert sorted(line["trial"] for line in lines(out)) == [*NAMES[:1], "point0-seed3", *NAMES[1:], "point1-seed3"]
    assert written_when(out / "trials" / NAMES[0]) == before
    fewer = launch("ablate", *arguments, f"out={out}", "seeds=[0]", RAY_ADDRESS="127.0.0.1:1")
    assert fewer.returncode == 0, fewer.stderr
    summary = json.loads((out / "results.json").read_text())
    assert [trial["trial"] for trial in summary["trials"]] == NAMES
    assert summary["unfinished"] == summary["not_begun"] == []


@pytest.mark.slow
def test_an_undisturbed_sweep_gives_the_same_answers(
    resumed: Resumed, cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """Its trials side by side."""
    done = launch("ablate", *sweep_of(tmp_path, tiny_dataset), "out=out", **cluster)
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        ours, theirs = (folder / "trials" / name for folder in (resumed.out, tmp_path / "out"))
        pd.testing.assert_frame_equal(answers(ours), answers(theirs))


def test_a_mistake_is_one_line_before_anything_is_written(
    resumed: Resumed, cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    out = resumed.out
    file, shards = sweep_of(tmp_path, tiny_dataset)
    done = launch("ablate", file, shards, "out=out", "resources_per_trial.gpu=1", **cluster)
    assert_refused(done, "1 GPU", "0 GPU on 1 node")
    done = launch("ablate", file, shards, "out=out", "resources_per_trial.gpu=3", **cluster)
    assert_refused(done, "gpu=3", "one GPU")
    assert_refused(launch("ablate", file, shards, f"out={out}", "seeds=[1]"), str(out), "another sweep", "seeds was")
    other = ("ablate", file, shards, f"out={out}", "fixed=[model=senet_tiny_ge]", "seeds=[0,1]")
    assert_refused(launch(*other), str(out), "another sweep", "fixed was")
    assert_refused(launch("ablate", file, shards, "out=out", RAY_ADDRESS="127.0.0.1:1"), "127.0.0.1:1", "ray stop")
    assert_refused(launch("ablate", file, shards), "out=DIR")
    file = sweep_file(tmp_path, kind="search", space={"optimizer.speed": {"grid_search": [1]}})
    assert_refused(
        launch("ablate", file, f"shards={tiny_dataset.root}", "out=out"), file.removeprefix("sweep="), "speed"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_trial_that_fails_is_one_line_and_the_others_go_on(
    cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """A plain CNN has no room in 3 px."""
    fixed = ["model=sequential_cnn", *TINY[2:]]
    file = sweep_file(tmp_path, kind="search", space={"data.image_size": {"grid_search": [3, 32]}}, fixed=fixed)
    arguments = (file, f"shards={tiny_dataset.root}", "out=out")
    finished = []
    for _ in range(2):  # the failed one is tried again, the finished one is not
        done = launch("ablate", *arguments, **cluster)
        assert_refused(done, "1 of 2 trials failed", "point0-seed0", "set data.image_size=")
        statuses = {line["trial"]: line["status"] for line in lines(tmp_path / "out")}
        assert statuses == {"point0-seed0": "failed", "point1-seed0": "finished"}
        assert (tmp_path / "out/report.html").exists()
        finished.append(written_when(tmp_path / "out/trials/point1-seed0"))
    assert finished[0] == finished[1]


@pytest.mark.slow
def test_a_search_gives_up_what_falls_behind(
    cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    file = sweep_file(
        tmp_path,
        kind="search",
        fixed=[*TINY[:-1], "train.epochs=6"],
        space={"optimizer.learning_rate": {"grid_search": [0.004, 0.0000001]}},
        scheduler="asha",
        reduction=2,
        max_concurrent_trials=1,
    )
    out = tmp_path / "out"
    done = launch("ablate", file, f"shards={tiny_dataset.root}", "out=out", **cluster)
    assert done.returncode == 0, done.stderr
    finished, stopped = lines(out)
    assert (finished["status"], finished["epochs"]) == ("finished", 6)
    assert stopped["status"] == "stopped"
    assert stopped["epochs"] < 6
    assert list((out / stopped["run"] / "checkpoints").glob("step-*.pt"))
    assert not (out / stopped["run"] / "evaluation").exists()
    log = out / stopped["run"] / "metrics.jsonl"
    before = log.read_text()
    time.sleep(3)
    assert log.read_text() == before
    assert launch("ablate", file, f"shards={tiny_dataset.root}", "out=out").returncode == 0
    assert lines(out)[1] == stopped
    # A trial alone would go on: it is held against what ended before this launch.
    shutil.rmtree(out / stopped["run"])
    assert launch("ablate", file, f"shards={tiny_dataset.root}", "out=out", **cluster).returncode == 0
    assert lines(out)[0] == finished
    assert (lines(out)[1]["status"], lines(out)[1]["epochs"]) == ("stopped", stopped["epochs"])


@pytest.mark.slow
def test_a_killed_search_of_generators_goes_on_and_gives_up_what_falls_behind(
    cluster: Environment, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """Two settings one after the other; the second is held against the first, which ended before the kill."""
    # In a few steps a generator that moves goes further from the cells than one that hardly does.
    name, values = "model.generator_optimizer.learning_rate", [0.0000001, 0.002]
    file = sweep_file(
        tmp_path,
        kind="search",
        launcher="train_conditional_gan",
        fixed=[*test_conditional_training.TINY, "train.epochs=4"],
        space={name: {"grid_search": values}},
        scheduler="asha",
        reduction=2,
        max_concurrent_trials=1,
    )
    arguments, out = (file, f"shards={tiny_dataset.root}", "out=out"), tmp_path / "out"
    driver = Launched(tmp_path, "ablate", arguments, 1, cluster)
    while not lines(out):
        assert driver.running, driver.finish().stderr
        time.sleep(0.1)
    driver.kill()
    first = written_when(out / "trials" / NAMES[0])
    done = Launched(tmp_path, "ablate", arguments, 1, cluster).finish()
    assert done.returncode == 0, done.stderr
    assert written_when(out / "trials" / NAMES[0]) == first
    finished, other = lines(out)
    assert (finished["status"], finished["epochs"]) == ("finished", 4)
    curves = [
        [record["validation_kernel_distance"] for record in read_epochs(out / line["run"])]
        for line in (finished, other)
    ]
    behind = [rung for rung in (1, 2) if len(curves[1]) >= rung and curves[1][rung - 1] > curves[0][rung - 1]]
    assert (other["status"], other["epochs"]) == ("stopped", behind[0])
    assert "kernel distance" in (out / "report.html").read_text()
    assert json.loads((out / "results.json").read_text())["points"][0]["parameters"] == {name: values[0]}


@pytest.mark.slow
def test_a_trial_of_two_workers_and_its_printed_command_give_the_same_answers(
    cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """The command by a shell, in another folder."""
    arguments = (*sweep_of(tmp_path, tiny_dataset, RATES[:1]), "out=out")
    done = launch("ablate", *arguments, "resources_per_trial={cpu: 2, workers: 2}", **cluster)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    (line,) = lines(out)
    assert (line["status"], line["epochs"]) == ("finished", 2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(line["command"], shell=True, cwd=elsewhere, check=True, capture_output=True)
    pd.testing.assert_frame_equal(answers(out / "replays/point0-seed0"), answers(out / line["run"]))


def test_who_ends_a_trial_first_has_the_last_word(tmp_path: Path) -> None:
    """The driver that gives a trial up may not see yet, over a network, that it has finished."""
    run = tmp_path / "trials/full-seed0"
    assert write_ending(run, "finished").status == "finished"
    assert write_ending(run, "stopped", "too late").status == "finished"
    assert read_ending(run) == write_ending(run, "failed")
    assert [path.name for path in run.parent.iterdir()] == ["full-seed0.ended.json"]
    forget_ending(run)
    assert write_ending(run, "failed", "why").line == "why"


@pytest.mark.slow
def test_relative_paths_are_from_where_the_sweep_was_started(
    resumed: Resumed, cluster: Environment, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """Ray has its processes in folders of their own, a shell stands anywhere."""
    shutil.copytree(resumed.out / "trials" / NAMES[0], tmp_path / "before")
    file = sweep_file(
        tmp_path, kind="search", fixed=[*TINY, "model.weights=before"], space={"train.epochs": {"grid_search": [1]}}
    )
    done = launch("ablate", file, f"shards={tiny_dataset.root}", "out=out", **cluster)
    assert done.returncode == 0, done.stderr
    (line,) = lines(tmp_path / "out")
    subprocess.run(line["command"], shell=True, cwd="/", check=True, capture_output=True)
    out = tmp_path / "out"
    pd.testing.assert_frame_equal(answers(out / "replays/point0-seed0"), answers(out / line["run"]))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_machines_join_with_the_head_s_token_alone(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """As configs/ray/cluster.sh starts them; who has no token is told so in one line."""
    home = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "HOME": home, "RAY_TMPDIR": home, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    script = ["bash", str(ROOT / "configs/ray/cluster.sh")]
    try:
        subprocess.run([*script, "head"], env=environment, check=True, capture_output=True)
        assert (Path(home) / ".ray/auth_token").read_text()
        address = {"RAY_ADDRESS": "127.0.0.1:6379", "HOME": home, "RAY_TMPDIR": home}
        arguments = (*sweep_of(tmp_path, tiny_dataset, RATES[:1]), "out=out")
        done = launch("ablate", *arguments, RAY_AUTH_MODE="token", **address)
        assert done.returncode == 0, done.stderr
        assert [line["status"] for line in lines(tmp_path / "out")] == ["finished"]
        shutil.rmtree(tmp_path / "out")
        refused = launch("ablate", *arguments, RAY_AUTH_MODE="disabled", **address)
        assert_refused(refused, "RAY_AUTH_MODE=token")
    finally:
        for process in processes_about(Path(home)):  # `ray stop` would end the other tests' Ray too
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_outlives_a_node(tiny_dataset: Dataset, start: Start, tmp_path: Path) -> None:
    """Of two nodes of one core one dies while trials run: its trial goes on on the other."""
    # Ray's sockets have short names only, and what it writes there of its address is for nobody else to find.
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    os.environ["RAY_TMPDIR"] = temporary
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=1)
        nodes.wait_for_nodes()
        file = sweep_file(
            tmp_path,
            kind="comparison",
            models=["senet_tiny_ge"],
            seeds=[0, 1, 2, 3],
            fixed=[*TINY[1:-1], "train.epochs=4"],
        )
        driver = start("ablate", file, f"shards={tiny_dataset.root}", "out=out", **joining(nodes.address))
        out = tmp_path / "out"
        while len(list((out / "trials").glob("*/checkpoints/step-*"))) < 2:
            assert driver.running, driver.finish().stderr
            time.sleep(0.1)
        nodes.remove_node(second, allow_graceful=False)
        done = driver.finish()
        assert done.returncode == 0, done.stderr
        assert {line["trial"]: line["status"] for line in lines(out)} == {
            f"senet_tiny_ge-seed{seed}": "finished" for seed in range(4)
        }
        assert "is started again" in done.stdout
    finally:
        nodes.shutdown()
        del os.environ["RAY_TMPDIR"]
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_ablation_leaves_no_process_and_makes_nothing_twice(
    two_stains: Dataset, start: Start, launch: Launch, tmp_path: Path
) -> None:
    """Stages and trials, on a Ray of the launcher's own."""
    ablation = {
        "rare_types": ["lymphocyte"],
        "per_type": 40,
        "stain": [*test_stain_training.TINY[2:], test_stain_training.DEPTH],
        "conditional": list(test_conditional_training.TINY),
    }
    file = sweep_file(tmp_path, kind="ablation", ablation=ablation, arms=["conditional_only", "original"])
    arguments, out = (file, f"shards={two_stains.root}", "out=out"), tmp_path / "out"
    driver = start("ablate", *arguments)
    while not list(out.glob("stages/*.done.json")):
        assert driver.running, driver.finish().stderr
        time.sleep(0.1)
    time.sleep(2)  # into the next stage
    driver.kill()
    give_up = time.monotonic() + 60
    while left := processes_about(out):
        assert time.monotonic() < give_up, left
        time.sleep(0.5)
    done_before = {path: path.stat().st_mtime_ns for path in out.glob("stages/*.done.json")}
    done = launch("ablate", *arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
    assert len(list(out.glob("stages/*.done.json"))) == 5
    assert {line["trial"]: line["status"] for line in lines(out)} == {
        "conditional_only-seed0": "finished",
        "original-seed0": "finished",
    }
    # Another sweep of the same images finds them.
    arguments = (file, f"shards={two_stains.root}", "out=other", f"stages={out / 'stages'}", "seeds=[1]")
    planned = launch("ablate", *arguments, "plan=true")
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.count(" (done)\n") == 5
    assert planned.stdout.count(" (to run)\n") == 2


def processes_about(folder: Path) -> list[int]:
    """Those whose command line names a folder, or that have a file open there: a forked one has another's line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            files = (os.readlink(descriptor) for descriptor in process.glob("fd/*"))
            if str(folder) in (process / "cmdline").read_text() or any(file.startswith(str(folder)) for file in files):
                found.append(int(process.name))
    return found
