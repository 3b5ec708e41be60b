"""Write a page on which an expert reviews the labels of a data set: a browser, a keyboard, no server.

usage:
  python launchers/review.py shards=DIR out=FILE.html [split=all] [images=500]
      shards=DIR    a data set of build_shards.py, a folder or a URL (cache=DIR cache_size=GB)
      out=FILE      the page, one file with everything in it. In this order it asks about cells with two labels, labels
                    that are likely wrong, near duplicates (in pairs), and, in turn, images of which a classifier is
                    unsure and images unlike all others. Images that experts have decided about are not asked again
      split=all     or train, validation, test
      images=500    on the page, at most
      model.timm_name=N model.weights=FILE data.image_size=160   the network whose features are used, as for
                    train_classifier.py model=frozen. Nothing is trained but heads on its features, each on four fifths
                    of the images, so that no image is judged by a head that learned its label
  The expert presses Enter (the label is right), a digit (it is another type) or X (leave it out, and why), and S to
  save the decisions as a CSV. They stay in the browser until then. build_shards.py review=FILE applies them; of two
  experts (review=[A.csv,B.csv]) it prints the agreement and lists the images on which they differ.

example:
  python launchers/review.py shards=data/blood out=review.html
  python launchers/build_shards.py shards=data/blood review=decisions-AB.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.errors import UserError
from data_pipeline.stream.config import StreamConfig
from launchers.console import launch, read_config
from models.classifiers.config import ClassifierConfig


@dataclass(frozen=True)
class ReviewConfig(DatasetConfig):
    """What an expert is to look at."""

    out: str | None = None
    split: Literal["all", "train", "validation", "test"] = "all"
    images: int = 500
    data: StreamConfig = field(default_factory=StreamConfig)
    model: ClassifierConfig = field(default_factory=ClassifierConfig)

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images={self.images}: must be at least 1")


def main(arguments: Sequence[str]) -> None:
    config = read_config(ReviewConfig, "review", arguments)
    if not (config.shards and config.out):
        raise UserError("review.py needs shards=DIR and out=FILE.html")
    if not Path(config.out).absolute().parent.is_dir():
        raise UserError(f"{config.out}: its folder is not there; make it, or name another out=FILE")
    config.require_dataset()
    # Here, for neither --help nor a mistake need wait for torch.
    from data_pipeline.catalog import SPLITS
    from trainer.learners.topology import join_processes
    from trainer.tasks.classification.config import ClassifierRunConfig
    from trainer.tasks.classification.review import write_review

    topology = join_processes()
    if topology.world_size > 1:
        raise UserError("review.py is one process: start it with python, not with several processes")
    run = ClassifierRunConfig(
        config.shards, cache=config.cache, cache_size=config.cache_size, data=config.data, model=config.model
    )
    splits = SPLITS if config.split == "all" else (config.split,)
    write_review(run, Path(config.out), splits=splits, images=config.images, topology=topology)


if __name__ == "__main__":
    launch(main, __doc__)
