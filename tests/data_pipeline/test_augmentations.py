"""If these fail, a new augmentation is more than one file, or its draws depend on more than seed and position."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipeline.catalog import Dataset
from data_pipeline.stream.augment import AugmentConfig, draw_parameters, setting_fields
from data_pipeline.stream.augmentations import Augmentation, register, registered
from tests.launching import ROOT

BLOT = '''"""Blots."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.randomness import uniform
from data_pipeline.stream.augmentations import Augmentation, Parameters, register


@register("blot", order=30)
@dataclass(frozen=True)
class Blot(Augmentation):
    """Blots images out."""

    blots: float = 0.0  # fraction of the images

    @property
    def active(self) -> bool:
        return self.blots > 0

    def draw(self, key: int, positions: npt.NDArray[np.int64], image_size: int) -> Parameters:
        return {"kept": (uniform(key, positions, 1)[:, 0] >= self.blots).astype(np.float32)}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        return images * given["kept"]
'''
# What a user writes to look at the images of the same configuration that the launcher trained on.
SHOW = """
import sys
import numpy as np
from data_pipeline.catalog import Dataset
from data_pipeline.stream.augment import draw_parameters
from data_pipeline.stream.stream import Stream
from launchers.console import read_config
from trainer.tasks.classification.config import ClassifierRunConfig

data = read_config(ClassifierRunConfig, "train_classifier", sys.argv[1:]).data
dataset = Dataset.open(sys.argv[1].split("=")[1])
types = ("basophil", "eosinophil", "lymphocyte")
stream = Stream(dataset, data, splits=["train"], cell_types=types, global_batch=40, seed=3, training=True)
part = next(stream.read())
drawn = draw_parameters(data.augment.operations, 3, part.positions, data.image_size)["blot.kept"] == 1
seen = part.images.amax(dim=(1, 2, 3)).numpy() > -1
assert np.array_equal(seen, drawn), (seen, drawn)
print("blotted", int((~seen).sum()))
"""


def run(folder: Path, *arguments: str) -> str:
    """Output of Python with these arguments in a copy of the project."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project with one more module and one more YAML file."""
    for name in ("configs", "data_pipeline", "launchers", "models", "trainer"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data_pipeline/stream/augmentations/blot.py").write_text(BLOT)
    (tmp_path / "configs/data/augment/blot.yaml").write_text("blots: 0.5\n")
    return tmp_path


def test_a_new_augmentation_is_one_module_and_one_yaml(copy: Path, tiny_dataset: Dataset) -> None:
    listed = run(copy, "launchers/train_classifier.py", "--help")
    assert "blot (Blots images out): blots=0.0" in " ".join(listed.split())
    arguments = (f"shards={tiny_dataset.root}", "data/augment=blot", "data.image_size=16", "data.augment.rotation=0")
    blotted = int(run(copy, "-c", SHOW, *arguments).removeprefix("blotted "))
    assert 10 < blotted < 30  # of 40
    run(
        copy,
        "launchers/train_classifier.py",
        *(*arguments, "run=run", "model=senet_tiny_ge", "train.epochs=1", "train.iterations_per_epoch=2"),
        "train.global_batch=8",
    )
    assert yaml.safe_load((copy / "run/config.yaml").read_text())["data"]["augment"]["blots"] == 0.5
    assert "blots" in (copy / "run/model_card.md").read_text()


def test_every_draw_depends_on_seed_and_position_alone() -> None:
    """Else another number of processes, or a restart, would train on other images."""
    config = AugmentConfig(**preset("laboratory"))
    assert [type(each) for each in config.operations] == list(registered())
    together = draw_parameters(config.operations, 4, np.arange(100, 140), 64)
    apart = [draw_parameters(config.operations, 4, np.arange(first, first + 1), 64) for first in range(100, 140)]
    for name, values in together.items():
        assert np.array_equal(values, np.concatenate([each[name] for each in apart]))
        assert not np.array_equal(values[:20], values[20:])
        assert not np.array_equal(values, draw_parameters(config.operations, 5, np.arange(100, 140), 64)[name])


@pytest.mark.parametrize(
    ("name", "active"),
    [
        ("none", []),
        ("flip", ["geometry"]),
        ("quarter_turns", ["geometry"]),
        ("geometry", ["geometry"]),
        ("stain", ["geometry", "stain"]),
        ("laboratory", ["geometry", "background", "stain", "blur", "camera", "noise", "compression", "cutout"]),
    ],
)
def test_a_preset_is_drawn_as_it_says(name: str, active: list[str]) -> None:
    assert [each.name for each in AugmentConfig(**preset(name)).operations] == active


def preset(name: str) -> dict[str, Any]:
    """The settings of `data/augment=NAME`."""
    return yaml.safe_load((ROOT / "configs/data/augment" / f"{name}.yaml").read_text()) or {}


def test_two_augmentations_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"augmentation 'stain': registered by data_pipeline\..*\.stain already"):
        register("stain", order=1)(Augmentation)


def test_two_augmentations_with_one_key_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one value of the command line would set both."""
    monkeypatch.setattr("data_pipeline.stream.augment.registered", lambda: (*registered(), registered()[0]))
    with pytest.raises(ValueError, match=r"data\.augment\.flip: a setting of geometry and geometry"):
        list(setting_fields())
