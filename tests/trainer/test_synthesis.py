"""If these fail, a bank holds other images than the generator made, or those of another run."""

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml

from data_pipeline.banks.image_bank import ImageBank
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.stream.stream import Topology
from tests.data_pipeline.raw_images import files_below
from tests.generated_images import LATENT, NoiseSampler, image, latent
from trainer.tasks.generation.synthesis import load_sampler, synthesize
from trainer.tasks.generation.synthesis_config import SynthesizeConfig

SAMPLER = NoiseSampler(("lymphocyte", "basophil", "platelet"))


def draw(root: Path, sampler: NoiseSampler = SAMPLER, count: int = 70, **changes: object) -> ImageBank:
    config = dataclasses.replace(SynthesizeConfig("run", str(root), count=count), **changes)  # type: ignore[arg-type]
    return synthesize(sampler, config, Topology(), LearnedImages())


def test_a_bank_holds_what_the_sampler_made_whatever_is_drawn_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRAWN", str(tmp_path / "drawn"))
    bank = draw(tmp_path / "bank", seed=5)
    assert bank.cell_types == ("basophil", "lymphocyte", "platelet"), "in the order of all types"
    assert bank.made_by == SAMPLER.describe() | {"seed": 5}
    assert len(bank) == 210
    for row in (0, 100, 209):
        cell_type, index = bank.cell_types[bank.labels[row]], row // 3
        assert np.array_equal(bank.images([row])[0], image(5, cell_type, index))
        assert np.array_equal(bank.latents([row])[0], latent(5, cell_type, index))
    assert set((tmp_path / "drawn").read_text().split()) == {"64", "6"}  # of each type
    draw(tmp_path / "again", seed=5)
    assert files_below(tmp_path / "again") == files_below(tmp_path / "bank")
    assert draw(tmp_path / "other", seed=6).content_hash != bank.content_hash
    assert draw(tmp_path / "narrow", seed=5, truncation=0.7).made_by["truncation"] == 0.7


def test_only_the_types_that_are_asked_for_and_made_by_the_run(tmp_path: Path) -> None:
    bank = draw(tmp_path / "bank", count=2, cell_types=["platelet", "basophil"])
    assert bank.cell_types == ("basophil", "platelet")
    with pytest.raises(UserError, match="run makes no 'monocyte': use some of lymphocyte, basophil, platelet"):
        draw(tmp_path / "new", cell_types=["basophil", "monocyte"])
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="other cell types"):
        draw(tmp_path / "bank", count=3)


def test_levels_are_rounded_and_what_overshoots_is_cut(tmp_path: Path) -> None:
    class Levels(NoiseSampler):
        def draw(self, cell_type: str, seed: int, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
            levels = torch.tensor([-1.5, -1, -0.996, -0.002, 0.002, 0.5, 1, 1.5]).repeat(2)
            return levels.expand(len(indices), 3, 16, 16), torch.zeros(len(indices), LATENT)

    line = draw(tmp_path / "bank", Levels(("platelet",)), count=1).images([0])[0, 0, :8, 0]
    assert line.tolist() == [0, 0, 1, 127, 128, 191, 255, 255]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kind": "stain", "model": {"algorithm": "w_cyclegan_gp"}}, "not a run that makes cells"),
        ({"kind": "classification", "model": {"name": "senet_tiny_ge"}}, "not a run that makes cells"),
        ({"kind": "conditional"}, "damaged .'cell_types'.: train again"),
        ({"kind": "few_shot", "cell_types": []}, "damaged .'storage'.: train again"),
        (None, "no config.yaml there"),
    ],
)
def test_a_run_of_another_kind_is_one_line(tmp_path: Path, content: object, words: str) -> None:
    if content is not None:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=words):
        load_sampler(tmp_path)


@pytest.mark.parametrize("changes", [{"count": 0}, {"count": -1}])
def test_a_number_that_cannot_be_is_named(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))}=.*at least 1"):
        SynthesizeConfig(**changes)  # type: ignore[arg-type]
