"""A data set's normaliser as a file, which is also copied into the run of a classifier trained on that data set."""

import dataclasses
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, get_args

import pandas as pd
import torch
from torch import Tensor

from data_pipeline.catalog import Dataset
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from trainer.runs.normalizers.classical import Macenko, Reinhard, ReinhardDomain
from trainer.runs.normalizers.learned import LearnedNormalizer
from trainer.runs.normalizers.type_gate import TypeGate

FILE = "normalizer.pt"
_FORMAT_VERSION = 2
# What a damaged or foreign file raises.
_DAMAGED = (OSError, EOFError, RuntimeError, KeyError, TypeError, ValueError, pickle.UnpicklingError)


StainNormalizer = Reinhard | ReinhardDomain | Macenko | LearnedNormalizer
# The class's name in a bundle's file -> the class.
_KINDS: dict[str, type[StainNormalizer]] = {kind.__name__: kind for kind in get_args(StainNormalizer)}


@dataclass(frozen=True)
class Selection:
    """The samples of one domain that a normaliser was trained or fitted on."""

    dataset_hash: str  # content hash of their data set
    splits: list[str] | None  # None: all splits
    folds: list[int] | None  # None: all folds


@dataclass(frozen=True)
class NormalizerBundle:
    """A normaliser and how raw images are prepared for it."""

    normalizer: StainNormalizer
    source: str  # domain of the raw images
    target: str  # domain whose stain they take
    image_size: int  # side in pixels of the square images that it takes
    crop: float  # share of the raw images' sides that is kept
    learned: Selection  # images of `source` that it was trained or fitted on
    gate: TypeGate | None = None  # None: all images are normalised
    other: Optional["NormalizerBundle"] = None  # of the opposite direction, where it is used too

    @property
    def directions(self) -> list["NormalizerBundle"]:
        """Itself, and the one of the opposite direction if there is one."""
        return [self] if self.other is None else [self, self.other]

    def of_source(self, domain: str | None) -> Optional["NormalizerBundle"]:
        """The direction for raw images of a domain; None: they stay as they are."""
        return next((each for each in self.directions if each.source == domain), None)

    def __call__(self, images: Tensor) -> Tensor:
        """Images float32 [n, 3, S, S] in [-1, 1] normalised, those that the gate holds back as they are."""
        normalized = self.normalizer(images)
        if self.gate is None:
            return normalized
        return torch.where(self.gate.passes(images)[:, None, None, None], normalized, images)

    def count_seen(self, dataset: Dataset, samples: pd.DataFrame) -> int | None:
        """Number of samples that the normaliser was trained or fitted on; None if it is of another data set.

        A normaliser uses no labels, but a score must say when the normaliser had seen the scored images' stain.
        """
        learned = self.learned
        if dataset.content_hash != learned.dataset_hash:
            return None
        seen = dataset.samples(splits=learned.splits, domains=[self.source], folds=learned.folds, columns=["id"])
        return int(samples["id"].isin(seen["id"]).sum())

    def describe(self) -> dict[str, Any]:
        """Plain values that name it in scores."""
        facts = {"source": self.source, "target": self.target, "image_size": self.image_size}
        facts |= {} if self.gate is None else {"by_type_of": self.gate.describe()}
        return facts | self.normalizer.describe()


def normalized_domain(source: str, target: str) -> str:
    """The domain of images of stain `source` that were given the look of stain `target`."""
    return f"{source}_as_{target}"


def save_bundle(path: Path, bundle: NormalizerBundle) -> None:
    """Write a bundle's file; equal bundles give equal bytes with one version of torch."""
    content = io.BytesIO()  # torch.save would write a file's name into its bytes
    torch.save({"format_version": _FORMAT_VERSION, **_facts(bundle)}, content)
    replace_through(path, content.getvalue())


def _facts(bundle: NormalizerBundle) -> dict[str, Any]:
    facts = {field.name: getattr(bundle, field.name) for field in dataclasses.fields(bundle)}
    facts["normalizer"] = bundle.normalizer.state_dict()
    facts["learned"] = dataclasses.asdict(bundle.learned)
    facts["gate"] = None if bundle.gate is None else bundle.gate.state_dict()
    facts["other"] = None if bundle.other is None else _facts(bundle.other)
    return {"kind": type(bundle.normalizer).__name__, **facts}


def _from_facts(facts: dict[str, Any]) -> NormalizerBundle:
    """A file of an earlier version holds neither gate nor opposite direction."""
    gate, other = facts.get("gate"), facts.get("other")
    facts["normalizer"] = _KINDS[facts.pop("kind")].from_state(facts["normalizer"])
    facts["learned"] = Selection(**facts["learned"])
    facts["gate"] = None if gate is None else TypeGate.from_state(gate)
    facts["other"] = None if other is None else _from_facts(other)
    return NormalizerBundle(**facts)


def load_bundle(path: Path) -> NormalizerBundle:
    """Read a bundle's file without running pickled code. UserError if it is damaged or of another format."""
    try:
        facts = dict(torch.load(path, map_location="cpu", weights_only=True))
        if facts.pop("format_version", 1) != _FORMAT_VERSION:
            raise ValueError("written by another version")
        return _from_facts(facts)
    except _DAMAGED as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a normaliser, or damaged ({reason}): normalise the data set again") from error
