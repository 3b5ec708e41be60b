"""Learning without steps: a classifier is fitted to the features of all training images at once."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.naive_bayes import GaussianNB
from torch import distributed
from torch.nn import functional

from data_pipeline.banks.feature_bank import FeatureBank, Features
from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Stream, Topology
from models.classifiers.architectures.frozen import FrozenClassifier
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.fitted import FittedClassifier
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.clock import StepClock
from trainer.loop.fit import AfterEpoch
from trainer.loop.log import RunLog
from trainer.loop.progress import Progress, checkpoint_state
from trainer.loop.selection import Selection
from trainer.metrics.classification import epoch_scores
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training.heads import balanced_weights, choose_head


@dataclass(frozen=True)
class Pass:
    """Consecutive global batches of a stream whose images' features are taken."""

    stream: Stream
    first: int = 0  # number of the first global batch
    batches: int | None = None  # None: one epoch
    bank: FeatureBank | None = None  # keeps the features

    @property
    def length(self) -> int:
        """Number of global batches."""
        return self.stream.batches_per_epoch if self.batches is None else self.batches


def fit_at_once(
    classifier: FittedClassifier,
    training: Sequence[Pass],
    held_out: Pass,
    config: ClassifierRunConfig,
    *,
    selection: Selection,
    topology: Topology,
    fingerprint: Mapping[str, Any],
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Fit to the features of the training passes, on any number of processes.

    The run then holds what `fit` leaves of one epoch: its record in metrics.jsonl and a checkpoint, the best, with the
    selection's score on `held_out`. An interrupted fit leaves no checkpoint and begins anew, with the banks it has.
    fingerprint, after_epoch: see `fit`.
    """
    classifier.to(topology.device).eval()
    run, steps, clock = Path(str(config.run)), sum(each.length for each in training), StepClock()
    log = RunLog(run, step=0, total_steps=steps, enabled=topology.rank == 0, description="fitting")
    with closing(log):
        taken = [take_features(classifier, each, topology, clock, log) for each in training]
        features, labels = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        validation_features, truth = take_features(classifier, held_out, topology, clock)
        chosen = _fit(classifier, features, labels, (validation_features, truth), config)
        classifier.to(topology.device)
        numbers = {f"train_{name}": value for name, value in _training_scores(classifier, features, labels).items()}
        probabilities = _logits(classifier, validation_features).softmax(dim=1)
        validation = epoch_scores(probabilities.numpy(), truth)
        numbers |= {f"validation_{name}": value for name, value in validation.items()}
        log.record("epoch", steps, epoch=0, **numbers, **chosen, **clock.epoch())
        numbers |= chosen
        log.say("fitted: " + ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items()))
    if topology.rank == 0:
        learners = {"classifier": {"module": classifier.state_dict(), "average": None}}
        progress = Progress(steps, selection.rank(validation), best_epoch=0)
        state = checkpoint_state(learners, {}, progress, fingerprint)
        CheckpointStore(run / "checkpoints").save(steps, state, best=True)
    if distributed.is_initialized():
        distributed.barrier()
    if after_epoch is not None:
        after_epoch(True)


def frozen_passes(
    classifier: FrozenClassifier,
    dataset: Dataset,
    config: ClassifierRunConfig,
    plain: Sequence[Stream],
    augmented: Stream,
) -> list[list[Pass]]:
    """Passes with their banks, for each stream of `plain`; the first, of training images, has the augmented ones too.

    A bank's name covers the data set, the images, how they are prepared, and the backbone with its weights. Banks lie
    in the user's cache folder (`cache=`), where other runs find them.
    """
    network = _digest(classifier, config)
    folder = config.shard_cache().folder.parent / "features"

    def kept(stream: Stream, first: int, views: Mapping[str, Any]) -> Pass:
        ids = hashlib.sha256("\n".join(stream.samples["id"]).encode()).hexdigest()
        prepared = {"image_size": config.data.image_size, "crop": config.data.crop}
        facts = {"data_set": dataset.content_hash, "images": ids, **prepared, "network": network, **views}
        return Pass(stream, first, bank=FeatureBank(folder, facts))

    passes = [[kept(stream, 0, {})] for stream in plain]
    for view in range(config.model.views - 1):
        augment = dataclasses.asdict(config.data.augment)
        views = {"view": view, "augment": augment, "seed": config.seed, "batch": augmented.global_batch}
        passes[0].append(kept(augmented, view * augmented.batches_per_epoch, views | {"order": augmented.config.order}))
    return passes


def take_fit(classifier: NaiveBayes, fitted: GaussianNB) -> None:
    """Copy scikit-learn's fit into the network. A type without an image in the fit always gets probability 0."""
    classifier.means.copy_(torch.from_numpy(fitted.theta_))
    classifier.variances.copy_(torch.from_numpy(fitted.var_))
    classifier.log_priors.copy_(torch.from_numpy(fitted.class_prior_).log())


def _fit(
    classifier: FittedClassifier,
    features: NDArray[Any],
    labels: NDArray[np.int64],
    held_out: tuple[NDArray[Any], NDArray[np.int64]],
    config: ClassifierRunConfig,
) -> dict[str, float]:
    """Fit the classifier; returns the settings that were chosen on the held-out images, by name."""
    if isinstance(classifier, NaiveBayes):
        types = len(classifier.log_priors)
        take_fit(classifier, GaussianNB().partial_fit(features, labels, classes=range(types)))
        return {}
    if not isinstance(classifier, FrozenClassifier):
        raise TypeError(f"{type(classifier).__name__}: no fit of it is known")
    kind, types = config.model.head, classifier.types
    weights = None if config.data.sampling == "uniform" else balanced_weights(labels, types)
    fitted = choose_head(kind, features, labels, types, validation=held_out, weights=weights)
    classifier.head = fitted.head
    return {{"linear": "l2", "nearest": "neighbours"}[kind]: fitted.setting}


def take_features(
    classifier: FittedClassifier, each: Pass, topology: Topology, clock: StepClock, log: RunLog | None = None
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Features [n, d] and labels [n] of a pass, from its bank if it is whole, else computed and kept there."""
    found = None if each.bank is None or topology.rank != 0 else each.bank.read()
    if distributed.is_initialized():
        shared = [found]
        distributed.broadcast_object_list(shared)
        found = shared[0]
    if found is None:
        found = _measure(classifier, each, clock, log)
        if each.bank is not None and topology.rank == 0:
            each.bank.write(found)
    elif log is not None and each.bank is not None:
        log.say(f"{len(found.rows):,} features read from {each.bank.path}")
    return found.values, np.asarray(each.stream.labels[found.rows], np.int64)


@torch.no_grad()
def _measure(classifier: FittedClassifier, each: Pass, clock: StepClock, log: RunLog | None) -> Features:
    """Features of the images of all processes, in the order of the global batches."""
    features, rows, positions = [], [], []
    stream = each.stream
    batches = itertools.islice(stream.read(each.first), each.length * stream.parts)
    for number, part in enumerate(clock.waiting(batches), start=1):
        features.append(classifier.features(part.images).cpu().numpy())
        rows.append(part.rows)
        positions.append(part.positions)
        if log is not None and number % part.parts == 0:
            log.advance()
    mine = (np.concatenate(features), np.concatenate(rows), np.concatenate(positions))
    everyone: list[Any] = [mine]
    if distributed.is_initialized():
        everyone = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, mine)
    all_features, all_rows, all_positions = (np.concatenate(pieces) for pieces in zip(*everyone, strict=True))
    order = all_positions.argsort()
    clock.images += len(order)
    return Features(all_features[order], all_rows[order])


@torch.no_grad()
def _logits(classifier: FittedClassifier, features: NDArray[Any]) -> torch.Tensor:
    device = next(iter(classifier.state_dict().values())).device
    return classifier.classify(torch.from_numpy(features).to(device)).float().cpu()


def _training_scores(
    classifier: FittedClassifier, features: NDArray[Any], labels: NDArray[np.int64]
) -> dict[str, float]:
    """`loss` (mean negative log likelihood) and `accuracy` on the images that were fitted to."""
    probabilities, truth = _logits(classifier, features).softmax(dim=1), torch.from_numpy(labels)
    return {
        "loss": functional.nll_loss(probabilities.clamp_min(1e-12).log(), truth).item(),
        "accuracy": (probabilities.argmax(dim=1) == truth).double().mean().item(),
    }


def _digest(classifier: FrozenClassifier, config: ClassifierRunConfig) -> str:
    """SHA-256 hex of the backbone: the timm model, its normalisation, its weights."""
    import timm

    adapter = classifier.backbone
    model = config.model
    facts = (model.timm_name, model.least_size, model.stretch, timm.__version__, adapter.scale, adapter.offset)
    digest = hashlib.sha256(repr(facts).encode())
    for name, value in sorted(adapter.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
