"""If these fail, a data set built on many machines is not what one machine makes, or a lost node spoils it."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import ray
from ray.cluster_utils import Cluster

from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import format_report
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.writer import ShardSettings
from tests.conftest import Launch, Start
from tests.data_pipeline.raw_images import encoded, files_below, folder_source, write_classes, write_image
from tests.launchers.test_ablate import Environment, joining
from tests.launchers.test_launchers import assert_refused
from tests.launching import ROOT

# Many shards of small images are soon written; a shard of large ones takes a worker so long that it can die at it.
SMALL, LARGE = ShardSettings(max_samples=4), ShardSettings(max_samples=64)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Environment]:
    """A local Ray of two cores; what a process needs in its environment to join it."""
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR):
        yield joining(ray.get_runtime_context().gcs_address)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A Ray cluster of its own, whose head waits for nodes with cores."""
    # Ray's sockets have short names only, and what it writes there of its address is for nobody else to find.
    temporary = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", temporary)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    yield cluster
    cluster.shutdown()
    shutil.rmtree(temporary, ignore_errors=True)


def lose(nodes: Cluster, node: Any) -> None:
    """As when its machine loses power: what works there too is gone at once, which would else end its task first."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    for worker in raylet.children(recursive=True):
        worker.kill()
    nodes.remove_node(node, allow_graceful=False)


def write_raw(folder: Path, count: int, side: int = 40) -> Path:
    """Images of two types, and among them what a build leaves out."""
    write_classes(folder, {"basophil": 2, "monocyte": 2}, 0)
    for number in range(count):
        (folder / "monocyte" / f"more-{number:04}.jpg").write_bytes(encoded(1000 + number, side=side))
    (folder / "basophil" / "text.jpg").write_text("no image at all")
    shutil.copy(folder / "basophil" / "0000.jpg", folder / "monocyte" / "other-label.jpg")
    return folder


def arguments(raw: Path, settings: ShardSettings = SMALL) -> tuple[str, ...]:
    return (f"folder={raw}", "name=f", "domain=giemsa", f"max_samples={settings.max_samples}", "shards=data")


def built_here(folder: Path, raw: Path, settings: ShardSettings = SMALL) -> dict[str, bytes]:
    """What one process makes of it, without Ray."""
    report = build_dataset(folder, [folder_source(raw, "f")], settings=settings, progress=False)
    assert "unreadable" in format_report(report)
    return files_below(folder)


def test_many_processes_of_ray_write_the_bytes_that_one_process_writes(
    cluster: Environment, launch: Launch, tmp_path: Path
) -> None:
    """Bad images and all; and what a user has to mend is one line that leaves the data set as it was."""
    raw = write_raw(tmp_path / "raw", 60)
    done = launch("build_shards", *arguments(raw), "cluster=true", **cluster)
    assert done.returncode == 0, done.stderr
    whole = built_here(tmp_path / "here", raw)
    assert files_below(tmp_path / "data") == whole
    assert len(whole) > 30

    assert_refused(launch("build_shards", *arguments(raw), "cluster=true", "workers=2"), "workers=")
    (raw / "monocyte" / "refused.jpg").symlink_to("/proc/self/mem")  # no system reads its first byte
    refused = launch("build_shards", *arguments(raw), "cluster=true", **cluster)
    assert_refused(refused, str(raw / "monocyte" / "refused.jpg"), "cannot be read")
    assert files_below(tmp_path / "data") == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_node_that_dies_costs_no_image(nodes: Cluster, start: Start, tmp_path: Path) -> None:
    """Of two nodes of one core, in the middle of writing."""
    raw = write_raw(tmp_path / "raw", 2000, side=300)
    _, second = (nodes.add_node(num_cpus=1) for _ in range(2))
    nodes.wait_for_nodes()
    build = start("build_shards", *arguments(raw, LARGE), "cluster=true", **joining(nodes.address))
    while len(list((tmp_path / "data").glob("shards/*.tar"))) < 5:
        assert build.running, build.finish().stderr
        time.sleep(0.05)
    lose(nodes, second)
    assert build.running
    done = build.finish()
    assert done.returncode == 0, done.stderr
    assert files_below(tmp_path / "data") == built_here(tmp_path / "here", raw, LARGE)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hidden", ["raw", "data"])
def test_a_node_that_does_not_see_the_folders_is_named(
    hidden: str, nodes: Cluster, launch: Launch, tmp_path: Path
) -> None:
    """It has an empty folder of its own at the same path."""
    raw = write_raw(tmp_path / "raw", 60)
    write_image(tmp_path / "before" / "basophil" / "0000.jpg", 7)
    build_dataset(tmp_path / "data", [folder_source(tmp_path / "before", "before")], progress=False)
    before = files_below(tmp_path / "data")
    unshare = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-Urm"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets no test mount a folder for one process")
    ray_command = Path(sys.executable).with_name("ray")
    node = f"exec {ray_command} start --address={nodes.address} --num-cpus=1 --disable-usage-stats --block"
    script = f"mount -t tmpfs tmpfs {tmp_path / hidden} && {node}"
    blind = subprocess.Popen([*unshare, "sh", "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 60
        while len(nodes.global_state._live_node_ids()) < 2:
            assert time.monotonic() < give_up
            time.sleep(0.1)
        refused = launch("build_shards", *arguments(raw), "cluster=true", **joining(nodes.address))
        assert_refused(refused, str(tmp_path / hidden), "node", "same path")
        assert files_below(tmp_path / "data") == before
    finally:
        blind.terminate()
        blind.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_ends_it_and_the_old_data_set_is_whole(cluster: Environment, tmp_path: Path) -> None:
    write_image(tmp_path / "before" / "basophil" / "0000.jpg", 7)
    build_dataset(tmp_path / "data", [folder_source(tmp_path / "before", "before")], progress=False)
    before = files_below(tmp_path / "data")
    raw = write_raw(tmp_path / "raw", 2000, side=300)
    # Handled, even where pytest itself was started with the signal ignored.
    code = (
        "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(ROOT / "launchers/build_shards.py"),
        *arguments(raw, LARGE),
        "cluster=true",
    ]
    build = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **cluster}, stderr=subprocess.DEVNULL)
    while len(list((tmp_path / "data").glob("shards/*.tar"))) < 5:
        assert build.poll() is None
        time.sleep(0.05)
    build.send_signal(signal.SIGINT)
    assert build.wait(60) != 0
    assert files_below(tmp_path / "data") == before
    time.sleep(3)
    assert files_below(tmp_path / "data") == before, "a task went on after its build"
    assert (tmp_path / "data" / CATALOG_FILE).exists()
