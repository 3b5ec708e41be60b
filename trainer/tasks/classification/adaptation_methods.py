"""The ways to adapt a classifier: its head, all its layers, its batch-norm statistics, its own confident answers."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import track
from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.input_adapter import InputAdapter
from models.classifiers.norm import FrozenBatchNorm
from trainer.learners.choices import VIEWS
from trainer.learners.optimizer import make_optimizer, schedule_factor
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.tasks.classification.adaptation_data import Images, Numbers
from trainer.tasks.classification.heads import Features, balanced_weights, fit_linear
from trainer.tasks.classification.views import EachView

# Penalty of a head's difference from the run's own; from 0.0002 to 0.2 the accuracy differs by less than its interval.
L2 = 0.1
# Augmented copies of each labelled cell that a head is fitted to, on average.
COPIES = 8
# Weight of the run's own training images beside the laboratory's labelled cells, and how many of each type.
HOME_WEIGHT = 0.3
HOME_IMAGES = 60
BATCH = 32
# Share of the laboratory's statistics in each batch norm, the rest is the run's.
STATISTICS_SHARE = 0.5
STATISTICS_BATCHES = 20


def last_layer(network: nn.Module) -> nn.Linear:
    """A classifier's last layer. UserError for a network without a linear one."""
    inner = network.network if isinstance(network, InputAdapter) else network
    found: Any = inner.head if isinstance(inner, FrozenClassifier) else getattr(inner, "last_linear", None)
    if found is None:
        found = getattr(inner, "get_classifier", lambda: None)()
    if not isinstance(found, nn.Linear):
        raise UserError("adapt.py needs a classifier whose last layer is linear: train another model=, or model.head=")
    return found


def batch_norms(network: nn.Module) -> list[Any]:
    """Its batch norms that learned running statistics."""
    return [
        module
        for module in network.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not isinstance(module, FrozenBatchNorm)
    ]


def copy_weights(before: nn.Module, network: nn.Module, known: tuple[str, ...], cell_types: tuple[str, ...]) -> None:
    """Copy a network's weights into one of more cell types; a new type's logit is the mean of the known ones'."""
    inner = {id(parameter) for parameter in last_layer(network).parameters()}
    state = before.state_dict()
    rows = [known.index(name) if name in known else None for name in cell_types]
    for name, parameter in network.named_parameters():
        if id(parameter) in inner:
            values = state[name]
            state[name] = torch.stack([values.mean(dim=0) if row is None else values[row] for row in rows])
    network.load_state_dict(state)


@dataclass(frozen=True)
class HeadImages:
    """Features of a laboratory's labelled cells, and of the run's own training images."""

    features: Features  # of augmented copies [m, d]
    labels: Numbers  # [m]
    rows: Numbers  # [m], each copy's row in the labelled images
    home_features: Features
    home_labels: Numbers

    @classmethod
    def of(cls, network: nn.Module, labelled: Images, home: Images | None, seed: int) -> "HeadImages":
        """Features of augmented copies of the labelled images."""
        steps = -(-COPIES * len(labelled) // BATCH)
        parts, rows = zip(*labelled.augmented(BATCH, seed, steps), strict=True)
        every = np.concatenate(rows)
        features, labels = _features(network, iter(parts)), labelled.labels[every]
        if home is None:
            return cls(features, labels, every, features[:0], labels[:0])
        return cls(features, labels, every, _features(network, home.read()), home.labels)

    def fit(self, rows: Numbers, before: nn.Linear) -> nn.Linear:
        """The head fitted to the copies of these rows, shrunk towards the head `before`."""
        inside, types = np.isin(self.rows, rows), before.out_features
        labels, features = self.labels[inside], self.features[inside]
        weights = balanced_weights(labels, types)
        if len(self.home_labels):
            share = HOME_WEIGHT * len(labels) / len(self.home_labels)
            weights = np.concatenate([weights, share * balanced_weights(self.home_labels, types)])
            labels = np.concatenate([labels, self.home_labels])
            features = np.concatenate([features, self.home_features])
        return fit_linear(features, labels, types, L2, weights.astype(np.float32), before)


def with_head(network: nn.Module, head: nn.Linear) -> nn.Module:
    """A copy of the network with another last layer."""
    network = copy.deepcopy(network)
    last_layer(network).load_state_dict(head.state_dict())
    return network


def fine_tune(
    network: nn.Module,
    images: Images,
    home: Images | None,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    description: str,
) -> nn.Module:
    """Train a copy of all layers on augmented images, a third of each batch from `home`.

    Running statistics of batch norms stay: those of a few dozen cells are too noisy. description: of the progress bar.
    """
    network = copy.deepcopy(network)
    device = next(network.parameters()).device
    config = OptimizerConfig(learning_rate=learning_rate, weight_decay=0.01, warmup=0.1)
    optimizer = make_optimizer(network, config, device)
    from_home = 0 if home is None else BATCH // 3
    ours = images.augmented(BATCH - from_home, seed, steps)
    theirs = itertools.repeat((None, None)) if home is None else home.augmented(from_home, seed, steps)
    torch.manual_seed(seed)
    batches = track(zip(ours, theirs, strict=False), steps, description, "step")
    for step, ((shown, rows), (more, home_rows)) in enumerate(batches):
        labels = torch.from_numpy(images.labels[rows])
        if home is not None and more is not None:
            shown, labels = torch.cat([shown, more]), torch.cat([labels, torch.from_numpy(home.labels[home_rows])])
        network.train()
        for norm in batch_norms(network):
            norm.eval()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * schedule_factor(config, step, steps)
        loss = functional.cross_entropy(network(shown), labels.to(device), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    return network.eval()


def few_of_each(labels: Numbers, most: int) -> Numbers:
    """Rows with at most so many of each label, the first ones: ids are hashes, so the first are a random draw."""
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:most] for label in np.unique(labels)]))


@torch.no_grad()
def mixed_statistics(network: nn.Module, images: Images, answers: Numbers, seed: int) -> nn.Module:
    """A copy whose batch norms have the mean of their own statistics and the laboratory's.

    answers: the network's own. Batches hold each of the answered types equally often, so that the mix of types in the
    laboratory does not shift the statistics; images are augmented, as they were for the run's own statistics.
    """
    network = copy.deepcopy(network).eval()
    balanced, norms = images.labelled_as(answers), batch_norms(network)
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for shown, _ in balanced.augmented(BATCH, seed, STATISTICS_BATCHES):
        network(shown)
    for norm, (mean, variance, momentum) in zip(norms, before, strict=True):
        norm.running_mean.lerp_(mean, 1 - STATISTICS_SHARE)
        norm.running_var.lerp_(variance, 1 - STATISTICS_SHARE)
        norm.momentum = momentum
    return network.eval()


@torch.no_grad()
def answers_of(network: nn.Module, images: Images, views: int = VIEWS[-1]) -> torch.Tensor:
    """Log probabilities float32 [n, views, types] of the views of images as they are, on the CPU."""
    each = EachView(network.eval(), views)
    return torch.cat([each(shown).cpu() for shown in images.read()])


@torch.no_grad()
def _features(network: nn.Module, parts: Iterator[torch.Tensor]) -> Features:
    """What the last layer takes in: float32 [n, d]."""
    network.eval()
    found: list[torch.Tensor] = []
    hook = last_layer(network).register_forward_pre_hook(lambda _, given: found.append(given[0].float().cpu()))
    for shown in parts:
        network(shown)
    hook.remove()
    return torch.cat(found).numpy()
