"""Small raw images and sources of them, for the tests of building data sets."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.sources import SourceDeclaration, Survey, survey

SIDE = 40


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """A smooth random picture: as far from any other in perceptual hash as two cells are, or further."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def encoded(seed: int, image_format: str = "JPEG", side: int = SIDE) -> bytes:
    data = io.BytesIO()
    picture(seed, side).save(data, image_format)
    return data.getvalue()


def write_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(seed, "PNG" if path.suffix == ".png" else "JPEG"))
    return path


def write_classes(root: Path, counts: dict[str, int], first_seed: int) -> Path:
    """A folder per class, each with so many images, none like another."""
    seed = first_seed
    for label, count in counts.items():
        for number in range(count):
            write_image(root / label / f"{number:04}.jpg", seed)
            seed += 1
    return root


def folder_source(root: Path, name: str, domain: str = "giemsa", **labels: str) -> SourceDeclaration:
    return SourceDeclaration("folder", name, root, domain, labels)


def survey_or_refusal(source: SourceDeclaration) -> tuple[Survey, str]:
    """What is found under a declaration, or nothing and why."""
    try:
        return survey(source), ""
    except UserError as error:
        return Survey([], []), str(error)


def files_below(root: Path, *, without: tuple[str, ...] = (".lock", "build_report.json")) -> dict[str, bytes]:
    """Every file of a data set but those that tell of the build, not of the data."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in without
    }
