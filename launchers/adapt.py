"""Adapt a trained classifier to a laboratory's own images, labelled or not, and say whether that helps.

usage:
  python launchers/adapt.py run=DIR out=DIR [images=FOLDER] [labelled=PATH] [method=NAME]
      run=DIR         a run of train_classifier.py; run=shipped: the classifier of the installation
      out=DIR         the new run, to predict, score and export with; it appears when it is complete
      images=FOLDER   unlabelled images of the laboratory, at any depth; or fields with boxes (Annotations/*.xml)
      labelled=PATH   labelled cells, 5 to 20 of each type: a folder with one sub-folder per type and in it one for each
                      patient or slide, a CSV table image,label[,patient,slide], or fields with boxes named after types.
                      Types that the run does not know are added. labels=MAPPING: a CSV label,cell_type for other names
      shards=DIR [domain=NAME]   in place of both: the training split of a data set of build_shards.py, whose test split
                      evaluate.py then scores
      method=NAME     as_is; with unlabelled images self_training (the last layer, on confident answers, as many of each
                      type) and statistics (batch norm's, of a balanced mix of predicted types, mixed with the run's);
                      with labelled cells head (the last layer, kept near the run's) and all (all layers).
                      Default: with labelled cells head, unless cross-validation finds another method better beyond
                      chance; without them self_training where 40 images name three types, most answers stay and
                      mirrored and turned views agree no less, else statistics if they then agree more, else as_is
      steps=100 learning_rate=3e-4   of training all layers (defaults): optimiser steps, and the peak
  It prints the choice ("use as is" or "adapt"), what that rests on, and which types to label more cells of.
  The same stands, with the scores of every method, in DIR/adaptation.json and DIR/report.html. What the run keeps of
  its training images stands beside the laboratory's, for all layers these images (if its data set is at hand): so it
  forgets less. Types without a labelled cell keep their part of the last layer. The new run tells unfamiliar images and
  sets of types by the labelled cells that were held out, or, without 20 of them, by the validation images of the run
  that was adapted.

example:
  python launchers/adapt.py run=shipped images=slides/today out=runs/our_lab
  python launchers/adapt.py run=runs/barcelona images=slides/today labelled=slides/labelled out=runs/our_lab
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import join_alone, launch, read_config
from trainer.runs.run_directory import read_run_config
from trainer.runs.shipped import run_or_shipped
from trainer.tasks.classification.adaptation.config import AdaptConfig


def main(arguments: Sequence[str]) -> None:
    config = read_config(AdaptConfig, "adapt", arguments)
    if not (config.run and config.out) or not (config.images or config.labelled or config.shards):
        raise UserError("adapt.py needs run=DIR, out=DIR, and images=FOLDER, labelled=PATH or shards=DIR")
    if config.shards and (config.images or config.labelled):
        raise UserError("adapt.py takes shards=DIR, or images=FOLDER and labelled=PATH, not both")
    config.require_dataset()
    read_run_config(run_or_shipped(config.run))
    for path in (config.images, config.labelled):
        if path and not Path(path).exists():
            raise UserError(f"{path}: no such file or folder; correct images= or labelled=")
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.tasks.classification.adaptation.adapt import adapt
    from trainer.tasks.classification.reports.adaptation_record import read_adaptation

    topology = join_alone("adapt.py")
    out = adapt(config, topology)
    adaptation = read_adaptation(out)
    assert adaptation is not None
    print("\n".join([*adaptation.advice, str((out / "report.html").resolve())]))


if __name__ == "__main__":
    launch(main, __doc__)
