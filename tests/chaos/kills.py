"""A command that is killed again and again ends as one that nothing disturbed."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.bucket import fetch, let_time_pass, root_of, start_over
from tests.chaos.commands import Command
from tests.chaos.forked import Ended, in_child
from tests.chaos.moments import draw
from tests.chaos.outcome import differences, unreadable
from tests.chaos.table import Row
from tests.s3_server import ServerProcess

# Kills of one output, before it may come to its end: drawn from 1 to this.
_MOST_IN_A_ROW = 4


def leave_alone(command: Command, server: ServerProcess | None) -> Ended:
    """Run it undisturbed, and keep what it leaves. RuntimeError where it does not end well."""
    start_over(command, server)
    done = command.process.run()
    if done.code != 0:
        raise RuntimeError(f"undisturbed it ended with {done.code}: {done.stderr}")
    shutil.rmtree(command.calm, ignore_errors=True)
    shutil.copytree(command.place, command.calm)
    fetch(command, server, command.calm)
    return done


def kill_again_and_again(command: Command, server: ServerProcess | None, kills: int, seed: int) -> Row:
    """Kill it so many times in all, each time from where the last kill left it, with ends in between.

    Of every state between two launches what lies there must be readable, what the command reads unchanged, and
    every end equal to the undisturbed one.
    """
    began, numbers = time.monotonic(), random.Random(f"{seed} {command.name}")
    row = Row(command.name, "kills on S3" if command.environment.get("AWS_ENDPOINT_URL") else "kills")
    calm = leave_alone(command, server)
    inputs = _state_of(command.reads)
    while row.tries < kills:
        start_over(command, server)
        planned = min(kills - row.tries, numbers.randint(1, _MOST_IN_A_ROW))
        for _ in range(planned):
            moment = draw(numbers, calm.seconds, calm.changes)
            done = command.process.run(moment)
            if not done.killed:
                if done.code != 0 and not _stands_there(command, done):
                    row.lost.append(f"gave up by itself with {done.code}: {done.line}")
                row.missed += 1
                break
            row.tries += 1
            let_time_pass(command, server)
            row.lost += [f"{moment}: {line}" for line in in_child(lambda: unreadable(command, root_of(command)))]
        else:
            done = command.process.run()
            if done.code != 0 and not _stands_there(command, done):
                row.lost.append(f"does not go on: {done.code}: {done.line}")
        row.lost += _end(command, server)
    if _state_of(command.reads) != inputs:
        row.lost.append("what it reads has changed")
    row.harmless = 0 if row.lost else row.tries
    row.seconds = time.monotonic() - began
    return row


def _stands_there(command: Command, done: Ended) -> bool:
    """An export is refused where one lies: here the one that was killed when it had just appeared, whole."""
    return command.kind == "export" and "there already" in done.line


def _end(command: Command, server: ServerProcess | None) -> Iterator[str]:
    seen = command.logs / "seen"
    shutil.rmtree(seen, ignore_errors=True)
    shutil.copytree(command.place, seen)
    fetch(command, server, seen)
    yield from (f"at the end: {line}" for line in in_child(lambda: differences(seen, command.calm)))
    for folder in ("cache", "temporary"):
        for path in (command.place.parent / folder).rglob("*"):
            # DALI and torch have temporary files of their own, which stay after any end.
            ours = any(part.startswith("hemaforge-") for part in path.parts)
            if path.is_file() and (ours or path.name.startswith(".coming")):
                yield f"{folder}/{path.relative_to(command.place.parent / folder)}: left over"


def _state_of(folders: tuple[Path, ...]) -> dict[str, tuple[int, int]]:
    """Size and time of change of all files: enough to see that one was written."""
    paths = sorted(path for folder in folders for path in folder.rglob("*"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths if path.is_file()}
