"""The classifier that comes with the installation, if one does."""

from pathlib import Path

from data_pipeline.errors import UserError
from trainer.runs.run_directory import CONFIG_FILE

# Written by export.py format=safetensors; a compact run.
SHIPPED = Path(__file__).resolve().parents[1] / "tasks" / "classification" / "shipped"


def run_or_shipped(run: str) -> Path:
    """The folder that `run=` names; for 'shipped' that of the shipped classifier. UserError where none is shipped."""
    if run != "shipped":
        return Path(run)
    if not (SHIPPED / CONFIG_FILE).exists():
        raise UserError("no classifier is shipped with this version: give run=DIR of train_classifier.py or export.py")
    return SHIPPED
