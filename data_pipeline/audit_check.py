"""What an audit says of one thing that it checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.catalog import Sample

# Of what is wrong, in one line.
_SHOWN = 3


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    checked: what, in words. count: of how many. found: each thing that is wrong, ids by their first 16 digits.
    remedy: what to do about it. unknown: why it could not be checked, '' where it could.
    """

    name: str
    checked: str
    count: int
    found: tuple[str, ...] = ()
    remedy: str = ""
    unknown: str = ""

    @property
    def status(self) -> str:
        """ok, found or unchecked."""
        if self.found:
            return "found"
        return "unchecked" if self.unknown else "ok"

    @property
    def line(self) -> str:
        """The result, with the first of what is wrong."""
        told = f"{self.name}: "
        if self.found:
            more = f"; and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
            told += f"FOUND {len(self.found)}: {'; '.join(self.found[:_SHOWN])}{more}. To do: {self.remedy}. "
        if self.unknown:
            told += f"NOT CHECKED: {self.unknown}. "
        return f"{told}{'' if self.found or self.unknown else 'ok: '}{self.count} {self.checked}"


def named(row: Sample) -> str:
    """A sample, in words that find it again."""
    return f"{row.id[:16]} ({row.source}:{row.path}, {row.split})"


def record_of(checks: Iterable[Check], about: Mapping[str, Any]) -> dict[str, Any]:
    """The audit as it is written to JSON."""
    entries: Sequence[dict[str, Any]] = [
        {
            "name": check.name,
            "status": check.status,
            "count": check.count,
            "checked": check.checked,
            "found": list(check.found),
            "remedy": check.remedy if check.found else "",
            "unknown": check.unknown,
        }
        for check in checks
    ]
    return {**about, "clean": all(entry["status"] == "ok" for entry in entries), "checks": entries}
