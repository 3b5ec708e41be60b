"""From trained classifiers to the network that answers: normaliser, views of an image, several runs' mean answer.

Scores, predictions and exports all take their network from here. Order of the steps, inside out: a run's network; the
mean over views; the run's normaliser before it; and, of several runs, each calibrated, their mean.
"""

import functools
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings
from trainer.learners.choices import VIEWS
from trainer.runs.normalizers.bundle import NormalizerBundle
from trainer.tasks.classification.inference.load import TrainedClassifier, load_classifier
from trainer.tasks.classification.inference.logits import scoring_batch
from trainer.tasks.classification.uncertainty.calibration import FILE, Calibrated, Calibration, load_calibration
from trainer.tasks.classification.uncertainty.reference import Uncertainty, load_reference
from trainer.tasks.classification.uncertainty.views import Views, mean_log_probabilities


class NormalizedClassifier(nn.Module):
    """A classifier of normalised images that takes raw ones: normaliser, resizing, classifier."""

    def __init__(self, classifier: nn.Module, normalizer: NormalizerBundle, image_size: int) -> None:
        super().__init__()
        self.classifier = classifier
        # Submodules where they are networks, so that they are moved and exported too.
        self.generator = getattr(normalizer.normalizer, "network", None)
        self.gate = None if normalizer.gate is None else normalizer.gate.network
        self._normalizer = normalizer
        self._image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 [n, 3, S, S] in [-1, 1], S the normaliser's -> logits [n, types]."""
        normalized = _resized(self._normalizer(images), self._image_size)
        return self.classifier(normalized)


class MemberNetwork(nn.Module):
    """A member's part in an ensemble: the middle of its images, at its size, and its types in the ensemble's order."""

    def __init__(self, network: nn.Module, share: float, image_size: int, order: Iterable[int]) -> None:
        """share: of the sides of the ensemble's images. order: the member's type for each of the ensemble's."""
        super().__init__()
        self.network = network
        self._share, self._image_size, self._order = share, image_size, list(order)

    def forward(self, images: Tensor) -> Tensor:
        """Images float32 [n, 3, S, S] in [-1, 1], S the ensemble's -> logits [n, types]."""
        side = round(images.shape[-1] * self._share)
        start = (images.shape[-1] - side) // 2
        middle = images[:, :, start : start + side, start : start + side]
        logits: Tensor = self.network(_resized(middle, self._image_size))
        return logits[:, self._order]


