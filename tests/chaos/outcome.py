"""What a command has left, against what an undisturbed one leaves; and whether what lies there can be read.

Everything must be equal, byte for byte, but for what tells of the way there:
- times and speeds (`seconds`, `images_per_second`, `data_wait`) in metrics.jsonl, and minutes and the figure of speed
  in the report;
- build_report.json, which tells of the last build: what an earlier one had done is not its work;
- TensorBoard's event files, which hold the times of their records and have the process in their names: the numbers in
  them are compared, except times and speeds;
- what Ray writes and logs of stages, seconds and dates of a sweep's trials.
"""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.banks.image_bank import MANIFEST_FILE, ImageBank
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.shards.store import CATALOG_FILE
from data_pipeline.shards.verify import verify_dataset
from tests.chaos.commands import Command

_SPEEDS = ("seconds", "images_per_second", "data_wait")
_SPEED_FIGURE = re.compile(r"<svg(?:(?!</svg>).)*throughput(?:(?!</svg>).)*</svg>", re.DOTALL)
_MINUTES = re.compile(r"[0-9.,]+ (minutes|seconds|s)\b")
# Locks stay, empty, for the next one to hold.
_PASSED_OVER = re.compile(r"(.*/)?(\.lock|[^/]+\.lock|build_report\.json)|out/(tune|stages/[^/]+\.log)(/.*)?")


def contents(place: Path) -> dict[str, Any]:
    """What lies below a folder, by its relative path: bytes, or what counts of them."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if not path.is_file() or _PASSED_OVER.fullmatch(name):
            continue
        if path.parent.name == "tensorboard":
            board = f"{path.parent.relative_to(place).as_posix()}/numbers"
            found[board] = [*found.get(board, []), _numbers(path)]
        else:
            found[name] = _what_counts(path)
    return found


def _what_counts(path: Path) -> Any:
    content = path.read_bytes()
    if path.name in ("metrics.jsonl", "trials.jsonl"):
        return [_without_speeds(json.loads(line)) for line in content.decode().splitlines()]
    if path.name.endswith(".ended.json") or path.name == "results.json":
        return _without_speeds(json.loads(content))
    if path.name == "table.csv":
        rows = csv.DictReader(content.decode().splitlines())
        return [_without_speeds(row) for row in rows]
    if path.name == "report.html":
        return _MINUTES.sub("", _SPEED_FIGURE.sub("", content.decode()))
    return content


def _without_speeds(record: Any) -> Any:
    if isinstance(record, dict):
        return {name: _without_speeds(value) for name, value in record.items() if name not in _SPEEDS}
    return [_without_speeds(value) for value in record] if isinstance(record, list) else record


def _numbers(path: Path) -> list[tuple[str, int, float]]:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        (value.tag, event.step, value.tensor.float_val[0])
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if not value.tag.endswith(_SPEEDS)
    ]


def differences(place: Path, calm: Path) -> list[str]:
    """One line for each file that is missing, left over or different."""
    found, expected = contents(place), contents(calm)
    lost = [f"{name}: missing" for name in expected.keys() - found.keys()]
    left = [f"{name}: left over" for name in found.keys() - expected.keys()]
    other = [f"{name}: differs" for name in found.keys() & expected.keys() if found[name] != expected[name]]
    return sorted(lost + left + other)


def unreadable(command: Command, root: Any) -> list[str]:
    """What of a command's output cannot be read at this moment, between two launches. root: where it lies now."""
    readers: dict[str, Callable[[Command, Any], None]] = {
        "data set": _read_dataset,
        "run": _read_run,
        "bank": _read_bank,
        "sweep": _read_sweep,
    }
    try:
        readers.get(command.kind, _appears_whole)(command, root)
    except UserError as error:
        return [str(error)]
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def _read_dataset(command: Command, root: Any) -> None:
    if isinstance(root, Path) and not (root / CATALOG_FILE).exists():
        assert command.before is None, "the data set is gone"
        return
    verify_dataset(root, progress=False)
    known = [folder for folder in (command.before, command.calm / "out") if folder is not None]
    hashes = [Dataset.read_catalog(folder).content_hash for folder in known if (folder / CATALOG_FILE).exists()]
    assert Dataset.read_catalog(root).content_hash in hashes, "neither the old data set nor the new one"


def _read_run(command: Command, root: Path) -> None:
    from trainer.loop.checkpoint import CheckpointStore
    from trainer.loop.log import read_records
    from trainer.metrics.evaluation import load_evaluations
    from trainer.runs.run_directory import CONFIG_FILE, read_run_config
    from trainer.tasks.classification.uncertainty.calibration import FILE, load_calibration
    from trainer.tasks.classification.uncertainty.reference import load_reference

    for config in root.rglob(CONFIG_FILE):
        read_run_config(config.parent)
    for folder in root.rglob("checkpoints"):
        store = CheckpointStore(folder)
        for checkpoint in (store.latest(), store.best()):
            if checkpoint is not None:
                checkpoint.load()
        read_records(folder.parent)
    if (root / FILE).exists():
        load_calibration(root, "")
    load_reference(root, "")
    for evaluation in load_evaluations(root):
        assert command.launcher != "evaluate" or evaluation.predictions is not None, "no predictions beside the scores"


def _read_bank(command: Command, root: Path) -> None:
    if command.before is None and not (root / MANIFEST_FILE).exists():
        return
    bank = ImageBank.open(root)
    bank.images(range(len(bank)))
    bank.latents(range(len(bank)))


def _read_sweep(command: Command, root: Path) -> None:
    for folder in root.rglob("checkpoints"):
        _read_run(command, folder.parent)
    for ending in root.rglob("*.ended.json"):
        json.loads(ending.read_text())
    if (root / "trials.jsonl").exists():
        for line in (root / "trials.jsonl").read_text().splitlines():
            json.loads(line)


def _appears_whole(command: Command, root: Path) -> None:
    """Each file of the output that is there is as it will be at the end, for nothing says that it is not."""
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden:
            expected = command.calm / "out" / path.relative_to(root)
            assert path.read_bytes() == expected.read_bytes(), f"{path}: half-written"
