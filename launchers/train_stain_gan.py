"""Train the networks that give one stain's images the colours of another (W-CycleGAN-GP and its rivals).

usage:
  accelerate launch launchers/train_stain_gan.py shards=DIR run=DIR [model=NAME] [a=DOMAIN b=DOMAIN] [key=value ...]
      shards=DIR          a data set of build_shards.py with images of two stains: a folder, or a URL in a store,
                          s3://bucket/prefix
      cache=DIR           keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100      gigabytes that they take at most; those used longest ago make room
      run=DIR             where the run is written; the same command goes on where it stopped
      model=NAME          default w_cyclegan_gp; stain_student model.options.teacher=RUN is a fast pixelwise copy of
                          a trained generator; one of
                          {models:stain}
      a=DOMAIN b=DOMAIN   a is the stain that the others are to take; default: the two of the data set
      matching=cell_type  or none: draw images as they come, unlabelled ones too
      data.image_size=256 train.epochs=150 train.global_batch=8 ...   see configs/train_stain_gan.yaml
      data.augment.KEY=     {augmentations}
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
