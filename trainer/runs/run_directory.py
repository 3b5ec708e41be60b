"""What every run directory begins with (contract C2): its resolved configuration, and what may not change in it."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError

CONFIG_FILE = "config.yaml"
# In a folder that export.py wrote, what the model is.
DESCRIPTION = "model.json"

# Settings that change neither what is learned nor the order of the samples, so a run may go on with others.
FREE_SETTINGS = frozenset(
    {
        "shards",
        "cache",
        "cache_size",
        "seen_images",
        "run",
        "data.threads",
        "data.prefetch",
        "train.checkpoint_activations",
        "train.compile",
        "train.engine",
        "train.micro_batch",
        "train.find_micro_batch",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.log_every",
        "train.patience",
    }
)


def settings(config: Any, kind: type, order: str | None) -> dict[str, Any]:
    """The configuration as plain values, without what a subclass of `kind` adds for its launcher.

    order: what the run's stream has made of data.order.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    values = dataclasses.asdict(config)
    values["data"]["order"] = order
    return {name: values[name] for name in names}


def fingerprint(values: Mapping[str, Any], facts: Mapping[str, str], free: Collection[str] = ()) -> dict[str, Any]:
    """What a checkpoint of the run must have been made with: the settings that are not free, and `facts`."""
    flat: dict[str, Any] = dict(facts)
    for section, value in values.items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        flat |= {f"{section}.{name}".rstrip("."): str(entry) for name, entry in entries}
    return {key: value for key, value in flat.items() if key not in FREE_SETTINGS and key not in free}


def write_run_config(run: Path, content: Mapping[str, Any]) -> None:
    """Write `config.yaml`, whole or not at all."""
    run.mkdir(parents=True, exist_ok=True)
    replace_through(run / CONFIG_FILE, yaml.safe_dump(with_checksum(content), sort_keys=False).encode())


def read_run_config(run: Path) -> dict[str, Any]:
    """A run's `config.yaml`. UserError where the folder is no run, or the file is damaged."""
    path = run / CONFIG_FILE
    if not path.exists():
        raise UserError(f"{run}: no {CONFIG_FILE} there, so no run: give run=DIR of a launcher that trains")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not written by a launcher that trains")
        return checked(content)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]})") from error


def require_classifier(folder: Path) -> None:
    """UserError where a folder is neither a run nor one that export.py wrote."""
    if not (folder / DESCRIPTION).exists():
        read_run_config(folder)
