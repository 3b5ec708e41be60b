"""The result of one check of an audit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.catalog import Sample

_SHOWN = 3  # findings in one line


@dataclass(frozen=True)
class Check:
    """One check and its findings."""

    name: str
    checked: str  # what was checked, in words that follow the count
    count: int  # how many were checked
    found: tuple[str, ...] = ()  # one text for each thing that is wrong; ids are cut to 16 digits
    remedy: str = ""  # what to do about it
    unknown: str = ""  # why it could not be checked, '' if it was

    @property
    def status(self) -> str:
        """'ok', 'found' (something is wrong) or 'unchecked'."""
        if self.found:
            return "found"
        return "unchecked" if self.unknown else "ok"

    @property
    def line(self) -> str:
        """The result as one line, with the first findings."""
        told = f"{self.name}: "
        if self.found:
            more = f"; and {len(self.found) - _SHOWN} more" if len(self.found) > _SHOWN else ""
            told += f"FOUND {len(self.found)}: {'; '.join(self.found[:_SHOWN])}{more}. To do: {self.remedy}. "
        if self.unknown:
            told += f"NOT CHECKED: {self.unknown}. "
        return f"{told}{'' if self.found or self.unknown else 'ok: '}{self.count} {self.checked}"


def named(row: Sample) -> str:
    """A sample in words by which it can be found."""
    return f"{row.id[:16]} ({row.source}:{row.path}, {row.split})"


def record_of(checks: Iterable[Check], about: Mapping[str, Any]) -> dict[str, Any]:
    """The audit's JSON."""
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
