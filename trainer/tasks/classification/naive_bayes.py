"""Learning without gradients: naive Bayes is fitted in one pass over the training images."""

import itertools
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.naive_bayes import GaussianNB
from torch import distributed
from torch.nn import functional

from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from models.classifiers.architectures.naive_bayes import NaiveBayes
from models.classifiers.hand_features import hand_features
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.clock import StepClock
from trainer.loop.fit import AfterEpoch, Selection
from trainer.loop.log import RunLog
from trainer.loop.progress import Progress, checkpoint_state
from trainer.tasks.classification.evaluation import validation_scores


def fit_naive_bayes(
    classifier: NaiveBayes,
    stream: Stream,
    held_out: Stream,
    *,
    steps: int,
    selection: Selection,
    run: Path,
    topology: Topology,
    fingerprint: Mapping[str, Any],
    after_epoch: AfterEpoch | None = None,
) -> None:
    """Fit by scikit-learn's GaussianNB to the first `steps` global batches of the stream, on any number of processes.

    The run then holds what `fit` leaves of one epoch: its record in metrics.jsonl and a checkpoint, the
    best, with the selection's score on `held_out`. A fit that is cut off leaves no checkpoint and begins anew.
    fingerprint, after_epoch: see `fit`.
    """
    classifier.to(topology.device).eval()
    log = RunLog(run, step=0, total_steps=steps, enabled=topology.rank == 0, description="fitting")
    clock = StepClock()
    with closing(log):
        features, labels = _measure(itertools.islice(clock.waiting(stream.read()), steps * stream.parts), log)
        take_fit(classifier, GaussianNB().partial_fit(features, labels, classes=range(len(stream.cell_types))))
        clock.images = len(labels)
        speed = clock.epoch()
        training, validation = _scores(classifier, features, labels), validation_scores(classifier, held_out)
        numbers = {f"train_{name}": value for name, value in training.items()}
        numbers |= {f"validation_{name}": value for name, value in validation.items()}
        log.record("epoch", steps, epoch=0, **numbers, **speed)
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


def take_fit(classifier: NaiveBayes, fitted: GaussianNB) -> None:
    """Copy scikit-learn's fit into the network. A type without an image in the fit always gets probability 0."""
    classifier.means.copy_(torch.from_numpy(fitted.theta_))
    classifier.variances.copy_(torch.from_numpy(fitted.var_))
    classifier.log_priors.copy_(torch.from_numpy(fitted.class_prior_).log())


@torch.no_grad()
def _measure(micro_batches: Iterable[MicroBatch], log: RunLog) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Features [n, features] and labels [n] of the images of all processes, in the order of the global batches."""
    features, labels, positions = [], [], []
    for number, part in enumerate(micro_batches, start=1):
        features.append(hand_features(part.images).cpu().numpy())
        labels.append(part.labels.cpu().numpy())
        positions.append(part.positions)
        if number % part.parts == 0:
            log.advance()
    mine = (np.concatenate(features), np.concatenate(labels), np.concatenate(positions))
    everyone: list[Any] = [mine]
    if distributed.is_initialized():
        everyone = [None] * distributed.get_world_size()
        distributed.all_gather_object(everyone, mine)
    all_features, all_labels, all_positions = (np.concatenate(pieces) for pieces in zip(*everyone, strict=True))
    order = all_positions.argsort()
    return all_features[order], all_labels[order]


def _scores(classifier: NaiveBayes, features: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """`loss` (mean negative log likelihood) and `accuracy` on the images that were fitted to."""
    device = classifier.means.device
    probabilities = classifier.log_posterior(torch.from_numpy(features).to(device)).exp().cpu()
    truth = torch.from_numpy(labels)
    return {
        "loss": functional.nll_loss(probabilities.clamp_min(1e-12).log(), truth).item(),
        "accuracy": (probabilities.argmax(dim=1) == truth).double().mean().item(),
    }
