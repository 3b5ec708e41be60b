"""Train a blood-cell classifier, calibrate it on its validation split, score it on its test split, write a report.

usage:
  accelerate launch launchers/train_classifier.py
      the five-minute tour: renders artificial cells (phantoms) and trains a small network on them, in runs/quickstart
  accelerate launch launchers/train_classifier.py shards=DIR run=DIR [model=NAME] [key=value ...]
      shards=DIR            a data set made by build_shards.py: a folder, or a URL in a store, s3://bucket/prefix
      cache=DIR             keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100        gigabytes that they take at most, 100 by default; those used longest ago make room
      run=DIR               where the run is written; the same command resumes it
      model=NAME            default senet154_ge; timm is any of its models, with model.timm_name=...; frozen fits a
                            head (model.head=linear or nearest) to its features, without training it; one of
                            {models:classification}
      model.weights=RUN     begins with another run's weights, those of a file, or timm's (pretrained)
      seen_images=leave_out   validation and test images that these weights, or the generators and the normaliser of
                            the data set, learned from are not scored; without it such a training is refused
    defaults
      data.image_size=224   side of the images, pixels
      data.sampling=uniform   every image once per epoch; class_balanced: every type equally often; domain_balanced:
                            within a type also every domain
      train.epochs=200   train.global_batch=64   optimizer.learning_rate=0.001
      train.precision=auto   bf16 where the GPU has it, else fp16; fp32 on CPUs
      train.select_by=balanced_accuracy   validation score that chooses the best checkpoint; one of
                            {select_by}
    options
      data.domains=[barcelona]   learns from, and is scored on, these domains only
      train.micro_batch=16   most images on a device at once; gradients are accumulated
      train.checkpoint_activations=true   less memory for about a third more time
      train.compile=true                  by torch.compile; needs a C++ compiler
      train.select_within=0.01   a later epoch is chosen even if its score is so much below the best one
      optimizer=pretrained    learning rate and running average for pretrained weights
      optimizer.layer_decay=0.75   earlier layers learn more slowly: each stage at 0.75 of the next one's rate
      train.frozen_epochs=1   epochs at the start in which only the last layer learns
      model.norm=group        group norm in place of batch norm; frozen: batch norm with the initial statistics;
                              auxiliary: statistics of their own for generated images
      train.synthetic.until=0.5   generated images are shown in the first half of the steps alone
      train.synthetic.replace=0.3   a real image is replaced by a generated one with this probability
      train.synthetic.weight=0.3   weight of a generated image's loss
      train.mixup=0.2   train.cutmix=1.0   mix pairs of images and their labels; alpha
      protocol=balance_first  the thesis's protocol, as a control: all images, synthetic ones too, are split at random
                            after balancing. The result is in RUN/control.json, and is not a score
      data/augment=stain    the default preset of augmentation; or none, flip, quarter_turns, geometry, laboratory
      data.augment.KEY=     changes one key of the preset; the values of geometry:
                            {augmentations}
  Writes RUN/report.html, RUN/model_card.md, RUN/evaluation, RUN/metrics.jsonl, RUN/tensorboard and RUN/checkpoints.
  Every key with its default: configs/train_classifier.yaml and the dataclasses that it names.

example:
  accelerate launch --config_file configs/accelerate/one_gpu_fp16.yaml launchers/train_classifier.py \\
      shards=data/blood run=runs/senet154 model=senet154_ge train.global_batch=64 train.micro_batch=16
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launchers.console import launch, read_config, train_run
from trainer.tasks.classification.config import ClassifierRunConfig


@dataclass(frozen=True)
class PhantomConfig:
    """The rendered data set of the quickstart. size: side in pixels."""

    folder: str = "runs/quickstart/phantoms"
    per_type: int = 150
    slides: int = 40
    size: int = 64
    seed: int = 0


@dataclass(frozen=True)
class QuickstartConfig(ClassifierRunConfig):
    """A classifier's run on phantoms that are rendered first."""

    phantom: PhantomConfig = field(default_factory=PhantomConfig)


def main(arguments: Sequence[str]) -> None:
    if any(argument.startswith(("shards=", "run=")) for argument in arguments):
        train_run(read_config(ClassifierRunConfig, "train_classifier", arguments), "train_classifier.py")
        return
    config = read_config(QuickstartConfig, "quickstart", arguments)

    def prepare(rank: int) -> None:
        if rank == 0:
            _make_phantom_dataset(config)

    train_run(config, "train_classifier.py", prepare)


def _make_phantom_dataset(config: QuickstartConfig) -> None:
    from data_pipeline.ingest.build import build_dataset
    from data_pipeline.phantoms.folders import render_phantoms
    from data_pipeline.sources import SourceDeclaration

    phantom = config.phantom
    table = render_phantoms(
        Path(phantom.folder),
        phantom.per_type,
        slides=phantom.slides,
        size=phantom.size,
        seed=phantom.seed,
        workers=1,
        paired=False,
    )
    source = SourceDeclaration(kind="table", name="phantom", root=table, domain="phantom")
    # In this process: so few images are done before others could have started.
    build_dataset(Path(str(config.shards)), [source], ratio=(0.6, 0.15, 0.25))


if __name__ == "__main__":
    launch(main, __doc__)
