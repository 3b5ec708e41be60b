"""The classifier that comes with the installation."""

from pathlib import Path

from data_pipeline.errors import UserError
from trainer.runs.run_directory import CONFIG_FILE

# Written by export.py format=safetensors; a compact run.
SHIPPED = Path(__file__).resolve().parents[1] / "tasks" / "classification" / "shipped"


def run_or_shipped(run: str | None) -> Path:
    """The folder that `run=` names; that of the shipped classifier for 'shipped' or none. UserError where it lacks."""
    if run not in (None, "", "shipped"):
        return Path(str(run))
    if not (SHIPPED / CONFIG_FILE).exists():
        raise UserError("no classifier is shipped with this version: give run=DIR of train_classifier.py or export.py")
    return SHIPPED
