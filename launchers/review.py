"""Write a page on which an expert reviews the labels of a data set: a browser, a keyboard, no server.

usage:
  python launchers/review.py shards=DIR out=FILE.html [split=all] [images=500]
      shards=DIR    a data set of build_shards.py, a folder or a URL (cache=DIR cache_size=GB)
      out=FILE      the page, one file with everything in it. In this order it asks about cells with two labels, labels
                    that are likely wrong, near duplicates (in pairs), and, in turn, images of which a classifier is
                    unsure and images unlike all others. Images that experts have decided about are not asked again
      split=all     or train, validation, test
      images=500    on the page, at most
      model=frozen  features of a pretrained network, and linear discriminants of them. No image is judged by one that
                    learned its label: the images are dealt to folds=5, patients apart, and each fold is judged by what
                    was fitted to the others
      model=efficientnet_lite_pretrained optimizer=pretrained data.image_size=96 train.epochs=6 folds=2   or any other
                    classifier and setting of train_classifier.py: it is trained without each fold in turn. It takes as
                    long as so many trainings
  The expert presses Enter (the label is right), the key of another type (a digit, V or W; the buttons show which) or X
  (leave it out, and why), and S to save the decisions as a CSV. They stay in the browser until then. build_shards.py
  review=FILE applies them; of two experts (review=[A.csv,B.csv]) it prints the agreement and lists the images on which
  they differ.

example:
  python launchers/review.py shards=data/blood out=review.html
  python launchers/build_shards.py shards=data/blood review=decisions-AB.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError
from launchers.console import join_alone, launch, read_config
from trainer.tasks.classification.config import ClassifierRunConfig


@dataclass(frozen=True)
class ReviewConfig(ClassifierRunConfig):
    """What an expert is to look at, and the classifiers that judge which images are worth it."""

    out: str | None = None
    split: Literal["all", "train", "validation", "test"] = "all"
    images: int = 500
    folds: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images < 1 or self.folds < 2:
            raise ValueError(f"images={self.images}, folds={self.folds}: at least 1 image and 2 folds")


def main(arguments: Sequence[str]) -> None:
    config = read_config(ReviewConfig, "review", arguments)
    if not (config.shards and config.out):
        raise UserError("review.py needs shards=DIR and out=FILE.html")
    if config.run:
        raise UserError("review.py writes no run: leave out run=")
    if not Path(config.out).absolute().parent.is_dir():
        raise UserError(f"{config.out}: its folder is not there; make it, or name another out=FILE")
    config.require_dataset()
    # Here, for neither --help nor a mistake need wait for torch.
    from data_pipeline.catalog import SPLITS
    from trainer.tasks.classification.review.review import write_review

    topology = join_alone("review.py")
    splits = SPLITS if config.split == "all" else (config.split,)
    write_review(config, Path(config.out), splits=splits, folds=config.folds, images=config.images, topology=topology)


if __name__ == "__main__":
    launch(main, __doc__)
