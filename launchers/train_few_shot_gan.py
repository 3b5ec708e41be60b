"""Learn to make cells of rare types from a few images of each (the meta-learned encoder GAN and its rivals).

usage:
  accelerate launch launchers/train_few_shot_gan.py shards=DIR run=DIR [model=NAME] [key=value ...]
      shards=DIR          a data set of build_shards.py, or one filled up by balance.py: a folder, or a URL in a
                          store, s3://bucket/prefix
      cache=DIR           keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100      gigabytes that they take at most, 100 by default; those used longest ago make room
      run=DIR             where the run is written; the same command resumes it
      model=NAME          default few_shot_meta; fast_gan and diff_augment see a rare type alone, the others learn
                          from rich types first; one of
                          {models:few_shot}
      rare_types=[...]    cell types to adapt to; default: those with fewer than 100 training images
      rich_types=[...]    cell types to learn from first; default: all others
      origins=[real]      rich types' images of these origins only; default: real, normalized and synthetic
      model.meta=false    a meta-trained model (few_shot_*, figr) from its initial weights, without meta-training
      adaptation.images=80000   images shown in each adaptation to a rare type (default), the same for every model
      adaptation.seeds=4  independent adaptations to each rare type, which make equal shares of its images: as many GPUs
                          as types times seeds can work at them; default 1
      features=RUN        a classifier: its features measure the distance of generated images from the type's validation
                          images, which chooses the best checkpoint of an adaptation if there are eight of them; or
                          inception; default: features of a network with random weights
      shots=8 data.image_size=128 train.epochs=8 train.global_batch=8   defaults (images per episode; pixels; images per
                          step); all others: configs/train_few_shot_gan.yaml
      data/augment=quarter_turns   the default preset of augmentation; or none, flip, geometry, stain, laboratory
      data.augment.KEY=   changes one key of the preset; the values of geometry:
                          {augmentations}
  Writes losses to RUN/metrics.jsonl and RUN/tensorboard, sheets of cells to RUN/samples, and for each rare type
  weights and losses to RUN/adapted/TYPE. Then: launchers/synthesize.py.

example:
  accelerate launch --config_file configs/accelerate/one_gpu_fp16.yaml launchers/train_few_shot_gan.py \\
      shards=data/filled run=runs/few_shot "rare_types=[monoblast,promyelocyte,smudge cell]"
"""

from collections.abc import Sequence

from launchers.console import launch, read_config, train_run
from trainer.tasks.few_shot.config import FewShotRunConfig


def main(arguments: Sequence[str]) -> None:
    train_run(read_config(FewShotRunConfig, "train_few_shot_gan", arguments), "train_few_shot_gan.py")


if __name__ == "__main__":
    launch(main, __doc__)
