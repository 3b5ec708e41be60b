"""Probabilities that mean what they say: one temperature for a classifier, fitted on validation images."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError

FILE = "calibration.json"
# Fewer validation images tell too little of a classifier's confidence.
LEAST_IMAGES = 20
# Naive Bayes counts dependent features as independent ones, and so is sure beyond measure: hence the upper bound.
BOUNDS = (0.1, 100.0)


@dataclass(frozen=True)
class Calibration:
    """What a classifier's logits are divided by before the softmax (Guo et al. 2017, section 4.2).

    temperature: above 1 for a classifier that was too sure, below 1 for one that was not sure enough. images: of the
    validation split, on which it was fitted. remark: why it was not fitted, or what is odd about it; '' nothing.
    checkpoint: digest of the one that it belongs to.
    """

    temperature: float = 1.0
    images: int = 0
    remark: str = "not fitted: train_classifier.py, given the run's command again, fits it"
    checkpoint: str = ""


class Calibrated(nn.Module):
    """A classifier whose logits are divided by a temperature: images -> logits float32 [n, types]."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network = network
        self._temperature = temperature

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(images)
        return logits.float() / self._temperature


def calibrated_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Float64 [n, types] of logits [n, types]: in float64, so that no two types become level by rounding."""
    return (logits.double() / temperature).softmax(dim=1)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, checkpoint: str) -> Calibration:
    """The temperature of the least mean negative log likelihood. logits [n, types], labels int64 [n], on the CPU.

    It stays 1, and the remark says why, where the images are fewer than LEAST_IMAGES, of one type, or all named
    rightly: the likelihood would then only grow with confidence.
    """
    images = len(labels)

    def kept(reason: str) -> Calibration:
        return Calibration(1.0, images, f"temperature left at 1: {reason}", checkpoint)

    if images < LEAST_IMAGES:
        return kept(f"{images} validation images are fewer than {LEAST_IMAGES}")
    if len(labels.unique()) < 2:
        return kept("all validation images are of one type")
    if bool((logits.argmax(dim=1) == labels).all()):
        return kept(f"all {images} validation images are named rightly")
    logits = logits.double()
    # A type that naive Bayes holds for impossible stays so at any temperature.
    possible = logits.gather(1, labels[:, None])[:, 0].isfinite()
    logits, labels = logits[possible], labels[possible]
    if not len(labels):
        return kept("no validation image is of a type that the classifier holds for possible")

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits / math.exp(log_temperature), labels).item()

    from scipy.optimize import minimize_scalar  # here: the training before it need not wait for it

    # Convex in 1/temperature, so of one minimum in its logarithm.
    low, high = (math.log(bound) for bound in BOUNDS)
    found = math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5}).x)
    nearest = min(BOUNDS, key=lambda bound: abs(math.log(bound / found)))
    remark = f"at its bound of {nearest:g}" if abs(math.log(nearest / found)) < 1e-3 else ""
    return Calibration(found, images, remark, checkpoint)


def save_calibration(run: Path, calibration: Calibration) -> None:
    """Write the run's calibration.json; it appears whole."""
    replace_through(run / FILE, (json.dumps(with_checksum(asdict(calibration)), indent=1) + "\n").encode())


def load_calibration(run: Path, checkpoint: str) -> Calibration:
    """The run's, for the checkpoint of this digest; temperature 1 where none was fitted to it.

    UserError where the file is damaged.
    """
    path = run / FILE
    if not path.exists():
        return Calibration()
    try:
        calibration = Calibration(**checked(json.loads(path.read_text())))
        if not 0 < calibration.temperature < math.inf:
            raise ValueError(f"temperature {calibration.temperature}")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a calibration, or damaged ({error}): delete it and give the command of the run again"
        ) from error
    return calibration if calibration.checkpoint == checkpoint else Calibration()
