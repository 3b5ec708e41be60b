"""Train a blood-cell classifier, calibrate it on its validation split, score it on its test split, write a report.

usage:
  accelerate launch launchers/train_classifier.py
      renders the phantom data set, trains a small network on it: the five-minute tour
  accelerate launch launchers/train_classifier.py shards=DIR run=DIR [model=NAME] [key=value ...]
      shards=DIR            a data set made by build_shards.py: a folder, or a URL in a store, s3://bucket/prefix
      cache=DIR             keeps shards of a store, for all processes of a machine; default: ~/.cache/hemaforge
      cache_size=100        gigabytes that they take at most; those used longest ago make room
      run=DIR               where the run is written; the same command goes on after a stop
      model=NAME            default senet154_ge; timm is any of its models, with model.timm_name=...; frozen fits a
                            head (model.head=linear or nearest) to its features, without training it; one of
                            {models:classification}
      model.weights=RUN     begins with another run's weights, those of a file, or timm's (pretrained)
      seen_images=leave_out   validation and test images that these weights, or the generators and the normaliser of
                            the data set, learned from are not scored; without it such a training is refused
      data.image_size=224   data.domains=[barcelona]   data.sampling=class_balanced|domain_balanced
      train.epochs=200      train.global_batch=64      train.precision=fp16
      train.checkpoint_activations=true   less memory for about a third more time
      train.compile=true                  by torch.compile; needs a C++ compiler
      train.select_by=NAME    validation score that chooses the best checkpoint: {select_by}
      train.select_within=0.01   a later epoch is chosen even if its score is so much below the best one
      optimizer.learning_rate=0.001
      optimizer=pretrained    learning rate and average for pretrained weights
      optimizer.layer_decay=0.75   earlier layers learn more slowly: each stage at 0.75 of the next one's rate
      train.frozen_epochs=1   epochs in which only the last layer learns
      model.norm=group        group norm in place of batch norm; frozen: batch norm with the initial statistics;
                              auxiliary: statistics of their own for generated images
      train.synthetic.until=0.5   generated images in the first half of the steps alone; replace=0.3: in place of real
                              ones; weight=0.3: of their loss
      train.mixup=0.2   train.cutmix=1.0   mix pairs of images and their labels
      protocol=balance_first  the thesis's protocol, as a control: all images, synthetic ones too, are split at random
                            after balancing. The result is in RUN/control.json, and is not a score
      data.augment.KEY=     {augmentations}
  every key with its default: configs/train_classifier.yaml and the dataclasses it names

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
