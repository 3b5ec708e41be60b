"""A classifier that a run has trained, and what the run says of itself."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.classifiers.norm import of_real_images
from models.errors import ModelError
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.normalizers.bundle import NormalizerBundle, load_bundle
from trainer.runs.record import RunRecord
from trainer.runs.run_directory import CONFIG_FILE
from trainer.runs.training_data import read_training_data
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.scale import crop_to
from trainer.tasks.classification.uncertainty.calibration import Calibration, load_calibration


@dataclass(frozen=True)
class TrainedClassifier:
    """A run's best network, on the CPU in evaluation mode, and what it was made from.

    dataset_hash: content hash of the data set that it was trained on.
    storage: codec and size of the stored images of that data set; raw images get them, too, before prediction.
    normalizer: for raw images of its source domain; None if the classifier learned from raw images.
    calibration: temperature that turns logits of one view into probabilities; not part of the network.
    domains: of the training images; empty if the run does not record them.
    """

    network: nn.Module
    checkpoint: Checkpoint
    config: ClassifierRunConfig
    cell_types: tuple[str, ...]
    dataset_hash: str
    storage: ShardSettings
    normalizer: NormalizerBundle | None
    calibration: Calibration
    domains: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run's folder, wherever it lies now."""
        return self.checkpoint.path.parents[1]

    def knows(self, domain: str | None) -> bool:
        """Whether it is told how images of the domain are cropped."""
        return domain in self.config.data.crop or domain in self.domains

    def crop_of(self, domain: str | None, nucleus: float | None = None) -> float:
        """Share of the sides that is kept of an image of this domain.

        Of one that the training had no images of, and where none is known (None): by the median nucleus of its images,
        if it was measured and the training's were cropped by it; else the geometric mean over the training's domains.
        """
        crop, nucleus_share = self.config.data.crop, self.config.nucleus_share
        if domain is not None and self.knows(domain):
            return crop.get(domain, 1.0)
        if nucleus is not None and nucleus_share is not None:
            return crop_to(nucleus_share, nucleus)
        return math.prod(crop.get(each, 1.0) for each in self.domains) ** (1 / max(1, len(self.domains)))

    @property
    def layers(self) -> nn.Module:
        """The network, for features of its layers. UserError for naive Bayes, which has no layers."""
        if isinstance(self.network, NaiveBayes):
            raise UserError(
                f"{self.config.run}: {self.config.model.name} has no layers whose features could be compared: give a "
                "run of another model"
            )
        return self.network


def load_classifier(run: Path) -> TrainedClassifier:
    """The best checkpoint of a run. UserError when the folder holds no finished epoch or another model."""
    made, path = RunRecord.read(run, "classification"), run / CONFIG_FILE
    config, cell_types = made.config, made.cell_types
    checkpoint = CheckpointStore(run / "checkpoints").best()
    if checkpoint is None:
        raise UserError(f"{run}: no best checkpoint yet: let train_classifier.py finish an epoch first")
    state = checkpoint.load()["learners"]["classifier"]
    weights = state["average"] or state["module"]
    if config.model.norm == "auxiliary":  # outside of training, batch norms are those of real images
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, norm=None))
        weights = of_real_images(weights)
    network = build_network(dataclasses.replace(config.model, weights=None), len(cell_types), config.data.image_size)
    checkpoint.fill(network, weights, path)
    bundle = None if made.normalizer is None else load_bundle(run / made.normalizer)
    calibration = load_calibration(run, checkpoint.digest)
    # A run that was adapted to unlabelled images has no count of labelled ones.
    domains = tuple(sorted((read_training_data(run) or {}).get("domains") or config.data.domains or ()))
    return TrainedClassifier(
        network.eval(), checkpoint, config, cell_types, made.dataset_hash, made.storage, bundle, calibration, domains
    )


def build_network(config: ClassifierConfig, number_of_types: int, image_size: int) -> nn.Module:
    """A classifier with the weights that its configuration names, another run's too. UserError where it cannot be."""
    weights = None
    if config.weights is not None and (Path(config.weights) / CONFIG_FILE).exists():
        weights = load_classifier(Path(config.weights)).network.state_dict()
    try:
        return build_classifier(config, number_of_types, image_size, weights)
    except ModelError as error:
        raise UserError(str(error)) from error
