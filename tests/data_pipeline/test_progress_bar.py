"""If these fail, a log holds a hundred bars in place of a few lines, or a watched work shows nothing."""

import contextlib
import io
import sys

import pytest

from data_pipeline import progress_bar as module
from data_pipeline.catalog import Dataset
from data_pipeline.progress_bar import LONGEST_PAUSE, SHORTEST_PAUSE, LogLines, progress_bar, track
from data_pipeline.shards.verify import verify_dataset
from tests.told_clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def lines_of(clock: Clock, log: pytest.CaptureFixture[str], total: int, seconds_each: float) -> list[str]:
    """What a work of `total` units, each so long, leaves in a log."""
    for _ in track(range(total), total, "cells", "cell"):
        clock.now += seconds_each
    said = log.readouterr().err
    assert "\r" not in said
    return said.splitlines()


def test_a_short_work_is_one_line_of_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines_of(clock, capsys, 2000, 0.01)
    assert "cells: 100 % (2000 of 2000)" in line


@pytest.mark.parametrize(
    ("seconds", "most"),
    [(100, 4), (300, 10), (3600, 11), (86400, 86400 // LONGEST_PAUSE + 1)],
)
def test_a_long_work_is_told_now_and_then(
    clock: Clock, capsys: pytest.CaptureFixture[str], seconds: int, most: int
) -> None:
    """Not more than a line each half minute, nor than one each tenth; and nobody waits for one longer than it says."""
    said = lines_of(clock, capsys, 10_000, seconds / 10_000)
    assert 1 < len(said) <= most
    assert len(said) <= seconds // SHORTEST_PAUSE + 1
    assert "100 %" in said[-1]


def test_a_work_that_breaks_off_says_where_and_one_that_was_done_before_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with contextlib.suppress(KeyError), progress_bar(10, "cells", "cell", initial=2) as bar:
        bar.update()
        raise KeyError
    assert "cells: 30 % (3 of 10)" in capsys.readouterr().err
    with progress_bar(10, "cells", "cell", initial=10), progress_bar(0, "cells", "cell"):
        pass
    with progress_bar(10, "cells", "cell", enabled=False) as bar:
        bar.update(10)
    assert capsys.readouterr().err == ""


def test_numbers_stand_at_the_end_of_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(4, "training", "step") as bar:
        bar.set_postfix({"loss": "0.312", "images_per_second": "84"})
        bar.write("epoch 1/2: better", file=sys.stderr)
        bar.update(4)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "epoch 1/2: better"
    assert last.endswith("loss=0.312, images_per_second=84")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(3, "cells", "cell") as bar:
        assert not isinstance(bar, LogLines)
        bar.update(3)
    assert "\rcells: 100%" in terminal.getvalue()


def test_a_real_work_leaves_one_line(tiny_dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    verify_dataset(tiny_dataset.root)
    said = capsys.readouterr().err
    assert "\r" not in said
    assert len(said.splitlines()) == 1
    assert "verifying: 100 %" in said
