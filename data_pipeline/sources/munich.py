"""The Munich set (Matek et al. 2019): the folder is a code, the file name starts with code and number."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from data_pipeline.cell_types import MUNICH_CODES
from data_pipeline.sources.declaration import RawImage, SourceDeclaration, Survey, list_images, passed_over
from data_pipeline.sources.labels import refuse_unknown

# The M8 scanner's 100x oil objective; the same for every image of the set.
MICRONS_PER_PIXEL = 0.07

# BAS_0053_0_6588_109.tiff is an altered copy of BAS_0053.tiff: code and first number name the original.
_ORIGINAL = re.compile(r"([A-Z]{3}_\d+)(?=[_.])")


def survey(declaration: SourceDeclaration) -> Survey:
    """Images below the set's folders; group = code + first number: copies of one original stay together."""
    paths, others = list_images(declaration.root)
    images: list[RawImage] = []
    unknown: list[str] = []
    for path in paths:
        code = PurePosixPath(path).parts[0] if "/" in path else ""
        cell_type = declaration.labels.get(code, MUNICH_CODES.get(code))
        image = RawImage(path, code, cell_type or "", original_of(path), declaration.domain, MICRONS_PER_PIXEL)
        if cell_type is None and not image.hidden:
            unknown.append(code)
        images.append(image)
    refuse_unknown(unknown, declaration.root, f"the Munich set has the folders {', '.join(MUNICH_CODES)}")
    return Survey(images, passed_over(others, declaration.name))


def original_of(path: str) -> str:
    """Code and first number of an image's name, which copies of one original share; '' for a name of another kind."""
    original = _ORIGINAL.match(PurePosixPath(path).name)
    return original.group(1) if original else ""
