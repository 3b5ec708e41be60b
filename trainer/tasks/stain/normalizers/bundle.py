"""A data set's normaliser as a file: it travels with the data set, and with a classifier trained on it."""

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from trainer.tasks.stain.normalizers.base import StainNormalizer
from trainer.tasks.stain.normalizers.classical import CLASSICAL
from trainer.tasks.stain.normalizers.learned import LearnedNormalizer

FILE = "normalizer.pt"


@dataclass(frozen=True)
class NormalizerBundle:
    """What raw images go through before a classifier that was trained on normalised ones sees them.

    target: the domain whose stain is taken. source: the domain it was made for. image_size: pixels of the
    square that is normalised. crop: share of the sides of the source's images that is kept. learned: which of
    the source's images it was trained or fitted on: dataset_hash, splits, folds.
    """

    normalizer: StainNormalizer
    source: str
    target: str
    image_size: int
    crop: float
    learned: dict[str, Any]

    def count_seen(self, dataset: Dataset, samples: pd.DataFrame) -> int | None:
        """How many of a data set's samples it learned from; None where it cannot be told for this data set.

        A normaliser looks at no label, yet a score should say when it had seen the images' stain.
        """
        if dataset.content_hash != self.learned["dataset_hash"]:
            return None
        chosen = dataset.samples(
            splits=self.learned["splits"], domains=[self.source], folds=self.learned["folds"], columns=["id"]
        )
        return int(samples["id"].isin(chosen["id"]).sum())

    def describe(self) -> dict[str, Any]:
        """Plain values that name it in scores (contract C14)."""
        return {
            "source": self.source,
            "target": self.target,
            "image_size": self.image_size,
        } | self.normalizer.describe()


def normalized_domain(source: str, target: str) -> str:
    """The domain name of images of one stain in the look of another."""
    return f"{source}_as_{target}"


def save_bundle(path: Path, bundle: NormalizerBundle) -> None:
    """Write a bundle's file; the same bundle gives the same bytes on one version of torch."""
    facts = {
        "source": bundle.source,
        "target": bundle.target,
        "image_size": bundle.image_size,
        "crop": bundle.crop,
        "learned": bundle.learned,
    }
    content = io.BytesIO()  # a file's name would be written into its bytes
    torch.save({**facts, "normalizer": bundle.normalizer.state_dict()}, content)
    replace_through(path, content.getvalue())


def load_bundle(path: Path) -> NormalizerBundle:
    """Read a bundle's file; no pickled code is run. UserError when it is damaged."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = saved["normalizer"]
        kind = CLASSICAL.get(state["name"], LearnedNormalizer)
        return NormalizerBundle(
            kind.from_state(state),
            saved["source"],
            saved["target"],
            saved["image_size"],
            saved["crop"],
            saved["learned"],
        )
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path}: not a normaliser, or damaged ({reason}): normalise the data set again") from error
