"""What a run learned from and was chosen by, itself and through the runs that it began with."""

import sys
from collections.abc import Callable
from pathlib import Path

from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import SeenChoice
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages, SeenImages
from trainer.loop.checkpoint import CheckpointStore
from trainer.runs import registry
from trainer.runs.record import RunRecord
from trainer.runs.run_directory import CONFIG_FILE, read_run_config


def learned_at_start(run: Path, dataset: Dataset, compute: Callable[[], LearnedImages]) -> LearnedImages:
    """The images that a run trains on: of a resumed run from its file, else from `compute`."""
    begun = CheckpointStore(run / "checkpoints").latest() is not None and (run / FILE).exists()
    if begun and read_run_config(run).get("dataset_hash") == dataset.content_hash:
        return LearnedImages.load(run / FILE)
    return compute()


def learned_by_weights(weights: str | None) -> LearnedImages:
    """What `model.weights=` learned from; timm's weights have seen no blood cells. A file may lie in a run's folder."""
    if weights is None or weights == "pretrained":
        return LearnedImages()
    path, name = Path(weights).resolve(), f"{weights} (model.weights=)"
    for folder in (path, *path.parents[:2]):
        if (folder / FILE).exists() or (folder / CONFIG_FILE).exists():
            return learned_by_run(folder).through(name)
    reason = "a file of weights says nothing of the images that it learned from"
    return LearnedImages.unknown_because(reason).through(name)


def learned_by_run(run: Path) -> LearnedImages:
    """The images that a run was trained on: from the file that it saved at its start, else from its data set.

    UserError if the folder is no run.
    """
    if (run / FILE).exists():
        return LearnedImages.load(run / FILE)
    record, lost = RunRecord.read(run), f"its {FILE} is missing"
    address = record.config.shards
    try:
        dataset = Dataset.read_catalog(str(address))
    except UserError:
        return LearnedImages.unknown_because(f"{lost}, and its data set is not at {address}")
    if dataset.content_hash != record.dataset_hash:
        return LearnedImages.unknown_because(f"{lost}, and its data set {dataset.address} has changed since")
    return registry.task(record.kind).learned(record.config, dataset, record.cell_types)


def unseen(
    learned: LearnedImages, dataset: Dataset, ids: list[str], choice: SeenChoice, place: str, remedy: str
) -> SeenImages:
    """Which of these images may not be scored. UserError where `choice` is to refuse them, or none would be left."""
    seen = learned.seen_among(dataset, ids)
    seen.require_unseen(choice, f"{place} of {dataset.root}", remedy)
    return seen


def say(seen: SeenImages, what: str) -> None:
    """Tell the user what a score leaves out, and what about it could not be checked."""
    if seen.through:
        print(
            f"{what}: {len(seen.through)} of {seen.count} images left out, seen before ({seen.words})", file=sys.stderr
        )
    for line in seen.unchecked:
        print(f"{what}: not checked whether all images are unseen: {line}", file=sys.stderr)
