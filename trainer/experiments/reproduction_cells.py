"""Figures 13 and 21 of the thesis: real cells of each type, in each stain."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.ingest.images import decode_rgb
from trainer.reports.sheets import draw_sheet

_EACH = 3  # images of each type in each stain
_SIDE = 96  # pixels


def draw_cells(path: Path, dataset: Dataset, stains: Sequence[str]) -> None:
    """Write a sheet: a row for each type that the data set has, the first images of each stain by id."""
    samples = dataset.samples(domains=stains)
    types = [name for name in CELL_TYPES if name in set(samples["cell_type"])]
    columns = []
    for stain in stains:
        of_stain = samples[samples["domain"] == stain]
        pictures = [_pictures(dataset, of_stain[of_stain["cell_type"] == name].head(_EACH)) for name in types]
        columns += list(torch.stack(pictures, dim=1))
    draw_sheet(path, [stain for stain in stains for _ in range(_EACH)], columns, types)


def _pictures(dataset: Dataset, rows: pd.DataFrame) -> torch.Tensor:
    """float32 [_EACH, 3, S, S] in [-1, 1], white where there are fewer images."""
    found = torch.ones(_EACH, 3, _SIDE, _SIDE)
    for place, row in enumerate(rows.itertuples()):
        pixels = np.array(decode_rgb(dataset.read_encoded(row)).resize((_SIDE, _SIDE)), np.float32)
        found[place] = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    return found
