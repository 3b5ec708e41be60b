"""If these fail, a preset repeats a default, and would keep the old value when the default changes."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from data_pipeline.errors import UserError
from launchers.console import CONFIGS
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.runs.configuration import typed
from trainer.runs.registry import algorithm_class
from trainer.tasks.detection.config import DetectorRunConfig

KINDS: dict[str, type] = LAUNCHER_CONFIGS | {"train_detector": DetectorRunConfig}
TRAININGS = sorted(name for name in KINDS if name.startswith("train_"))
# What says which network or algorithm a file is of.
NAMES = ("model.name", "model.algorithm")


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def default_of(kind: type, key: str) -> Any:
    value = kind()
    for name in key.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def repeated(content: dict[str, Any] | None, kind: type, prefix: str = "") -> list[str]:
    settings = {key: value for key, value in (content or {}).items() if key != "defaults"}
    return [key for key, value in leaves(settings, prefix) if key not in NAMES and value == default_of(kind, key)]


def fits(content: dict[str, Any], kind: type) -> bool:
    """Whether a file of `model=` holds a model of this kind of run."""
    try:
        typed(type(default_of(kind, "model")), content.get("model", content), "model")
    except UserError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_a_model_s_file_holds_what_differs_from_the_defaults(name: str) -> None:
    content = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())
    found = [training for training in TRAININGS if fits(content, KINDS[training])]
    assert len(found) == 1, "each file is a model of one launcher"
    whole = content if "model" in content else {"model": content}  # some are more than a model
    own = whole["model"].pop("options", {})  # of the algorithm's file
    assert repeated(whole, KINDS[found[0]]) == []
    if own:
        defaults = algorithm_class(KINDS[found[0]].kind, whole["model"]["algorithm"]).Options()
        assert [key for key, value in own.items() if value == getattr(defaults, key)] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "data/augment").glob("*.yaml")))
def test_an_augmentation_s_file_holds_what_differs_from_the_defaults(name: str) -> None:
    content = yaml.safe_load((CONFIGS / "data/augment" / f"{name}.yaml").read_text())
    assert repeated(content, KINDS["train_classifier"], "data.augment.") == []


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_launcher_s_file_holds_what_differs_from_the_defaults(name: str) -> None:
    assert repeated(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), KINDS[name]) == []
