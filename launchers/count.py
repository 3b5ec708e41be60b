"""From fields of a smear, or images of single cells, to a differential count of each patient or slide.

usage:
  python launchers/count.py run=CLASSIFIER fields=FOLDER out=DIR [detector=RUN] [patients=CSV] [reference=CSV]
  python launchers/count.py run=CLASSIFIER images=FOLDER out=DIR [patients=CSV] [reference=CSV]
      run=CLASSIFIER    names the cells: a run of train_classifier.py, several, or an export, as in predict.py; default:
                        the classifier that comes with the installation
      fields=FOLDER     fields of view, at any depth, in which white cells are found and cut out
      detector=RUN      finds them: a run of train_detector.py; default: classical, by the optical density of nuclei,
                        which needs no training
      side_microns=N microns_per_pixel=N   cells are cut in squares of this side, as of build_shards.py fields=
      images=FOLDER     images of single cells instead
      patients=CSV      image,patient: whose each image is; paths count from the folder. Images that are not in it are
                        not counted. Without it the first sub-folder is the patient or slide, and without sub-folders
                        all images are of one
      reference=CSV     cell_type,low,high: the laboratory's reference ranges, in per cent of white cells
      domain=NAME   views=1   as in predict.py
      min_confidence=0.8    cells named with less are marked for a person to look at
      out=DIR           receives differential.csv, report.html, and what predict.py writes
  White cells are all but erythroblasts, platelets and smudge cells, which are given per 100 white cells. Shares have
  Wilson's intervals (the counting error). Beside them stand shares corrected by the confusion matrix of the run's test
  images, with intervals for both errors. Fewer than 100, and fewer than 200, white cells are warned about (CLSI
  H20-A2).

example:
  python launchers/count.py run=runs/barcelona detector=runs/detector fields=slides/today out=counts/today
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.sources.declaration import check_scale
from launchers.console import join_alone, launch, read_config
from trainer.learners.choices import ViewCount
from trainer.runs.arguments import one_or_more
from trainer.runs.run_directory import read_run_config, require_classifier
from trainer.runs.shipped import run_or_shipped

CLASSICAL = "classical"


@dataclass(frozen=True)
class CountConfig:
    """What is counted, and where the count is written."""

    run: str | None = None  # a folder, or [A,B]: several
    fields: str | None = None
    images: str | None = None
    detector: str = CLASSICAL
    out: str | None = None
    patients: str | None = None
    reference: str | None = None
    domain: str | None = None
    views: ViewCount = 1
    min_confidence: float = 0.8
    side_microns: float | None = None
    microns_per_pixel: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence={self.min_confidence}: must be a probability, from 0 to 1")
        if self.side_microns is not None and (not self.fields or self.microns_per_pixel is None):
            raise ValueError("side_microns= goes with fields= and microns_per_pixel=, of these fields")
        check_scale(self.side_microns, self.microns_per_pixel)


def main(arguments: Sequence[str]) -> None:
    config = read_config(CountConfig, "count", arguments)
    folder = config.fields or config.images
    if not folder or not config.out or (config.fields and config.images):
        raise UserError("count.py needs out=DIR, and fields=FOLDER or images=FOLDER, one of them")
    runs = [run_or_shipped(run) for run in one_or_more(config.run or "shipped", "run")]
    for run in runs:
        require_classifier(run)
    if config.detector != CLASSICAL:
        read_run_config(Path(config.detector))
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder; correct fields= or images=")
    _count(config, runs, Path(folder), Path(config.out))


def _count(config: CountConfig, runs: Sequence[Path], folder: Path, out: Path) -> None:
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.tasks.classification.inference.counting import (
        CountOptions,
        count_fields,
        count_images,
        read_groups,
        read_ranges,
    )
    from trainer.tasks.classification.inference.prediction import PredictOptions
    from trainer.tasks.detection.finding import find_in_fields
    from trainer.tasks.detection.load import load_detector
    from trainer.tasks.detection.nuclei import NucleusFinder

    topology = join_alone("count.py")
    ranges = read_ranges(Path(config.reference)) if config.reference else {}
    groups = read_groups(folder, Path(config.patients) if config.patients else None)
    prediction = PredictOptions(config.domain, config.views, config.min_confidence)
    options = CountOptions(prediction, groups, ranges, config.side_microns)
    if config.images:
        count_images(runs, folder, out, options, topology)
        return
    finder = NucleusFinder() if config.detector == CLASSICAL else load_detector(Path(config.detector))
    fields, unreadable = find_in_fields(finder, folder, config.microns_per_pixel)
    for path, reason in unreadable.items():
        print(f"{path}: {reason}", file=sys.stderr)
    count_fields(runs, folder, fields, out, options, topology)


if __name__ == "__main__":
    launch(main, __doc__)
