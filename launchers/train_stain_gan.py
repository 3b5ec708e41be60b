"""Train the networks that give one stain's images the colours of another (W-CycleGAN-GP and its rivals).

usage:
  accelerate launch launchers/train_stain_gan.py shards=DIR run=DIR [model=NAME] [a=DOMAIN b=DOMAIN] [key=value ...]
      shards=DIR          a data set of build_shards.py with images of two stains: a folder, or a URL in a store,
                          s3://bucket/prefix
      cache=DIR           keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100      gigabytes that they take at most, 100 by default; those used longest ago make room
      run=DIR             where the run is written; the same command resumes it
      model=NAME          default w_cyclegan_gp; stain_student model.options.teacher=RUN is a fast pixelwise copy of
                          a trained generator; one of
                          {models:stain}
      a=DOMAIN b=DOMAIN   a is the stain that images of b are to take; default: the two of the data set
      matching=cell_type  both domains show the same cell types (default); none: images as they come, unlabelled too
      data.image_size=128 train.epochs=150 train.global_batch=8   defaults (pixels; images per batch and domain); all
                          others: configs/train_stain_gan.yaml
      data/augment=flip   the default preset of augmentation; or none, quarter_turns, geometry, stain, laboratory
      data.augment.KEY=   changes one key of the preset; the values of geometry:
                          {augmentations}
  Writes losses and gradient norms to RUN/metrics.jsonl and RUN/tensorboard, and sheets of cells to RUN/samples
  at the end of each epoch. Then: launchers/normalize_stains.py.

example:
  accelerate launch --config_file configs/accelerate/one_gpu_fp16.yaml launchers/train_stain_gan.py \\
      shards=data/blood run=runs/stain a=barcelona b=munich train.global_batch=8
"""

from collections.abc import Sequence

from launchers.console import launch, read_config, train_run
from trainer.tasks.stain.config import StainRunConfig


def main(arguments: Sequence[str]) -> None:
    train_run(read_config(StainRunConfig, "train_stain_gan", arguments), "train_stain_gan.py")


if __name__ == "__main__":
    launch(main, __doc__)
