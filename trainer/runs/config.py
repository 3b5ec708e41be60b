"""The settings that every run has, and which of them results depend on."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from data_pipeline.dataset_config import AFFECTS_NOTHING, DatasetConfig
from data_pipeline.stream.config import StreamConfig
from trainer.loop.fit_config import FitConfig


@dataclass(frozen=True)
class RunConfig(DatasetConfig):
    """Settings of one training; a task's own config adds its model and more.

    shards, cache, cache_size: see DatasetConfig. run: directory that the run is written to.
    """

    kind: ClassVar[str]  # folder of the task in trainer/tasks
    run: str | None = field(default=None, metadata=AFFECTS_NOTHING)
    seed: int = 0
    data: StreamConfig = field(default_factory=StreamConfig)
    train: FitConfig = field(default_factory=FitConfig)


def fingerprint(config: Any, facts: Mapping[str, str], *stages: str) -> dict[str, str]:
    """What a checkpoint must have been made with to be resumed: settings that affect all of a run, and `facts`.

    Keys are the settings' keys, values their text. stages: settings that affect one of these count too: "adaptation",
    "result".
    """
    return dict(facts) | {key: str(value) for key, value, affects in _settings(config) if affects in ("all", *stages)}


def _settings(config: Any, prefix: str = "", affects: str = "all") -> Iterator[tuple[str, Any, str]]:
    """Key, value and what it affects, of each setting."""
    for each in dataclasses.fields(config):
        value, part = getattr(config, each.name), each.metadata.get("affects", affects)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{prefix}{each.name}.", part)
        else:
            yield f"{prefix}{each.name}", value, part
