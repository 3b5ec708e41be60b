"""Look for leaks: whether anything that is held out for scores is, or is like, anything that trains.

usage:
  python launchers/audit.py shards=DIR [run=RUN] [out=FILE.json]
      shards=DIR    the data set, a folder or a URL (cache=DIR cache_size=GB); default: the one of the run's training
      run=RUN       a run of train_classifier.py: each of its evaluation records is looked up too, and held against
                    what the run and all that it began with learned from, which RUN/learned.parquet tells
      out=FILE      receives the result as JSON: every image concerned, sizes and encodings of all
      workers=N     processes that look at images; without it as many as OMP_NUM_THREADS and this process's share of
                    the cores allow, and never more
  Prints a line for each check: groups, near duplicates (mirrored and turned ones too) and parents across splits,
  synthetic and label-normalised images held out, generators that were trained on held-out images or chosen by test
  images, splits that are not their group's, how images are stored; for each evaluation record, whether its images are
  real, of the split that it names, and neither seen by the run nor copies of seen ones (other sizes, mirrored).
  Exit code 0: clean. 1: something was found, or could not be checked. 2: a mistake in the arguments or the files.

example:
  python launchers/audit.py shards=data/blood run=runs/barcelona out=audit.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.threads import usable_workers
from launchers.console import launch, read_config
from trainer.runs.run_directory import read_run_config

if TYPE_CHECKING:
    from data_pipeline.audit_check import Check
    from data_pipeline.catalog import Dataset


@dataclass(frozen=True)
class AuditConfig(DatasetConfig):
    """What to look for leaks in."""

    run: str | None = None
    out: str | None = None
    workers: int | None = None


def main(arguments: Sequence[str]) -> None:
    config = read_config(AuditConfig, "audit", arguments)
    if not config.shards and not config.run:
        raise UserError("audit.py needs shards=DIR, a data set, or run=RUN, a run of train_classifier.py")
    if not is_clean(config):
        sys.exit(1)


def is_clean(config: AuditConfig) -> bool:
    """Whether nothing is found, and all could be checked; a line for each check is printed, config.out is written."""
    if config.out and not Path(config.out).absolute().parent.is_dir():
        raise UserError(f"{config.out}: its folder is not there; make it, or name another out=FILE")
    config.require_dataset()
    if config.run:
        read_run_config(Path(config.run))
    # Here, for neither --help nor a mistake need wait for what looks at images.
    from data_pipeline.audit import audit_dataset
    from data_pipeline.audit_check import record_of

    dataset, checks = _audit_run(config) if config.run else (config.open_dataset(), [])
    about: dict[str, Any] = {"data_set": None, "run": config.run}
    stored: dict[str, Any] = {}
    if dataset is not None:
        of_data, stored = audit_dataset(dataset, workers=usable_workers(config.workers))
        checks = of_data + checks
        about["data_set"] = {"path": dataset.address, "content_hash": dataset.content_hash}
    record = record_of(checks, about) | {"stored": stored}
    if config.out:
        replace_through(Path(config.out), (json.dumps(record, indent=1) + "\n").encode())
    for check in checks:
        print(check.line)
    return bool(record["clean"])


def _audit_run(config: AuditConfig) -> tuple[Dataset | None, list[Check]]:
    """The data set that is named, else the run's own where it is there, and the checks of the run's records."""
    # Here, for the processes that look at images import this file too, and need no network.
    from data_pipeline.audit_check import Check
    from data_pipeline.catalog import Dataset
    from trainer.runs.audit import audit_run
    from trainer.runs.record import RunRecord

    folder, cache = Path(str(config.run)), config.shard_cache()
    run = RunRecord.read(folder, "classification")
    dataset, gone = None, []
    try:
        dataset = config.open_dataset(run.config)
    except UserError as error:
        if config.shards:
            raise
        gone.append(Check("data set", "data set that the run was trained on", 0, unknown=str(error)))
    return dataset, gone + audit_run(folder, dataset, lambda root: Dataset.read_catalog(root, cache))


if __name__ == "__main__":
    launch(main, __doc__)
