"""Train a generator of cells of a wanted type (C-WGAN-GP and its rivals).

usage:
  accelerate launch launchers/train_conditional_gan.py shards=DIR run=DIR [model=NAME] [key=value ...]
      shards=DIR               a data set of build_shards.py or normalize_stains.py: a folder, or a URL in a store,
                               s3://bucket/prefix
      cache=DIR                keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100           gigabytes that they take at most, 100 by default; those used longest ago make room
      run=DIR                  where the run is written; the same command resumes it
      model=NAME               default c_wgan_gp; one of {models:conditional}
      data.cell_types=[A,B]    the types to make; default: basophil, eosinophil, erythroblast, immature granulocyte,
                               lymphocyte, monocyte, myeloblast, platelet, of those with training images
      data.domains=[A]         learn from the images of these stains only
      data.image_size=128 train.epochs=100 train.global_batch=64   defaults (pixels; images per batch); all others:
                               configs/train_conditional_gan.yaml
      features=RUN             a classifier: its features measure the distance of generated from validation images,
                               which chooses the best epoch, and it counts the images of the type asked for; or
                               inception; default: features of a network with random weights
      train.patience=20        ends the training after so many epochs without a smaller distance; default: never
      model.options.augment=[translation,cutout]   c_wgan_gp, cwgan_gp: DiffAugment of what the critic sees
      data/augment=quarter_turns   the default preset of augmentation; or none, flip, geometry, stain, laboratory
      data.augment.KEY=        changes one key of the preset; the values of geometry:
                               {augmentations}
  Writes losses and gradient norms to RUN/metrics.jsonl and RUN/tensorboard, a sheet of real and generated cells to
  RUN/samples and RUN/report.html at the end of each epoch. An epoch shows every model the same number of real images.
  Then: launchers/synthesize.py, which draws from the best epoch.

example:
  accelerate launch --config_file configs/accelerate/one_gpu_fp16.yaml launchers/train_conditional_gan.py \\
      shards=data/normalized run=runs/cells "data.cell_types=[basophil,eosinophil,platelet]"
"""

from collections.abc import Sequence

from launchers.console import launch, read_config, train_run
from trainer.tasks.conditional.config import ConditionalRunConfig


def main(arguments: Sequence[str]) -> None:
    train_run(read_config(ConditionalRunConfig, "train_conditional_gan", arguments), "train_conditional_gan.py")


if __name__ == "__main__":
    launch(main, __doc__)
