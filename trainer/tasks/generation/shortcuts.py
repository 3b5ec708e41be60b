"""Whether a classifier that learns from real and generated images could tell them apart by how they were made."""

from collections.abc import Sequence

import numpy as np
import torch

from data_pipeline.randomness import derive_key, permute
from trainer.metrics.shortcut import Floats, detect_generated, traces
from trainer.tasks.generation.images import ImageReader, to_intensity
from trainer.tasks.generation.records import Shortcut
from trainer.tasks.generation.scores import ScoringSettings, TypeImages


class Shortcuts:
    """Detects generated images among real training images: for each type and for all types, at several image sizes.

    Each type has as many real as generated images, so that both sides have the same mixture of types. See
    records.Shortcut.
    """

    def __init__(self, reader: ImageReader, sizes: Sequence[int], settings: ScoringSettings) -> None:
        self._reader = reader
        self._settings = settings
        # Size -> of each type so far the groups of its real images, and the traces [n, t] of each kind of image.
        self._found: dict[int, list[tuple[list[str], dict[str, Floats]]]] = {size: [] for size in sizes}

    def of_type(self, images: TypeImages) -> list[Shortcut]:
        """Add a cell type, and return its detection record for each image size."""
        samples, seed = self._reader.real_samples("train", images.cell_type), self._settings.seed
        count = min(len(samples), len(images.generated), self._settings.shortcut_images)
        chosen = [
            np.sort(permute(derive_key(seed, "shortcut", images.cell_type, kind), np.arange(count), among))
            for kind, among in (("real", len(samples)), ("generated", len(images.generated)))
        ]
        samples, generated = samples.iloc[chosen[0]], images.generated[torch.from_numpy(chosen[1])]
        small = images.train[torch.from_numpy(chosen[0])]
        for size, parts in self._found.items():
            kinds = {
                "as_stored": self._reader.read_real(samples, size),
                "same_way": self._reader.store_and_read(small, size),
                "generated": self._reader.store_and_read(generated, size),
            }
            points = {name: traces(to_intensity(each)) for name, each in kinds.items()}
            parts.append((samples["group"].tolist(), points))
        return [self._detect(size, parts[-1:]) for size, parts in self._found.items()]

    def over_all(self) -> list[Shortcut]:
        """Detection records over all types added so far, one for each image size."""
        return [self._detect(size, parts) for size, parts in self._found.items()]

    def _detect(self, size: int, parts: Sequence[tuple[list[str], dict[str, Floats]]]) -> Shortcut:
        groups = [group for own, _ in parts for group in own]
        points = {
            name: np.concatenate([of_type[name] for _, of_type in parts])
            for name in ("as_stored", "same_way", "generated")
        }
        generated, seed = points["generated"], self._settings.seed
        return Shortcut(
            size,
            detect_generated(points["as_stored"], groups, generated, seed),
            detect_generated(points["same_way"], groups, generated, seed),
        )
