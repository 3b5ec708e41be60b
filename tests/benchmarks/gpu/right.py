"""Whether it is right: the tests in tests/gpu, a row each."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record

_TESTS = Path(__file__).resolve().parents[2] / "gpu"
# Less than this is not begun with.
_TEST_SECONDS = 3.0


def measure(options: Options, record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """Run the tests that are missing, in this process, as far as the time goes."""
    # Its own conftest.py alone: the one above it hides GPUs from the tests that want equal sums on every machine.
    # In this process, one after the other, whatever the project's tests are run with.
    one_process = ["-o", "addopts=", "-p", "no:cacheprovider", "--timeout=90"]
    arguments = [str(_TESTS), f"--confcutdir={_TESTS}", "-m", "gpu", *one_process]
    code = pytest.main(arguments, plugins=[_Rows(record, deadline, say)])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {code!r}; see log.txt")


class _Rows:
    """Keeps each test's outcome, and leaves out what there is no time for."""

    def __init__(self, record: Record, deadline: float, say: Callable[[str], None]) -> None:
        self._record, self._deadline, self._say = record, deadline, say
        self._seconds = 0.0
        self._outcome: dict[str, Any] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_name = {item.name: item for item in items}
        assert len(by_name) == len(items), "two tests of one name"
        self._record.plan(list(by_name))
        items[:] = [by_name[name] for name in self._record.missing(list(by_name)) if self._record.worth_trying(name)]

    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        left = self._deadline - time.monotonic()
        if left < _TEST_SECONDS:
            self._record.leave_out(item.name, f"no time: {max(left, 0):.0f} s were left")
            return True
        self._record.begin(item.name)
        self._seconds, self._outcome = 0.0, {}
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.rpartition("::")[2]
        self._seconds += report.duration
        if report.outcome != "passed" and not self._outcome:
            self._outcome = {"outcome": report.outcome, "why": report.longreprtext[-2000:]}
            if report.skipped and isinstance(report.longrepr, tuple):
                self._outcome["why"] = report.longrepr[2].removeprefix("Skipped: ")
        if report.when != "teardown":
            return
        outcome = self._outcome or {"outcome": "passed"}
        why = outcome.get("why", "")
        last_line = why.strip().splitlines()[-1] if why else ""
        if outcome["outcome"] == "failed":
            self._record.fail(name, why)
        else:
            self._record.end(name, outcome | {"seconds": round(self._seconds, 1)})
        self._say(f"{name} ({self._seconds:.1f} s): {outcome['outcome']} {last_line}".rstrip())
