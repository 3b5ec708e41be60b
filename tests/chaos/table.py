"""The table of a chaos test: what was tried, what was lost, what was noticed."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass
class Row:
    """One launcher under one kind of disturbance.

    tries: disturbances that took place. missed: kills whose moment came after the end. noticed: tries that ended
    in one line with exit code 2. harmless: tries whose result is the undisturbed one. as_written: tries whose result is
    what the user's own file says now. lost: what went wrong.
    """

    command: str
    kind: str
    tries: int = 0
    missed: int = 0
    noticed: int = 0
    harmless: int = 0
    as_written: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0


def write_table(folder: Path, rows: list[Row], facts: dict[str, object]) -> str:
    """Write table.json and table.md into the folder; the table as Markdown."""
    content = {**facts, "rows": [asdict(row) for row in rows]}
    (folder / "table.json").write_text(json.dumps(content, indent=1) + "\n")
    text = "\n".join(
        [
            "| command | disturbed by | tries | noticed | harmless | as written | lost | seconds |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {row.command} | {row.kind} | {row.tries} | {row.noticed or ''} | {row.harmless or ''} "
                f"| {row.as_written or ''} | {len(row.lost) or 'nothing'} | {row.seconds:.0f} |"
                for row in rows
            ),
        ]
    )
    faults = [
        f"- {row.command}, {row.kind}: {line}" + (f" ({count} times)" if count > 1 else "")
        for row in rows
        for line, count in Counter(row.lost).items()
    ]
    (folder / "table.md").write_text("\n".join([text, "", *faults]) + "\n")
    return "\n".join([text, *faults])
