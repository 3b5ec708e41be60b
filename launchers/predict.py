"""Predict the cell type of raw images with a trained classifier.

usage:
  python launchers/predict.py images=PATH out=DIR [run=DIR] [domain=NAME] [views=8] [min_confidence=0.9]
      [coverage=0.9]
      run=DIR       a run of train_classifier.py, whose best checkpoint is used; or a folder that export.py wrote.
                    run=[A,B,C]: runs that answer together, by the mean of their probabilities; image sizes, crops,
                    normalisers and training data may differ, the cell types may not.
                    Without it (or run=shipped) the classifier that comes with the installation
      views=1       answers for so many views of each image, and takes their mean: 2, it and its mirror image; 4, both
                    upside down too; 8, all turned by a quarter too. It takes as many times as long
      images=PATH   an image, or a folder of images at any depth; or a folder of fields with boxes in the layout of
                    Pascal VOC (Annotations/*.xml), whose white cells are cut out as build_shards.py fields= does
      out=DIR       receives predictions.csv (path, type, confidence, unfamiliarity, out_of_distribution, set, one
                    probability per type), gallery.html, unreadable.csv if a file is no image, and passed_over.csv if
                    there are files that are hidden or lack an image's suffix; replaces an earlier prediction.
                    Probabilities are calibrated by the temperature that train_classifier.py fitted on validation
                    images for this number of views. A byte of a file name that is not text is written as \\xe4.
                    `unfamiliarity` says how far an image is from the training images: 0 is the median of the
                    validation images. Above 1, further than 99 % of them, it is `out_of_distribution`: another cell
                    type, another laboratory, or no cell
      domain=NAME   the images' stain, one of the run's training data; default: its only one, or of several none: a
                    laboratory that the run does not know. A classifier of normalised images applies its normaliser
                    to images of the stain that it is made for. Images are cropped as those of the domain were in
                    training (data.crop), of an unknown laboratory by the mean over the domains
      min_confidence=0.9  images with less confidence are marked in a column `uncertain`, and in the gallery, for a
                    person to look at; the run's report shows how many those are and how accurate the others
      coverage=0.9  `set` is the types that an image may be, chosen so that nine sets in ten hold the true type where
                    images are like the run's validation images. If the classifier is right more often than that,
                    the sets of its least sure answers are empty
      heatmaps=true  the gallery shows where in each image the classifier found its answer (Grad-CAM); for one run of
                    a convolutional network and one view

example:
  python launchers/predict.py run=runs/quickstart/classifier images=slides/today out=predictions/today
  python launchers/predict.py run=runs/small images=raw/BCCD out=predictions/bccd
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import join_alone, launch, read_config
from trainer.learners.choices import ViewCount
from trainer.runs.arguments import one_or_more
from trainer.runs.run_directory import require_classifier
from trainer.runs.shipped import run_or_shipped


@dataclass(frozen=True)
class PredictConfig:
    """What is predicted, and where it is written."""

    run: str | None = None  # a folder, or [A,B]: several
    views: ViewCount = 1
    images: str | None = None
    out: str | None = None
    domain: str | None = None
    min_confidence: float | None = None
    coverage: float = 0.9
    heatmaps: bool = False

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence={self.min_confidence}: must be a probability, from 0 to 1")
        if not 0 < self.coverage < 1:
            raise ValueError(f"coverage={self.coverage}: must be a share of images between 0 and 1, such as 0.9")


def main(arguments: Sequence[str]) -> None:
    config = read_config(PredictConfig, "predict", arguments)
    if not (config.images and config.out):
        raise UserError("predict.py needs images=PATH and out=DIR")
    runs = [run_or_shipped(run) for run in one_or_more(config.run or "shipped", "run")]
    images, out = Path(config.images), Path(config.out)
    for run in runs:
        require_classifier(run)
    if not os.path.lexists(images):
        raise UserError(f"images={images}: no such file or folder; name an image or a folder of images")
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.tasks.classification.inference.prediction import PredictOptions, predict_images

    topology = join_alone("predict.py")
    options = PredictOptions(config.domain, config.views, config.min_confidence, config.coverage, config.heatmaps)
    predict_images(runs, images, out, options, topology)


if __name__ == "__main__":
    launch(main, __doc__)
