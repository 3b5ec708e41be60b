"""Calibrated probabilities: a temperature for a classifier and a number of views, fitted on validation images."""

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
_FORMAT_VERSION = 2
# With fewer validation images no temperature is fitted.
LEAST_IMAGES = 20
# The upper bound is for naive Bayes, which is overconfident: it takes dependent features for independent ones.
BOUNDS = (0.1, 100.0)


@dataclass(frozen=True)
class Calibration:
    """Temperature scaling (Guo et al. 2017, section 4.2)."""

    temperature: float = 1.0  # divides the logits before the softmax; above 1: the classifier was overconfident
    images: int = 0  # validation images it was fitted on
    # Why it was not fitted, or what is odd about it.
    remark: str = "not fitted: train_classifier.py, given the run's command again, fits it"
    checkpoint: str = ""  # digest of the checkpoint it was fitted for
    views: int = 1  # of each image whose mean answer it was fitted for


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
    """Softmax float64 [n, types] of logits [n, types]; in float64, so that rounding makes no two types equal."""
    return (logits.double() / temperature).softmax(dim=1)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, checkpoint: str, views: int = 1) -> Calibration:
    """The temperature with the least mean negative log likelihood. logits [n, types], labels int64 [n], on the CPU.

    checkpoint, views: what the logits are of.

    It stays 1, with a remark, for fewer than LEAST_IMAGES images, images of one type, and when all answers are right:
    the likelihood then only grows with confidence.
    """
    images = len(labels)

    def kept(reason: str) -> Calibration:
        return Calibration(1.0, images, f"temperature left at 1: {reason}", checkpoint, views)

    if images < LEAST_IMAGES:
        return kept(f"{images} validation images are fewer than {LEAST_IMAGES}")
    if len(labels.unique()) < 2:
        return kept("all validation images are of one type")
    if bool((logits.argmax(dim=1) == labels).all()):
        return kept(f"all answers to the {images} validation images are right")
    logits = logits.double()
    # A probability of 0, as naive Bayes gives, stays 0 at any temperature.
    possible = logits.gather(1, labels[:, None])[:, 0].isfinite()
    logits, labels = logits[possible], labels[possible]
    if not len(labels):
        return kept("no validation image is of a type with a probability above 0")

    def loss(log_temperature: float) -> float:
        return functional.cross_entropy(logits / math.exp(log_temperature), labels).item()

    from scipy.optimize import minimize_scalar  # here: the training before it need not wait for it

    # Convex in 1/temperature, so there is one minimum in its logarithm.
    low, high = (math.log(bound) for bound in BOUNDS)
    found = math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5}).x)
    nearest = min(BOUNDS, key=lambda bound: abs(math.log(bound / found)))
    remark = f"at its bound of {nearest:g}" if abs(math.log(nearest / found)) < 1e-3 else ""
    return Calibration(found, images, remark, checkpoint, views)


def save_calibration(run: Path, *fitted: Calibration) -> None:
    """Write the run's calibration.json; it appears whole. fitted: one for each number of views."""
    content = {"format_version": _FORMAT_VERSION, "fitted": [asdict(each) for each in fitted]}
    replace_through(run / FILE, (json.dumps(with_checksum(content), indent=1) + "\n").encode())


def load_calibration(run: Path, checkpoint: str, views: int = 1) -> Calibration:
    """The run's calibration for the checkpoint of this digest; temperature 1 where none was fitted to it.

    UserError where the file is damaged.
    """
    path, none = run / FILE, Calibration(views=views)
    if not path.exists():
        return none
    try:
        content = checked(json.loads(path.read_text()))
        # In the first version the file was one calibration, of one view.
        fitted = [Calibration(**each) for each in content.get("fitted", [content])]
        for each in fitted:
            if not 0 < each.temperature < math.inf:
                raise ValueError(f"temperature {each.temperature}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a calibration, or damaged ({error}): delete it and give the command of the run again"
        ) from error
    return next((each for each in fitted if (each.checkpoint, each.views) == (checkpoint, views)), none)
