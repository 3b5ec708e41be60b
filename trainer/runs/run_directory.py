"""The file every run directory begins with: its resolved configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError

CONFIG_FILE = "config.yaml"
# In a folder that export.py wrote, what the model is.
DESCRIPTION = "model.json"


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
        raise UserError(
            f"{path}: damaged ({str(error).splitlines()[0]}): bring back the file that was written there"
        ) from error


def require_classifier(folder: Path) -> None:
    """UserError where a folder is neither a run nor one that export.py wrote."""
    if not (folder / DESCRIPTION).exists():
        read_run_config(folder)
