"""Pictures of no cell: by how unfamiliar they are a report says whether such pictures would be noticed."""

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import nn

from trainer.metrics.uncertainty import UNFAMILIARITY

KIND = "everyday picture (no cell)"
# Pictures that microscopes or scanners took, or that have one colour only.
_NOT_EVERYDAY = {"cell", "ihc", "retina", "microaneurysms", "phantom", "color", "multipage", "multipage_rgb"}


@cache
def everyday_pictures() -> dict[str, Image.Image]:
    """Those that scikit-image brings along, by their names."""
    import skimage.data  # here: most of what imports this file shows no picture

    paths = sorted(Path(skimage.data.__file__).parent.iterdir())
    paths = [path for path in paths if path.suffix in (".png", ".jpg", ".gif") and path.stem not in _NOT_EVERYDAY]
    return {path.stem: Image.open(path).convert("RGB") for path in paths}


def unfamiliarity_of_pictures(network: nn.Module, size: int, batch: int, device: torch.device) -> pd.DataFrame:
    """Columns cell_type (KIND), group (each its own) and UNFAMILIARITY of the middle squares of everyday pictures.

    network: images float32 [n, 3, size, size] in [-1, 1] -> float32 [n, types + 1], unfamiliarity last. batch: pictures
    that go through it at once.
    """
    pictures = everyday_pictures()
    pixels = np.stack([np.asarray(ImageOps.fit(picture, (size, size))) for picture in pictures.values()])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        found = torch.cat([network(part.to(device))[:, -1].float().cpu() for part in images.split(batch)])
    return pd.DataFrame({"cell_type": KIND, "group": list(pictures), UNFAMILIARITY: found.numpy()})
