"""If these fail, another epoch than the settings ask for becomes the best checkpoint, which is scored and shipped."""

import math

import pytest

from tests.conftest import Launch
from trainer.loop.selection import Selection


def test_only_a_better_epoch_is_chosen_unless_less_is_enough() -> None:
    strict, tolerant = Selection("accuracy"), Selection("accuracy", within=0.01)
    best = strict.rank({"accuracy": 0.966})
    assert [strict.prefers(each, best) for each in (0.967, 0.966, 0.959)] == [True, False, False]
    assert [tolerant.prefers(each, best) for each in (0.967, 0.966, 0.959, 0.955)] == [True, True, True, False]
    assert strict.prefers(0.1, -math.inf)
    assert not tolerant.prefers(math.nan, best)


def test_of_a_loss_the_lower_one_is_chosen() -> None:
    selection = Selection("loss", higher_is_better=False, within=0.05)
    best = selection.rank({"loss": 0.2})
    assert [selection.prefers(selection.rank({"loss": each}), best) for each in (0.19, 0.24, 0.26)] == [
        True,
        True,
        False,
    ]


@pytest.mark.parametrize("value", ["-0.1", "x"])
def test_a_tolerance_that_cannot_be_is_refused(launch: Launch, value: str) -> None:
    done = launch("train_classifier", "shards=data", "run=run", f"train.select_within={value}")
    assert done.returncode == 2
    assert "select_within" in done.stderr.strip().splitlines()[-1]
