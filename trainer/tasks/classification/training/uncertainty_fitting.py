"""Fitting what a run keeps of its training and validation images, to know later what it does not know."""

import dataclasses

import torch

from data_pipeline.catalog import Dataset
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from models.classifiers.features import Layers
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.inference.logits import predict_all
from trainer.tasks.classification.uncertainty.reference import UncertaintyReference
from trainer.tasks.classification.uncertainty.training_distance import TrainingDistance

# Training images of each type whose features are taken.
IMAGES_PER_TYPE = 200


def fit_reference(
    trained: TrainedClassifier,
    dataset: Dataset,
    config: StreamConfig,
    validation: Stream,
    answers: torch.Tensor,
    topology: Topology,
) -> UncertaintyReference:
    """The reference of a run on the data set that it learned from; the same on every process.

    config: of its training images. validation: its n validation images. answers: see `UncertaintyReference`.
    """
    rows = dataset.samples(splits=["train"], domains=config.domains, cell_types=trained.cell_types)
    # Real images first. An id is a hash: the first by id are a random draw.
    rows = rows.assign(made=rows["origin"] == "synthetic").sort_values(["made", "id"])
    training = Stream(
        dataset,
        dataclasses.replace(config, cell_types=None),
        splits=["train"],
        cell_types=trained.cell_types,
        ids=rows.groupby("cell_type").head(IMAGES_PER_TYPE)["id"].tolist(),
        global_batch=validation.global_batch,
        training=False,
        topology=topology,
    )
    network = Layers(trained.network.to(topology.device), config.image_size)
    features = predict_all(network, validation)
    learned = predict_all(network, training), torch.tensor(training.labels)
    distance = TrainingDistance.fit(*learned, features, network.sizes)
    distances = distance(features)
    ids, labels = tuple(validation.samples["id"]), torch.tensor(validation.labels)
    return UncertaintyReference(trained.checkpoint.digest, ids, labels, answers, distances, distance)
