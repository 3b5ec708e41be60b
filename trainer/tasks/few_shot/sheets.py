"""Sample sheets of a few-shot run: a rare type's training images, what they become, new cells (figures 48-50)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_pipeline.randomness import derive_key
from trainer.reports.sheets import draw_sheet
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.load import evaluating, latents, make_images

_FRESH_ROWS = 2


class FewShotSheets:
    """Draws the same training images with the same noise again and again, so that sheets can be compared."""

    def __init__(self, config: FewShotRunConfig, run: Path) -> None:
        self._config = config
        self._folder = run / "samples"

    @torch.no_grad()
    def draw(self, cell_type: str, images: torch.Tensor, networks: Mapping[str, nn.Module], moment: str) -> None:
        """Write `<cell type>-<moment>.png`.

        images: float32 [k, 3, S, S], the type's training images, on the networks' device; networks: by name. Rows are
        the input, with an encoder its reconstructions with z1 and z2, and new images.
        """
        with evaluating(networks):
            rows = self._rows(cell_type, images, networks)
        columns = torch.stack(list(rows.values()), dim=1)
        path = self._folder / f"{cell_type.replace(' ', '-')}-{moment}.png"
        draw_sheet(path, [""] * len(columns), list(columns), list(rows))

    def _rows(self, cell_type: str, images: torch.Tensor, networks: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
        model = self._config.model
        count = min(len(images), self._config.sheet_columns)
        rows = {"input": images[:count]}
        features = networks["encoder"](images).cpu() if "encoder" in networks else None
        key = derive_key(self._config.seed, "sheet", cell_type)
        indices = np.arange(count)
        if features is not None:
            for name in ("z1", "z2"):
                noise = latents(model, None, derive_key(key, name), indices)
                numbers = torch.cat([noise, features[:count]], dim=1).to(images.device)
                rows[f"reconstruction {name}"] = make_images(model, networks, numbers, indices)
        for number in range(_FRESH_ROWS):
            numbers = latents(model, features, key, indices + number * count).to(images.device)
            rows[f"sample {number + 1}"] = make_images(model, networks, numbers, indices)
        return rows