class MeanOfMembers(nn.Module):
    """An ensemble's answer, the mean probability: images [n, 3, S, S] -> log probabilities float32 [n, types]."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        each = [member(images).float().log_softmax(dim=1) for member in self.members]
        return mean_log_probabilities(torch.stack(each, dim=1))


def _resized(images: Tensor, side: int) -> Tensor:
    if images.shape[-1] == side:
        return images
    return functional.interpolate(images, (side, side), mode="bilinear", antialias=True)


@dataclass(frozen=True)
class Answering:
    """The network for images of one domain, and how these are prepared for it."""

    network: nn.Module  # images float32 [n, 3, S, S] in [-1, 1] -> logits [n, types], before the temperature
    image_size: int  # S
    crop: float  # share of the images' sides that is kept
    shares: tuple[float, ...]  # of these images' sides that each member sees
    normalizers: tuple[NormalizerBundle | None, ...]  # of each member, where it is part of the network


@dataclass(frozen=True)
class Ensemble:
    """Trained classifiers, one or several, that answer together over views of each image.

    UserError for members that know different cell types or whose training images are stored in different ways.
    """

    members: tuple[TrainedClassifier, ...]
    views: int = 1  # see `views_of`

    def __post_init__(self) -> None:
        first, *others = self.members
        for other in others:
            if set(other.cell_types) != set(first.cell_types):
                differ = sorted(set(other.cell_types) ^ set(first.cell_types))
                raise UserError(
                    f"{first.folder} and {other.folder} cannot answer together: one of them does not know "
                    f"{', '.join(differ)}: give runs of the same cell types"
                )
            if _storage(other.storage) != _storage(first.storage):
                raise UserError(
                    f"{first.folder} and {other.folder} cannot answer together: the images of one were stored as "
                    f"{_storage(first.storage)}, of the other as {_storage(other.storage)}: give runs of data sets "
                    "built with the same codec and stored_size"
                )
        if len({member.checkpoint.digest for member in self.members}) < len(self.members):
            raise UserError(f"run=[{', '.join(str(each.folder) for each in self.members)}]: name each run once")

    @classmethod
    def load(cls, runs: Sequence[Path], views: int) -> "Ensemble":
        """The best checkpoints of runs. UserError where there is none, and where they cannot answer together."""
        return cls(tuple(map(load_classifier, runs)), views)

    @property
    def cell_types(self) -> tuple[str, ...]:
        """In the order of the first member."""
        return self.members[0].cell_types

    @property
    def name(self) -> str:
        """For messages: the folders of the members."""
        return " + ".join(str(member.folder) for member in self.members)

    @property
    def batch(self) -> int:
        """Images that a rank scores at a time."""
        return max(1, min(scoring_batch(member.config.train) for member in self.members) // self.views)

    @property
    def plain(self) -> nn.Module | None:
        """The network of a single run that sees each image once; None for anything else."""
        return self.members[0].network if len(self.members) == self.views == 1 else None

    @functools.cached_property
    def calibrations(self) -> tuple[Calibration, ...]:
        """Of each member, for this number of views."""
        if self.views == 1:
            return tuple(member.calibration for member in self.members)
        return tuple(load_calibration(each.folder, each.checkpoint.digest, self.views) for each in self.members)

    @property
    def calibration(self) -> Calibration:
        """What remains to be done to the answers of `answering`.

        The members of an ensemble are calibrated each, and the mean of their probabilities is left as it is. A
        temperature for the mean, fitted too, changed the calibration error less than its interval.
        """
        if len(self.members) == 1:
            return self.calibrations[0]
        each = ", ".join(f"{calibration.temperature:.3f}" for calibration in self.calibrations)
        remarks = dict.fromkeys(calibration.remark for calibration in self.calibrations if calibration.remark)
        images = min(calibration.images for calibration in self.calibrations)
        remark = "; ".join([f"the mean of members calibrated each, at temperatures {each}", *remarks])
        return Calibration(1.0, images, remark, views=self.views)

    @functools.cached_property
    def uncertainty(self) -> Uncertainty | None:
        """None if a member keeps no reference for its checkpoint, or the members share no validation images."""
        found = [load_reference(each.folder, each.checkpoint.digest) for each in self.members]
        references = [each for each in found if each is not None]
        if len(references) < len(found):
            return None
        view = VIEWS.index(self.views)
        answers = [
            (reference.answers[:, view] / calibration.temperature).log_softmax(dim=1)[:, self._order(member)]
            for reference, calibration, member in zip(references, self.calibrations, self.members, strict=True)
        ]
        return Uncertainty.of([each.network for each in self.members], references, answers)

    def _order(self, member: TrainedClassifier) -> list[int]:
        """The member's type for each of the ensemble's."""
        return [member.cell_types.index(name) for name in self.cell_types]

    def tell_if_uncalibrated(self) -> None:
        """A line on stderr for each member without a temperature for its checkpoint and this number of views."""
        for member, calibration in zip(self.members, self.calibrations, strict=True):
            if calibration.checkpoint != member.checkpoint.digest:
                views = f" and {self.views} views" if self.views > 1 else ""
                path = member.folder / FILE
                print(f"warning: {path}: none for this checkpoint{views}; {calibration.remark}", file=sys.stderr)

    def takes_nucleus_of(self, domain: str | None) -> bool:
        """Whether images of the domain (None: not known) are cropped by their nuclei: a member does not know it."""
        return any(member.config.nucleus_share is not None and not member.knows(domain) for member in self.members)

    def answering(self, domains: Sequence[str | None], nucleus: float | None = None) -> Answering:
        """The network for images of a domain, which may be another one for each member; None: any.

        domains: of the images, as each member names it. nucleus: median of an unknown domain, see `scale`.
        """
        parts = [self._member(*each, nucleus) for each in zip(self.members, self.calibrations, domains, strict=True)]
        if len(parts) == 1:
            return parts[0]
        crop = max(part.crop for part in parts)
        # Fine enough that no member's images are enlarged.
        side = max(math.ceil(part.image_size * crop / part.crop - 1e-6) for part in parts)
        shares = tuple(part.crop / crop for part in parts)
        networks = [
            MemberNetwork(part.network, share, part.image_size, self._order(member))
            for part, member, share in zip(parts, self.members, shares, strict=True)
        ]
        normalizers = tuple(each for part in parts for each in part.normalizers)
        return Answering(MeanOfMembers(networks).eval(), side, crop, shares, normalizers)

    def _member(
        self, member: TrainedClassifier, calibration: Calibration, domain: str | None, nucleus: float | None
    ) -> Answering:
        network, data = member.network, member.config.data
        normalizer = None if member.normalizer is None else member.normalizer.of_source(domain)
        if self.views > 1:
            network = Views(network, self.views)
        if len(self.members) > 1:
            network = Calibrated(network, calibration.temperature)
        if normalizer is not None:
            network = NormalizedClassifier(network, normalizer, data.image_size)
            return Answering(network.eval(), normalizer.image_size, normalizer.crop, (1.0,), (normalizer,))
        return Answering(network.eval(), data.image_size, member.crop_of(domain, nucleus), (1.0,), (None,))


def _storage(settings: ShardSettings) -> str:
    quality = f" of quality {settings.quality}" if settings.codec == "jpeg" else ""
    size = f"{settings.stored_size} px" if settings.stored_size else "their own size"
    return f"{settings.codec}{quality} at {size}"
