"""Where a command's output lies: on a disk, or in the bucket of an S3 server that is a process of its own."""

import json
import os
from pathlib import Path

from data_pipeline.shards.build_files import LOCK_FILE
from data_pipeline.shards.store import Root, Store
from tests.chaos.commands import Command
from tests.s3_server import ServerProcess

# Seconds after which a build that gives no sign of life has died: nobody waits for them here.
_AN_HOUR = 3600.0


def start_over(command: Command, server: ServerProcess | None) -> None:
    """Put what the command begins with in its place, on the disk or in the bucket."""
    command.start_over()
    if command.url is not None and server is not None:
        prefix = _prefix(command.url)
        for name in server.objects(prefix):
            server.delete(f"{prefix}/{name}")
        if command.before is not None:
            server.fill(command.before, prefix)


def root_of(command: Command) -> Root:
    """Where its output lies; this process reaches it from now on."""
    os.environ.update(command.environment)
    return command.out if command.url is None else Store(command.url)


def let_time_pass(command: Command, server: ServerProcess | None) -> None:
    """A build that was killed in a store gives way after a while: that while is over."""
    if command.url is None or server is None:
        return
    prefix = _prefix(command.url)
    held = server.objects(prefix).get(LOCK_FILE)
    if held:  # one that was copied along from a disk is empty
        lock = json.loads(held)
        lock["alive"] -= _AN_HOUR
        server.put(f"{prefix}/{LOCK_FILE}", json.dumps(lock).encode())


def fetch(command: Command, server: ServerProcess | None, target: Path) -> None:
    """Copy the objects of its output, if it lies in the bucket, into a folder."""
    if command.url is None or server is None:
        return
    for name, content in server.objects(_prefix(command.url)).items():
        path = target / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _prefix(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[2]
