"""Corruptions that microscopes, cameras and stains make, of fixed severities (after MedMNIST-C, Di Salvo et al. 2024).

Each is an augmentation of the stream with its parameters fixed, in the same graph.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from data_pipeline.stream.augmentations import Augmentation, Parameters
from data_pipeline.stream.augmentations.blur import Blur
from data_pipeline.stream.augmentations.camera import Camera, camera_changes
from data_pipeline.stream.augmentations.compression import Compression
from data_pipeline.stream.augmentations.noise import Noise
from data_pipeline.stream.augmentations.stain import STEPS_PER_DENSITY, Stain, dye_matrix
from trainer.metrics.classification import epoch_scores
from trainer.metrics.corruption import CorruptionRecord, CorruptionScores
from trainer.tasks.classification.uncertainty.calibration import calibrated_probabilities


class Pixelation(Augmentation):
    """Images of a camera with fewer pixels."""

    name, order = "pixelation", 60

    @property
    def active(self) -> bool:
        return True

    def draw(self, key: int, positions: npt.NDArray[np.int64], image_size: int) -> Parameters:
        size = np.full((len(positions), 2), image_size, np.float32)
        return {"size": size, "pixels": size}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        from nvidia.dali import fn, types

        coarse = fn.resize(images, size=given["pixels"], antialias=True)
        return fn.resize(coarse, size=given["size"], interp_type=types.INTERP_NN)


@dataclass(frozen=True)
class Corruption(Augmentation):
    """An operation with some of its parameters fixed; the others are drawn, by the same key each time."""

    kind: str
    severity: int
    operation: Augmentation
    fixed: Callable[[int], Parameters]  # from the image size to parameters of one sample, or that broadcast to it

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.operation.name

    @property
    def order(self) -> int:  # type: ignore[override]
        return self.operation.order

    @property
    def active(self) -> bool:
        return True

    def draw(self, key: int, positions: npt.NDArray[np.int64], image_size: int) -> Parameters:
        drawn, fixed = self.operation.draw(key, positions, image_size), self.fixed(image_size)
        return {name: np.full_like(values, fixed[name]) if name in fixed else values for name, values in drawn.items()}

    def apply(self, images: Any, given: Mapping[str, Any]) -> Any:
        return self.operation.apply(images, given)


def _fixed(parameters: Parameters) -> Callable[[int], Parameters]:
    return lambda image_size: parameters


def _blurred(share: float) -> Callable[[int], Parameters]:
    return lambda image_size: {"sigma": np.array(share * image_size)}


def _pixelated(share: float) -> Callable[[int], Parameters]:
    return lambda image_size: {"pixels": np.array(round(share * image_size))}


def _camera(
    gain: Sequence[float] = (1.0, 1.0, 1.0), contrast: float = 1.0, saturation: float = 1.0
) -> Callable[[int], Parameters]:
    none = np.zeros(1)
    return _fixed(camera_changes(np.array([gain]), np.array([contrast]), np.array([saturation]), none, none))


def _stained(blue: float, eosin: float) -> Callable[[int], Parameters]:
    matrix = dye_matrix(np.array([[blue, eosin, 1.0]])) * STEPS_PER_DENSITY
    return _fixed({"matrix": matrix, "offset": np.zeros(3)})


_CAMERA, _STAIN = Camera(exposure=1.0), Stain(dye_amount=1.0)
# Kind: the operation, and its parameters at severity 1, 2 and 3.
_KINDS: dict[str, tuple[Augmentation, list[Callable[[int], Parameters]]]] = {
    # standard deviation as a fraction of the side
    "defocus": (Blur(blur=1.0), [_blurred(share) for share in (0.006, 0.012, 0.02)]),
    # standard deviation as a fraction of white
    "noise": (Noise(noise=1.0), [_fixed({"deviation": np.array(share)}) for share in (0.03, 0.06, 0.1)]),
    "JPEG": (Compression(jpeg_quality=1), [_fixed({"quality": np.array(quality)}) for quality in (50, 25, 10)]),
    # fraction of the pixels along a side
    "pixelation": (Pixelation(), [_pixelated(share) for share in (0.7, 0.5, 0.35)]),
    "bright": (_CAMERA, [_camera([gain] * 3) for gain in (1.1, 1.2, 1.35)]),
    "dark": (_CAMERA, [_camera([gain] * 3) for gain in (0.85, 0.7, 0.55)]),
    "low contrast": (_CAMERA, [_camera(contrast=factor) for factor in (0.8, 0.6, 0.45)]),
    "low saturation": (_CAMERA, [_camera(saturation=factor) for factor in (0.7, 0.45, 0.2)]),
    "yellow light": (_CAMERA, [_camera([1.0, 1.0, gain]) for gain in (0.9, 0.8, 0.65)]),
    "blue stain": (_STAIN, [_stained(factor, 1 / factor) for factor in (1.2, 1.5, 1.9)]),
    "red stain": (_STAIN, [_stained(1 / factor, factor) for factor in (1.2, 1.5, 1.9)]),
}
CORRUPTIONS = tuple(
    Corruption(kind, number, operation, fixed)
    for kind, (operation, severities) in _KINDS.items()
    for number, fixed in enumerate(severities, start=1)
)


def score_corruptions(
    answer: Callable[[Augmentation], tuple[torch.Tensor, pd.DataFrame]],
    corruptions: Sequence[Corruption],
    cell_types: Sequence[str],
) -> CorruptionRecord:
    """Scores on images with each of the corruptions.

    answer: the logits [n, types] of images changed by an operation, and the images' catalogue rows.
    """
    scores = []
    for corruption in corruptions:
        logits, samples = answer(corruption)
        labels = samples["cell_type"].map({name: number for number, name in enumerate(cell_types)}).to_numpy(np.int64)
        found = epoch_scores(calibrated_probabilities(logits, 1.0).numpy(), labels)
        scores.append(
            CorruptionScores(corruption.kind, corruption.severity, found["accuracy"], found["balanced_accuracy"])
        )
    return CorruptionRecord.of(scores)
