"""The rows that a part measures, each in the part's JSON as soon as it ends."""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError

# A row that so often ended its process, or had no time to end, is not tried again.
_MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class Row:
    """One measurement. seconds: about what it takes; it is not begun where less time is left."""

    name: str
    measure: Callable[[], dict[str, Any]]
    seconds: float


class Record:
    """A part's JSON: what was measured, what failed, and what was left out and why.

    The file is replaced whole at every change, so that a kill at any moment leaves it readable.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        """Read the file where there is one. UserError for one that was measured with other options."""
        self._path = path
        self.content: dict[str, Any] = {
            "options": options,
            "machine": None,
            "planned": None,
            "rows": {},
            "failed": {},
            "left_out": {},
            "attempts": {},
        }
        if path.exists():
            self.content = json.loads(path.read_text())
            old = self.content["options"]
            changed = sorted(name for name in old.keys() | options.keys() if old.get(name) != options.get(name))
            if changed:
                raise UserError(
                    f"{path}: measured with {changed[0]}={old.get(changed[0])}, not {options.get(changed[0])}: "
                    "give the same options to go on, or another out=DIR"
                )

    def start_again(self) -> None:
        """Forget failures and what was left out: a new start of the command tries them."""
        self.content["failed"], self.content["left_out"] = {}, {}

    def plan(self, names: Sequence[str]) -> None:
        """Note all that the part has to measure, for what is told of it at the end."""
        self.content["planned"] = list(names)
        self.write()

    def missing(self, names: Sequence[str]) -> list[str]:
        """What is still to be measured, in its order; what was begun before and never ended comes last."""
        done = self.content["rows"].keys() | self.content["failed"].keys()
        attempts = self.content["attempts"]
        return sorted((name for name in names if name not in done), key=lambda name: attempts.get(name, 0))

    @property
    def complete(self) -> bool:
        """Whether the part has nothing left to measure."""
        return self.content["planned"] is not None and not self.missing(self.content["planned"])

    def worth_trying(self, name: str) -> bool:
        """False for a row that was begun too often and never ended."""
        if self.content["attempts"].get(name, 0) < _MOST_ATTEMPTS:
            return True
        self.leave_out(name, f"begun {_MOST_ATTEMPTS} times and never ended")
        return False

    def begin(self, name: str) -> None:
        self.content["attempts"][name] = self.content["attempts"].get(name, 0) + 1
        self.content["left_out"].pop(name, None)
        self.write()

    def end(self, name: str, result: dict[str, Any]) -> None:
        self.content["rows"][name] = result
        self.content["attempts"].pop(name, None)
        self.write()

    def fail(self, name: str, error: str) -> None:
        self.content["failed"][name] = error
        self.write()

    def leave_out(self, name: str, reason: str) -> None:
        self.content["left_out"][name] = reason
        self.write()

    def write(self) -> None:
        aside = self._path.with_suffix(".new")
        with aside.open("w") as file:
            json.dump(self.content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)


def measure_rows(rows: Sequence[Row], record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """Measure what is missing, as far as the time goes. deadline: of time.monotonic().

    A row that raises is noted and the others go on; after an error that the GPU does not recover from, the process
    ends with exit code 1.
    """
    by_name = {row.name: row for row in rows}
    record.plan(list(by_name))
    for name in record.missing(list(by_name)):
        row, left = by_name[name], deadline - time.monotonic()
        if not record.worth_trying(name):
            continue
        if left < row.seconds:
            record.leave_out(name, f"no time: it takes about {row.seconds:.0f} s, {max(left, 0):.0f} s were left")
            continue
        record.begin(name)
        begun = time.monotonic()
        try:
            result = row.measure()
        except Exception as error:
            traceback.print_exc()
            record.fail(name, f"{type(error).__name__}: {str(error)[:500]}")
            say(f"{name}: FAILED, {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            _end_with_a_broken_gpu()
        else:
            seconds = round(time.monotonic() - begun, 1)
            record.end(name, result | {"seconds": seconds})
            say(f"{name} ({seconds} s): {brief(result)}")


def brief(result: dict[str, Any]) -> str:
    """The scalars of a row, and the medians of what was repeated, in one line."""
    words = []
    for name, value in result.items():
        value = value.get("median") if isinstance(value, dict) and "median" in value else value
        if isinstance(value, float):
            words.append(f"{name} {value:.4g}")
        elif isinstance(value, int | str):
            words.append(f"{name} {value}")
    return ", ".join(words)


def _end_with_a_broken_gpu() -> None:
    """An illegal access, say, makes every later call fail: the rest is for a new process."""
    if not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        sys.stdout.flush()
        os._exit(1)
