"""Which model this machine can train in a day, by counted operations, if the chosen one takes longer."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from trainer.loop.forecast import DAY, span
from trainer.runs.configuration import typed

MODELS = Path(__file__).resolve().parents[4] / "configs" / "model"
# Cells of this size are told apart well by the small models, which are made for it.
_SMALL_IMAGES = 96


@dataclass(frozen=True)
class Choice:
    """A model that could be trained instead. arguments: that select it. seconds: estimated training time."""

    arguments: str
    seconds: float


def advise_model(config: ClassifierConfig, types: int, image_size: int, seconds: float) -> str:
    """A sentence that proposes a model that trains within a day, in place of `config`, which takes `seconds`.

    The largest of several; SENets, the thesis's kind, before all others. The training time is assumed to be
    proportional to the operations of a forward pass.
    """
    per_operation = seconds / count_operations(config, types, image_size)
    models = list(trained_models())
    kinds = [[named for named in models if (named[1].architecture == "senet") is ours] for ours in (True, False)]
    choices: list[Choice] = []
    for size in dict.fromkeys((image_size, min(image_size, _SMALL_IMAGES))):
        at_size = "" if size == image_size else f" data.image_size={size}"
        for kind in kinds:
            choices += [
                Choice(f"model={name}{at_size}", per_operation * count_operations(model, types, size))
                for name, model in kind
            ]
            fitting = [choice for choice in choices if choice.seconds <= DAY]
            if fitting:
                return _told(max(fitting, key=lambda choice: choice.seconds))
    return _told(min(choices, key=lambda choice: choice.seconds))


def _told(choice: Choice) -> str:
    return (
        f"That is more than a day on this CPU: {choice.arguments} would take about {span(choice.seconds)}, by counted "
        "operations. This run continues; if you stop it, the same command resumes it from its newest checkpoint"
    )


def trained_models() -> Iterator[tuple[str, ClassifierConfig]]:
    """The classifiers of configs/model that are trained in steps: name (model=NAME) and configuration."""
    for path in sorted(MODELS.glob("*.yaml")):
        content: dict[str, Any] = yaml.safe_load(path.read_text())
        model = content.get("model", content)  # some files are more than a model
        if "algorithm" not in model and model.get("architecture") not in ("naive_bayes", "frozen"):
            yield path.stem, typed(ClassifierConfig, content, str(path))


def count_operations(config: ClassifierConfig, types: int, image_size: int) -> int:
    """Floating-point operations of a forward pass of one image: those of matrix products and convolutions."""
    with torch.device("meta"):
        network = build_classifier(replace(config, weights=None), types, image_size).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.empty(1, 3, image_size, image_size))
    return counter.get_total_flops()
