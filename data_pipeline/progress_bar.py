"""How far a piece of work has come: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeAlias, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# A log has a line for every tenth of the work, but never two within 30 s, and never none for longer than ten minutes.
SHORTEST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
_LINES = 10
_FORMAT = "{desc}{percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
_SECONDS_BETWEEN_REDRAWS = 0.5


class LogLines:
    """What stands for a bar where standard error is no terminal. Same methods as tqdm's; never a carriage return."""

    def __init__(self, total: int, description: str, unit: str, initial: int, unit_scale: bool) -> None:
        self._total, self._initial = total, initial
        self._look = {"prefix": f"{description}: ", "unit": unit, "unit_scale": unit_scale, "bar_format": _FORMAT}
        self._postfix = ""
        self._done = self._told = initial
        self._start = self._last = time.monotonic()

    def update(self, done: int = 1) -> None:
        """So much more is done."""
        self._done += done
        pause = time.monotonic() - self._last
        tenth = (self._done - self._told) * _LINES >= self._total
        if pause >= LONGEST_PAUSE or (tenth and pause >= SHORTEST_PAUSE):
            self._tell()

    def set_postfix(self, values: dict[str, Any]) -> None:
        """Numbers to stand at the end of the line."""
        self._postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    def write(self, text: str, file: TextIO | None = None) -> None:
        """A line of its own."""
        print(text, file=file or sys.stdout, flush=True)

    def close(self) -> None:
        """The last line, unless it stands there already, or nothing was done."""
        if self._done != self._told:
            self._tell()

    def __enter__(self) -> LogLines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _tell(self) -> None:
        self._last, self._told = time.monotonic(), self._done
        line = tqdm.format_meter(
            self._done,
            self._total,
            self._last - self._start,
            postfix=self._postfix,
            initial=self._initial,
            **self._look,  # type: ignore[arg-type]
        )
        print(line, file=sys.stderr, flush=True)


ProgressBar: TypeAlias = "tqdm[Any] | LogLines"


def progress_bar(
    total: int, description: str, unit: str, *, initial: int = 0, unit_scale: bool = False, enabled: bool = True
) -> ProgressBar:
    """A bar over `total` units, `initial` of which were done before. A context manager, closed at its end.

    unit_scale: tell thousands and millions. enabled: False for a bar that shows nothing, on other ranks than 0 say.
    """
    if enabled and not sys.stderr.isatty():
        return LogLines(total, description, unit, initial, unit_scale)
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        unit_scale=unit_scale,
        disable=not enabled,
        mininterval=_SECONDS_BETWEEN_REDRAWS,
        dynamic_ncols=True,
    )


def track(items: Iterable[Item], total: int, description: str, unit: str) -> Iterator[Item]:
    """The items, each counted on a bar when it has been dealt with."""
    with progress_bar(total, description, unit) as bar:
        for item in items:
            yield item
            bar.update()
