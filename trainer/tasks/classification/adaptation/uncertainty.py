"""What an adapted run keeps to know what it does not know: see uncertainty/reference.py."""

import dataclasses

import torch
from torch import nn

from models.classifiers.features import Layers
from trainer.learners.choices import VIEWS
from trainer.tasks.classification.adaptation.choice import Trial
from trainer.tasks.classification.adaptation.config import SAME_FEATURES
from trainer.tasks.classification.adaptation.laboratory import Images, Laboratory
from trainer.tasks.classification.adaptation.methods import answers_of, few_of_each
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.reports.adaptation_record import Method
from trainer.tasks.classification.uncertainty.calibration import LEAST_IMAGES
from trainer.tasks.classification.uncertainty.reference import UncertaintyReference, load_reference
from trainer.tasks.classification.uncertainty.training_distance import TrainingDistance
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities

# Training images of each type whose features are taken.
IMAGES_PER_TYPE = 60


def adapted_reference(
    trained: TrainedClassifier,
    laboratory: Laboratory,
    method: Method,
    network: nn.Module,
    held_out: Trial | None,
    checkpoint: str,
) -> UncertaintyReference | None:
    """The reference of an adapted network; None where nothing honest can be had.

    Distances are from training images of the run that was adapted. Its own are kept where the features are the same;
    else they are fitted anew, which needs its data set. The scale of unfamiliarity and the sets of types are of the
    laboratory's labelled cells that the network had not learned from, or, without enough of them, of the validation
    images of that run. held_out: answers to these cells. checkpoint: digest of the adapted network's.
    """
    own = load_reference(trained.folder, trained.checkpoint.digest) if method in SAME_FEATURES else None
    if held_out is not None and len(held_out.once()[1]) >= LEAST_IMAGES:
        images, each_view = laboratory.labelled, held_out.once()[0]
    elif own is not None and method == "as_is":
        return dataclasses.replace(own, checkpoint=checkpoint)
    elif laboratory.home_validation is not None:
        images, each_view = laboratory.home_validation, answers_of(network, laboratory.home_validation)
    else:
        return None
    layers, home = Layers(network, images.config.image_size).eval(), laboratory.home
    features = _all(layers, images)
    if own is not None:
        distance = own.distance
    elif home is not None:
        home = home.chosen(few_of_each(home.labels, IMAGES_PER_TYPE))
        distance = TrainingDistance.fit(_all(layers, home), torch.tensor(home.labels), features, layers.sizes)
    else:
        return None
    answers = torch.stack([mean_log_probabilities(each_view[:, :count]) for count in VIEWS], dim=1)
    labels = torch.tensor(images.labels)
    return UncertaintyReference(checkpoint, images.ids, labels, answers, distance(features), distance)


@torch.no_grad()
def _all(layers: nn.Module, images: Images) -> torch.Tensor:
    """Features float32 [n, d] of images as they are, on the CPU."""
    return torch.cat([layers(shown).float().cpu() for shown in images.read()])
