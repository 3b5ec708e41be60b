"""Phantom smear cells: procedural pictures of all twelve types in two stains, for quickstart and tests.

A phantom is drawn in three steps, each with random numbers of its own: what the cell is
(phantom_morphology, phantom_smear), how the slide was stained and photographed (phantom_stain), and the
sensor's noise. The first step knows nothing of the stain, so one cell in both stains is a pixel-aligned
pair.
"""

import csv
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.phantoms.shapes import Field
from data_pipeline.phantoms.smear import Blood, draw_smear
from data_pipeline.phantoms.stain import STAIN_RECIPES, Film, photograph
from data_pipeline.progress_bar import progress_bar

STAINS: tuple[str, ...] = tuple(STAIN_RECIPES)
TABLE = "images.csv"
_RECORD = "phantom.json"
_VERSION = 1  # raise it whenever the same arguments give other pixels
_BLOOD, _FILM, _CELL, _NOISE = range(4)  # purposes of the random streams


@lru_cache(maxsize=1024)
def _film(stain: str, slide: int) -> Film:
    return Film.of_slide(STAIN_RECIPES[stain], np.random.default_rng((_FILM, slide, STAINS.index(stain))))


@lru_cache(maxsize=1)  # the other stain of a pair comes next
def _smear(cell_type: str, slide: int, seed: int, size: int) -> Field:
    """The cell and what lies around it before any dye; must not be written to."""
    blood = Blood.of_slide(np.random.default_rng((_BLOOD, slide)))
    key = (CELL_TYPES.index(cell_type), slide, seed)
    layers = draw_smear(cell_type, size, blood, np.random.default_rng((_CELL, *key)))
    layers.flags.writeable = False
    return layers


def render_cell(cell_type: str, stain: str, slide: int, seed: int, size: int = 96) -> NDArray[np.uint8]:
    """One phantom: RGB uint8 [size, size, 3], 29 micrometres wide, the same for the same arguments.

    cell_type is one of CELL_TYPES, stain one of STAINS; slide and seed are not negative. The same cell_type,
    slide, seed and size in another stain is the same cell, pixel for pixel. UserError for an unknown type
    or stain.
    """
    _require_known("cell type", [cell_type], CELL_TYPES)
    _require_known("stain", [stain], STAINS)
    key = (CELL_TYPES.index(cell_type), slide, seed)
    noise = np.random.default_rng((_NOISE, *key, STAINS.index(stain)))
    return photograph(_smear(cell_type, slide, seed, size), _film(stain, slide), noise)


class _Job(NamedTuple):
    """One cell and the stains to render it in."""

    cell_type: str
    number: int
    slide: int
    seed: int
    stains: tuple[str, ...]
    size: int


def _image_name(job: _Job, stain: str) -> str:
    return f"{stain}/{job.cell_type.replace(' ', '_')}/{job.number:05d}.png"


def _write(task: tuple[Path, _Job]) -> None:
    folder, job = task
    for stain in job.stains:
        picture = render_cell(job.cell_type, stain, job.slide, job.seed, job.size)
        Image.fromarray(picture).save(folder / _image_name(job, stain), compress_level=1)


def _require_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise UserError(f"phantom: unknown {what} '{name}'; choose from {', '.join(known)}")


def render_phantoms(
    folder: Path,
    per_type: int,
    stains: Sequence[str] = STAINS,
    slides: int = 40,
    size: int = 96,
    seed: int = 0,
    workers: int = 1,
    paired: bool = True,
    cell_types: Sequence[str] = CELL_TYPES,
    progress: bool = True,
) -> Path:
    """Write `per_type` cells of each type as PNG files and their table; returns `folder`/images.csv.

    Columns: image (relative to the table), label, slide, domain (the stain), pair (the same for two stains
    of one cell). Cells are dealt to `slides` slides in turn; a slide's name is the same in every stain, so
    that a split by slide keeps pairs together. paired: each cell in every stain; otherwise in one,
    alternating by slide.
    A folder that already holds exactly this request is left alone. Written beside and renamed at the end:
    a killed run leaves no half of it. UserError when the folder holds anything else, or an argument makes
    no sense.
    """
    _require_known("cell type", cell_types, CELL_TYPES)
    _require_known("stain", stains, STAINS)
    limits = (("per_type", per_type, 1), ("slides", slides, 1), ("size", size, 16), ("seed", seed, 0))
    for name, value, least in limits:
        if value < least:
            raise UserError(f"phantom: {name} is {value}, it must be at least {least}")
    if not stains or not cell_types:
        raise UserError("phantom: nothing to render; name at least one stain and one cell type")
    request = {
        "version": _VERSION,
        "per_type": per_type,
        "stains": list(stains),
        "slides": slides,
        "size": size,
        "seed": seed,
        "paired": paired,
        "cell_types": list(cell_types),
    }
    folder = Path(folder)
    if _holds(folder, request):
        return folder / TABLE
    jobs = [
        _Job(
            cell_type,
            index,
            index % slides,
            seed * 1_000_003 + index,
            tuple(stains) if paired else (stains[index % slides % len(stains)],),
            size,
        )
        for cell_type in cell_types
        for index in range(per_type)
    ]
    _sweep(folder)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        for stain in stains:
            for cell_type in cell_types:
                (draft / stain / cell_type.replace(" ", "_")).mkdir(parents=True)
        _render_all(draft, jobs, workers, progress)
        _write_table(draft / TABLE, jobs)
        (draft / _RECORD).write_text(json.dumps(request, indent=1) + "\n")
        try:
            draft.rename(folder)
        except OSError:  # another process may have been first with the same request
            if not _holds(folder, request):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder / TABLE


def _holds(folder: Path, request: dict[str, object]) -> bool:
    """Whether `folder` holds this request already; UserError when it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = folder / _RECORD
    if record.is_file() and record.read_text() == json.dumps(request, indent=1) + "\n":
        return True
    raise UserError(f"phantom: {folder} holds other files; give another folder or remove it first")


def _sweep(folder: Path) -> None:
    """Remove drafts of `folder` whose process was killed."""
    for draft in folder.parent.glob(f"{folder.name}.*.part"):
        process = draft.suffixes[-2][1:] if len(draft.suffixes) > 1 else ""
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(draft, ignore_errors=True)


def _render_all(folder: Path, jobs: list[_Job], workers: int, progress: bool) -> None:
    tasks = [(folder, job) for job in jobs]
    with progress_bar(len(jobs), "phantom cells", "cell", enabled=progress) as bar:
        if workers < 2:
            for task in tasks:
                _write(task)
                bar.update()
            return
        # Spawned, not forked: the caller may hold threads of torch or DALI.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for _ in pool.map(_write, tasks, chunksize=16):
                bar.update()


def _write_table(path: Path, jobs: list[_Job]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "slide", "domain", "pair"])
        for job in jobs:
            for stain in job.stains:
                pair = f"{job.cell_type.replace(' ', '_')}-{job.number:05d}"
                slide = f"slide-{job.slide:03d}"
                table.writerow([_image_name(job, stain), job.cell_type, slide, stain, pair])
