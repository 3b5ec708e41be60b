"""Progress of a task: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, TypeAlias, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

# A log has a line for every tenth of the work, at most one in 30 s, at least one in ten minutes.
SHORTEST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
_LINES = 10
_FORMAT = "{desc}{percentage:.0f} % ({n_fmt} of {total_fmt}), {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"
_SECONDS_BETWEEN_REDRAWS = 0.5


class LogLines:
    """The progress bar if stderr is no terminal: tqdm's methods, whole lines."""

    def __init__(self, total: int, description: str, unit: str, initial: int, unit_scale: bool) -> None:
        self._total, self._initial = total, initial
        self._look = {"prefix": f"{description}: ", "unit": unit, "unit_scale": unit_scale, "bar_format": _FORMAT}
        self._postfix = ""
        self._done = self._told = initial
        self._start = self._last = time.monotonic()

    def update(self, done: int = 1) -> None:
        """Count `done` more units."""
        self._done += done
        pause = time.monotonic() - self._last
        tenth = (self._done - self._told) * _LINES >= self._total
        if pause >= LONGEST_PAUSE or (tenth and pause >= SHORTEST_PAUSE):
            self._tell()

    def set_postfix(self, values: dict[str, Any]) -> None:
        """Values to show at the end of the line."""
        self._postfix = ", ".join(f"{name}={value}" for name, value in values.items())

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Print a separate line."""
        print(text, file=file or sys.stdout, flush=True)

    def close(self) -> None:
        """Print the last line unless it is there already."""
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
    """A progress bar, as a context manager. initial: units that are already done.

    unit_scale: show thousands and millions. enabled: False shows nothing, for ranks other than 0.
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
    """The items with a progress bar, which counts an item when the next one is asked for."""
    with progress_bar(total, description, unit) as bar:
        for item in items:
            yield item
            bar.update()
