"""If these fail, a type gets generated images that validation did not ask for, or the record does not say why."""

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.banks.asked import format_asked
from data_pipeline.banks.balance import balance_dataset, training_counts
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import learned_by_makers
from data_pipeline.stream.stream import Topology
from tests.conftest import TINY_TYPES
from tests.generated_images import bank_facts, make_bank
from tests.trainer.test_frozen import config_of
from trainer.experiments.amounts import RealImages, ask_validation
from trainer.runs.training import train


def cells(kind: int, count: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Features of a type: around a place of its own."""
    noise = np.random.default_rng(seed).normal(0, 1.0, (count, 6))
    return (noise + 2.0 * np.eye(6)[kind]).astype(np.float32)


@pytest.fixture
def few() -> RealImages:
    """Two training images of the last of three types, 60 of the others; 300 validation images of each."""
    training = np.concatenate([cells(0, 60, 0), cells(1, 60, 1), cells(2, 2, 2)]), np.repeat([0, 1, 2], [60, 60, 2])
    held_out = np.concatenate([cells(kind, 300, 10 + kind) for kind in range(3)]), np.repeat([0, 1, 2], 300)
    return RealImages(TINY_TYPES, training, held_out, np.arange(900) // 2, [str(row) for row in range(900)])


def test_images_like_the_real_ones_are_asked_for_and_others_are_not(few: RealImages) -> None:
    like = few.ask(2, cells(2, 56, 3), [2, 4, 56])
    assert like.amount == 56
    assert (like.cell_type, like.real) == (TINY_TYPES[2], 2)
    assert [tried.amount for tried in like.tried] == [0, 2, 4, 56]
    assert like.tried[3].gain > like.tried[3].error > 0
    foreign = few.ask(2, cells(0, 56, 4), [2, 4, 56])
    assert foreign.amount == 0
    assert foreign.tried[3].gain < 0
    table = format_asked([like, foreign]).splitlines()
    assert [line.endswith("asked for") for line in table[1:]] == [*[False] * 3, *[True] * 2, *[False] * 3]


def test_the_data_set_says_what_was_asked_for_and_why(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Noise is asked for by none of the types: the data set then holds the real images alone."""
    run = config_of(tiny_dataset, tmp_path)
    train(run, Topology())
    make_bank(tmp_path / "noise", 30, bank_facts(TINY_TYPES[:2], dataset_hash=tiny_dataset.content_hash))
    out = tmp_path / "out"
    config = BalanceConfig(
        str(tiny_dataset.root), [str(tmp_path / "noise")], str(out), "auto", classifier=str(run.run), at_most=0.5
    )
    verdict = ask_validation(config, Topology())
    counts = training_counts(tiny_dataset)
    assert [each.cell_type for each in verdict.types] == list(TINY_TYPES[:2])
    for each in verdict.types:
        assert each.real == counts[each.cell_type]["real"]
        assert max(tried.amount for tried in each.tried) <= each.real / 2
    assert ask_validation(config, Topology()).types == verdict.types
    balance_dataset(config, verdict=verdict, progress=False)
    made = Dataset.open(out)
    assert made.metadata["made_by"]["asked"] == json.loads(json.dumps(verdict.as_record()))
    added = {name: count["synthetic"] for name, count in training_counts(made).items() if count["synthetic"]}
    assert added == {name: amount for name, amount in verdict.amounts().items() if amount}
    chosen = learned_by_makers(made).of_role("chosen").table
    assert set(chosen["id"]) == set(tiny_dataset.samples(splits=["validation"])["id"])


def test_a_classifier_that_cannot_judge_is_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    make_bank(tmp_path / "noise", 4, bank_facts(TINY_TYPES[:1], dataset_hash=tiny_dataset.content_hash))
    config = BalanceConfig(
        str(tiny_dataset.root), [str(tmp_path / "noise")], str(tmp_path / "out"), "auto", classifier=str(tmp_path)
    )
    with pytest.raises(UserError, match=r"no config.yaml there, so no run"):
        ask_validation(config, Topology())
