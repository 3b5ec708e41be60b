"""If this fails, the whole experiment does not end, or a kill changes what it finds."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.reproduction import markdown, tables
from tests.conftest import Launch, Start
from tests.launching import Launched
from trainer.experiments.reproduction_results import ReproductionSummary
from trainer.metrics.records import read_record

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

# Of the thesis, each on a line of its own in the report's headings or captions.
SHOWN = [
    *(f"({number})" for number in (*range(14, 17), *range(18, 23))),  # tables, in the heads of their columns
    "Table 6",
    "Figures 13 and 21",
    "training (13)",
    "training (17)",
    "Table 23",
    "table 24",
    "Figure 40",
    "figures 41-46",
    "figure 47",
    "figures 48-50",
    "Figure 51",
    "figure 52",
    "Figure 53",
    "figures 54-57",
    "figure 58",
    *(f"figure {number}" for number in range(59, 63)),
    "thesis 57.82",
    "Between two laboratories",
    "CONTROL: accuracy",
]


def wait_until(condition: Callable[[], bool], launched: Launched) -> None:
    deadline = time.monotonic() + 3600
    while not condition():
        assert launched.running, "it ended before"
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.2)


def found(run: Path) -> dict[str, Any]:
    """What was found, without what is another each time: the machine, and how long things took."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: bare(each) for key, each in value.items() if key not in ("seconds", "images_per_second", "machine")
            }
        return [bare(each) for each in value] if isinstance(value, list) else value

    results: dict[str, Any] = bare(json.loads((run / "results.json").read_text()))
    return results


def test_the_whole_experiment_on_phantoms_survives_kills(start: Start, launch: Launch, tmp_path: Path) -> None:
    run, command = tmp_path / "run", ("reproduce", "preset=phantom", "run=run")
    moments: list[Callable[[], bool]] = [
        lambda: any(run.glob("stages/stain-gan-*/metrics.jsonl")),
        lambda: len(list(run.glob("stages/*.done.json"))) > 15,
        lambda: any(run.glob("ablation/trials/*/metrics.jsonl")),
        lambda: any(run.glob("stages/score-of-stain-gan-*.done.json")),
    ]
    for moment in moments:
        launched = start(*command)
        wait_until(moment, launched)
        launched.kill()
        assert not (run / "report.html").exists()
    partial = launch(*command, "report=true")
    assert partial.returncode == 0, partial.stderr
    page = (run / "report.html").read_text()
    so_far = ("Not finished", "Tables 13-16", "CONTROL: accuracy", "figure 58")
    assert not [words for words in so_far if words not in page]
    assert "Between two laboratories" not in page
    (run / "report.html").unlink()
    done = start(*command)
    wait_until((run / "report.html").exists, done)
    assert done.finish().returncode == 0
    page = (run / "report.html").read_text()
    assert not [words for words in SHOWN if words not in page]
    # The results page's tables, of the same results.
    written = "\n".join(map(markdown, tables(read_record(ReproductionSummary, run / "results.json"), {})))
    assert all(f"| {words} (" in written for words in ("Full method", "Original data"))
    first, stages = found(run), sorted(run.glob("stages/*.done.json"))
    times = [path.stat().st_mtime_ns for path in stages]

    again = launch(*command)
    assert again.returncode == 0
    assert "0 of them to run" in again.stdout
    assert [path.stat().st_mtime_ns for path in sorted(run.glob("stages/*.done.json"))] == times
    assert found(run) == first
