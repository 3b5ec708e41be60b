"""Kill, damage and fill: every launcher that writes, at random moments; a table of what was lost and noticed.

usage:
  python -m tests.chaos out=DIR [parts=kills,bytes,disk] [launchers=A,B] [stores=disk,s3] [kills=20] ...
      out=DIR          receives table.md, table.json and all that the launchers wrote
      parts=           kills: SIGKILL at random moments; bytes: damaged files; disk: a disk that is full
      launchers=       names of rows, build_shards say; default: all
      stores=          where the data set lies that launchers read (and build_shards writes)
      kills=20         of each launcher, on each store
      damages=1        of each kind, to each kind of file, for each reader
      seed=0           of the moments and of the damages
      workers=2        commands that are disturbed at the same time
Exit code 1 when anything was lost.
"""

import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.chaos.commands import Materials, from_store
from tests.chaos.damage import damage_each, readers
from tests.chaos.forked import import_everything
from tests.chaos.full_disk import fill_the_disk, take_own_mounts
from tests.chaos.kills import kill_again_and_again
from tests.chaos.ray_cluster import RayCluster
from tests.chaos.table import Row, write_table
from tests.s3_server import ServerProcess

PARTS = ("kills", "bytes", "disk")
# What each command begins with, beside the data set.
_BEGINS_WITH = {
    "normalize_stains": ("stain",),
    "train_classifier": ("classifier",),
    "synthesize": ("conditional", "bank"),
    "balance": ("conditional", "bank"),
    "export": ("classifier",),
    "evaluate": ("classifier",),
    "evaluate a bank": ("classifier", "conditional", "bank"),
    "predict": ("classifier", "export"),
    "audit": ("classifier",),
}
Job = Callable[[], Row]


@dataclass(frozen=True)
class Asked:
    """The arguments of the command."""

    out: Path
    parts: tuple[str, ...] = PARTS
    launchers: tuple[str, ...] = ()
    stores: tuple[str, ...] = ("disk", "s3")
    kills: int = 20
    damages: int = 1
    seed: int = 0
    workers: int = 2


def main(arguments: Sequence[str]) -> int:
    asked = _read(arguments)
    began = time.monotonic()
    small_disks = "disk" in asked.parts and take_own_mounts()
    import_everything()
    shutil.rmtree(asked.out, ignore_errors=True)
    materials = Materials(asked.out / "materials")
    names = [name for name in materials.commands("kills") if name in (asked.launchers or (name,))]
    wanted = {part for name in names for part in _BEGINS_WITH.get(name, ())}
    materials.make(wanted, _tell)
    with ExitStack() as held:
        server = ServerProcess(materials.data) if "s3" in asked.stores else None
        if server is not None:
            held.callback(server.kill)
        if "ablate" in names:
            reaches = {} if server is None else server.environment
            cluster = RayCluster({**reaches, "XDG_CACHE_HOME": str(asked.out / "cache")})
            held.callback(cluster.close)
            materials.of_cluster = cluster.environment
        rows = _work(_jobs(asked, materials, names, server, small_disks), asked.workers, asked.out)
    if "disk" in asked.parts and not small_disks:
        _tell("no full disk was tried: this user may not mount one")
    facts = {"kills": asked.kills, "seed": asked.seed, "seconds": round(time.monotonic() - began)}
    print(write_table(asked.out, rows, facts), flush=True)
    return int(any(row.lost for row in rows))


def _read(arguments: Sequence[str]) -> Asked:
    given: dict[str, Any] = dict(argument.split("=", 1) for argument in arguments)
    for name in ("parts", "launchers", "stores"):
        if name in given:
            given[name] = tuple(given[name].split(","))
    for name in ("kills", "damages", "seed", "workers"):
        if name in given:
            given[name] = int(given[name])
    given["out"] = Path(given["out"]).resolve()
    return Asked(**given)


def _jobs(
    asked: Asked, materials: Materials, names: list[str], server: ServerProcess | None, small_disks: bool
) -> dict[str, Job]:
    jobs: dict[str, Job] = {}
    kills, disk = materials.commands("kills"), materials.commands("disk")
    for name in names if "kills" in asked.parts else ():
        both = [kills[name]] if "disk" in asked.stores else []
        stored = None if server is None else from_store(kills[name], materials.data, server.environment)
        both += [] if stored is None else [stored]
        for command in both:
            jobs[f"{command.name}, kills"] = partial(kill_again_and_again, command, server, asked.kills, asked.seed)
    for name in names if "disk" in asked.parts and small_disks else ():
        jobs[f"{name}, disk"] = partial(fill_the_disk, disk[name])
    for reader in readers(materials) if "bytes" in asked.parts else ():
        if not asked.launchers or reader.launcher in asked.launchers:
            folder = asked.out / "bytes" / reader.name.replace(" ", "_")
            jobs[f"{reader.launcher} ({reader.name}), bytes"] = partial(
                damage_each, reader, folder, asked.damages, asked.seed
            )
    return jobs


def _work(jobs: dict[str, Job], workers: int, folder: Path) -> list[Row]:
    """Do the jobs, each in a forked process, so many at a time; their rows, which come by files of the folder."""
    waiting, running, rows = list(jobs), {}, {}
    while waiting or running:
        while waiting and len(running) < workers:
            name = waiting.pop(0)
            running[_fork(name, jobs[name], folder / f"row-{len(jobs) - len(waiting)}")] = name
        ended, _ = os.wait()
        for child, told in [key for key in running if key[0] == ended]:
            name = running.pop((child, told))
            row = pickle.loads(told.read_bytes()) if told.exists() else Row(name, "", lost=["the test was killed"])
            told.unlink(missing_ok=True)
            rows[name] = row
            _tell(f"{name}: {row.tries} tries, {row.seconds:.0f} s, lost: {'; '.join(row.lost) or 'nothing'}")
    return [rows[name] for name in jobs]


def _fork(name: str, job: Job, told: Path) -> tuple[int, Path]:
    """The child, and the file that it leaves its row in."""
    child = os.fork()
    if child == 0:
        try:
            row = job()
        except BaseException as error:
            row = Row(name, "", lost=[f"the test itself broke off: {type(error).__name__}: {error}"])
        told.write_bytes(pickle.dumps(row))
        os._exit(0)
    return child, told


def _tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__)
    else:
        sys.exit(main(sys.argv[1:]))
