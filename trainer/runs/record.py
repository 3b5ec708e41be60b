"""What a run's config.yaml says: its settings, and facts of its data set."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings
from trainer.runs import registry
from trainer.runs.config import RunConfig
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config, write_run_config

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class RunRecord(Generic[Config]):
    """A run's config.yaml: its settings, and facts of its data set."""

    config: Config
    kind: str
    cell_types: tuple[str, ...]
    dataset_hash: str
    storage: ShardSettings  # codec and size of stored images; raw images get them, too, before prediction
    domain: str  # stain of generated images; empty for other tasks
    normalizer: str | None  # file of the normaliser in the run, for raw images; None: not normalised

    def write(self, run: Path) -> None:
        facts = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "config"}
        facts |= {"cell_types": list(self.cell_types), "storage": dataclasses.asdict(self.storage)}
        settings = dataclasses.asdict(self.config)
        # What a launcher's own config adds is no setting of the run.
        known = {each.name for each in dataclasses.fields(registry.task(self.kind).config)}
        write_run_config(run, {name: value for name, value in settings.items() if name in known} | facts)

    @classmethod
    def read(cls, run: Path, kind: str | None = None) -> "RunRecord[Any]":
        """Read a run's config.yaml. UserError if the folder holds no run, or one of another kind than `kind`."""
        path, content = run / CONFIG_FILE, read_run_config(run)
        found = str(content.pop("kind", ""))
        if kind is not None and found != kind:
            older = "" if found else ", or one of an older version"
            raise UserError(f"{run}: not a run of {registry.task(kind).launcher}{older}: give the folder of one")
        task = registry.task(found, str(path))
        try:
            facts = {
                "cell_types": tuple(content.pop("cell_types")),
                "storage": ShardSettings(**content.pop("storage")),
                **{name: content.pop(name) for name in ("dataset_hash", "domain", "normalizer")},
            }
        except (KeyError, TypeError) as error:
            raise UserError(f"{path}: written by an older version, or damaged ({error}): train again") from error
        config = typed(task.config, content, str(path))
        return cls(config=config, kind=found, **facts)
