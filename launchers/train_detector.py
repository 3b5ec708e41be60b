"""Train a detector that finds white cells, red cells and platelets in fields of view.

usage:
  accelerate launch launchers/train_detector.py shards=DIR run=DIR [model=NAME] [key=value ...]
      shards=DIR          a data set with whole fields, build_shards.py whole_fields=: a folder, or a URL in a store,
                          s3://bucket/prefix
      cache=DIR           keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100      gigabytes that they take at most, 100 by default; those used longest ago make room
      run=DIR             where the run is written; the same command resumes it
      model=NAME          default fcos_lite, for a CPU; fcos_resnet50 for a GPU; one of
                          {models:detection}
      model.network.weights=FILE   ImageNet weights of the backbone, timm's; pretrained downloads them; default: random
      data.image_size=256 train.epochs=34 train.global_batch=4   defaults (pixels; fields per step); all others:
                          configs/train_detector.yaml
      data/augment=stain  the default preset of augmentation; or none, flip, quarter_turns, geometry, laboratory
      data.augment.KEY=   changes one key of the preset; the values of geometry:
                          {augmentations}
  The kinds of cells are those that training fields have boxes of. Scores the test split: average precision and counts
  per field, beside the classical finder that needs no training. Writes RUN/report.html, RUN/evaluation,
  RUN/metrics.jsonl, RUN/tensorboard and RUN/checkpoints. Then: launchers/count.py detector=RUN.

example:
  python launchers/build_shards.py shards=data/fields whole_fields=raw/BCCD name=bccd domain=bccd
  accelerate launch launchers/train_detector.py shards=data/fields run=runs/detector \\
      model.network.weights=tf_efficientnet_lite0.safetensors
"""

from collections.abc import Sequence

from launchers.console import launch, read_config, train_run
from trainer.tasks.detection.config import DetectorRunConfig


def main(arguments: Sequence[str]) -> None:
    train_run(read_config(DetectorRunConfig, "train_detector", arguments), "train_detector.py")


if __name__ == "__main__":
    launch(main, __doc__)
