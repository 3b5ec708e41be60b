"""The ways to adapt a classifier: its head, all its layers, its batch-norm statistics, its own confident answers."""

import copy
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import track
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.features import last_layer as any_last_layer
from models.classifiers.features import watch_features
from models.classifiers.norm import FrozenBatchNorm
from trainer.learners.choices import VIEWS
from trainer.learners.optimizer import make_optimizer, schedule_factor
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.tasks.classification.adaptation.laboratory import Images, Numbers
from trainer.tasks.classification.training.heads import Features, balanced_weights, fit_linear
from trainer.tasks.classification.uncertainty.calibration import calibrated_probabilities
from trainer.tasks.classification.uncertainty.views import EachView, mean_log_probabilities, views_of

# Penalty of a head's difference from the run's own; from 0.1 to 5 the accuracy differs by less than its interval.
L2 = 1.0
# Weight of the run's own training images beside the laboratory's labelled cells, and how many of each type.
HOME_WEIGHT = 0.3
HOME_IMAGES = 60
# Self-training: least confidence of the answers that it takes, and how often it answers anew.
CONFIDENT = 0.9
ROUNDS = 3
BATCH = 32
# Share of the laboratory's statistics in each batch norm, the rest is the run's.
STATISTICS_SHARE = 0.5
STATISTICS_BATCHES = 20


def last_layer(network: nn.Module) -> nn.Linear:
    """A classifier's last layer. UserError for a network without a linear one."""
    found = None if isinstance(network, NaiveBayes) else any_last_layer(network)
    if not isinstance(found, nn.Linear):
        raise UserError(
            "adapt.py needs a classifier whose last layer is linear: give a run of another model=, or with "
            "model.head=linear"
        )
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
    """Features of a laboratory's cells in eight views, and of the run's own training images.

    On two laboratories views were as good as augmented copies for eight views of an answer, and better for one. The
    means of the run's types raised balanced accuracy by 0 to 5 points, its images by 1 to 5 (tests/benchmarks).
    """

    features: Features  # [n, views, d]
    labels: Numbers  # [n]
    home_features: Features  # [m, d], of images, or their means
    home_labels: Numbers  # [m]

    def fit(self, rows: Numbers, before: nn.Linear) -> nn.Linear:
        """The head fitted to these rows of the labelled cells, shrunk towards the head `before`.

        Types that nothing is known of keep their weights, and so can still be answered.
        """
        views = self.features.shape[1]
        labels, features = self.labels[rows].repeat(views), self.features[rows].reshape(-1, self.features.shape[2])
        weights = balanced_weights(labels, before.out_features)
        if len(self.home_labels):
            share = HOME_WEIGHT * len(labels) / len(self.home_labels)
            weights = np.concatenate([weights, share * balanced_weights(self.home_labels, before.out_features)])
            labels = np.concatenate([labels, self.home_labels])
            features = np.concatenate([features, self.home_features])
        present, numbers = np.unique(labels, return_inverse=True)
        head, part = copy.deepcopy(before).requires_grad_(False), nn.Linear(before.in_features, len(present))
        part.load_state_dict({name: value[present] for name, value in head.state_dict().items()})
        fitted = fit_linear(features, numbers, len(present), L2, weights.astype(np.float32), part)
        head.weight[present], head.bias[present] = fitted.weight, fitted.bias
        return head

    def answers(self, head: nn.Linear) -> torch.Tensor:
        """Log probabilities float32 [n, views, types] by a head."""
        with torch.no_grad():
            features = torch.from_numpy(self.features).to(head.weight.device)
            answers: torch.Tensor = head(features).log_softmax(dim=2).cpu()
        return answers

    def self_trained(self, before: nn.Linear, temperature: float) -> nn.Linear:
        """The head fitted to its own confident answers, as many of each type; `before` where these are of one type.

        temperature: of `before`, for the mean over views.
        """
        head = before
        for _ in range(ROUNDS):
            answers = mean_log_probabilities(self.answers(head))
            confidence, labels = (each.numpy() for each in calibrated_probabilities(answers, temperature).max(dim=1))
            rows = _balanced(labels, confidence)
            if len(np.unique(labels[rows])) < 2:
                return before
            head = dataclasses.replace(self, labels=labels).fit(rows, before)
            temperature = 1.0
        return head


def _balanced(labels: Numbers, confidence: NDArray[np.float64]) -> Numbers:
    """Rows with a confidence of at least CONFIDENT; the surest, no more of a label than of all on average."""
    sure = np.flatnonzero(confidence >= CONFIDENT)
    sure = sure[np.argsort(-confidence[sure], kind="stable")]
    return few_of_each(labels, -(-len(sure) // max(1, len(np.unique(labels[sure])))), sure)


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


def few_of_each(labels: Numbers, most: int, order: Numbers | None = None) -> Numbers:
    """Rows with at most so many of each label, the first in `order`.

    order: default, all rows as they are: ids are hashes, so the first are a random draw.
    """
    order = np.arange(len(labels)) if order is None else order
    return np.sort(np.concatenate([order[:0], *(order[labels[order] == each][:most] for each in np.unique(labels))]))


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
def features_of(network: nn.Module, images: Images, views: int = 1) -> Features:
    """What the last layer takes in: float32 [n, views, d], on the CPU."""
    found, network = [], network.eval()
    for shown in images.read():
        with watch_features(network) as seen:
            for view in views_of(shown, views):
                network(view)
        found.append(torch.stack(seen, dim=1).float().cpu())
    return torch.cat(found).numpy()
