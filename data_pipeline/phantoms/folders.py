"""Phantom smear cells: procedural images of all twelve types in two stains, for quickstart and tests.

A phantom is drawn in three steps, each with its own random numbers: the cell and what surrounds it (smear.py), the
slide's stain and camera (stain.py), and the sensor's noise. The first step is independent of the stain, so one cell
in both stains is a pixel-aligned pair.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.phantoms.cell import Field
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
    """Concentrations, read-only, of the cell and what surrounds it."""
    blood = Blood.of_slide(np.random.default_rng((_BLOOD, slide)))
    key = (CELL_TYPES.index(cell_type), slide, seed)
    layers = draw_smear(cell_type, size, blood, np.random.default_rng((_CELL, *key)))
    layers.flags.writeable = False
    return layers


def render_cell(cell_type: str, stain: str, slide: int, seed: int, size: int = 96) -> NDArray[np.uint8]:
    """One phantom: RGB uint8 [size, size, 3], 29 micrometres wide, a pure function of the arguments.

    cell_type is one of CELL_TYPES, stain one of STAINS; slide, seed >= 0. Another stain shows the same cell, pixel
    for pixel. UserError for an unknown type or stain.
    """
    _require_known("cell type", [cell_type], CELL_TYPES)
    _require_known("stain", [stain], STAINS)
    key = (CELL_TYPES.index(cell_type), slide, seed)
    noise = np.random.default_rng((_NOISE, *key, STAINS.index(stain)))
    return photograph(_smear(cell_type, slide, seed, size), _film(stain, slide), noise)


@dataclass(frozen=True)
class _Cell:
    """One cell to render."""

    cell_type: str
    number: int
    slide: int
    seed: int
    stains: tuple[str, ...]

    def file(self, stain: str) -> str:
        """Its image, relative to the folder."""
        return f"{stain}/{self.cell_type.replace(' ', '_')}/{self.number:05d}.png"


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

    Columns: image (relative to the table), label, slide, domain (the stain), pair (the same for two stains of one
    cell). Cells are dealt to `slides` slides in turn. A slide has the same name in every stain, so a split by slide
    keeps pairs together. paired: each cell in every stain; else in one, alternating by slide.
    No-op for a folder that holds exactly this request. The folder is renamed into place at the end: an interrupted
    run leaves no part of it. UserError when the folder holds anything else, or for an impossible argument.
    """
    _require_known("cell type", cell_types, CELL_TYPES)
    _require_known("stain", stains, STAINS)
    for name, value, least in (("per_type", per_type, 1), ("slides", slides, 1), ("size", size, 16), ("seed", seed, 0)):
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
    record = json.dumps(request, indent=1) + "\n"
    folder = Path(folder)
    if not _holds(folder, record):
        stains_of = [tuple(stains) if paired else (stains[slide % len(stains)],) for slide in range(slides)]
        cells = [
            _Cell(cell_type, index, index % slides, seed * 1_000_003 + index, stains_of[index % slides])
            for cell_type in cell_types
            for index in range(per_type)
        ]
        _write_folder(folder, cells, size, record, workers, progress)
    return folder / TABLE


def _require_known(what: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            raise UserError(f"phantom: unknown {what} '{name}'; choose from {', '.join(known)}")


def _holds(folder: Path, record: str) -> bool:
    """Whether `folder` holds this request already; UserError when it holds something else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if (folder / _RECORD).is_file() and (folder / _RECORD).read_text() == record:
        return True
    raise UserError(f"phantom: {folder} holds other files; give another folder or remove it first")


def _write_folder(folder: Path, cells: Sequence[_Cell], size: int, record: str, workers: int, progress: bool) -> None:
    """Render beside the folder, then rename."""
    _remove_drafts(folder)
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        for parent in {(draft / cell.file(stain)).parent for cell in cells for stain in cell.stains}:
            parent.mkdir(parents=True, exist_ok=True)
        _render_all(draft, cells, size, workers, progress)
        _write_table(draft / TABLE, cells)
        (draft / _RECORD).write_text(record)
        try:
            draft.rename(folder)
        except OSError:  # another process may have been first with the same request
            if not _holds(folder, record):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove_drafts(folder: Path) -> None:
    """Remove drafts of `folder` whose process was killed."""
    for draft in folder.parent.glob(f"{folder.name}.*.part"):
        process = draft.suffixes[-2][1:] if len(draft.suffixes) > 1 else ""
        if process.isdigit() and not Path(f"/proc/{process}").exists():
            shutil.rmtree(draft, ignore_errors=True)


def _render_all(folder: Path, cells: Sequence[_Cell], size: int, workers: int, progress: bool) -> None:
    write = partial(_write, folder, size)
    with progress_bar(len(cells), "phantom cells", "cell", enabled=progress) as bar, ExitStack() as stack:
        results: Iterable[None] = map(write, cells)
        if workers > 1:
            # Spawned, not forked: the caller may hold threads of torch or DALI.
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            results = stack.enter_context(pool).map(write, cells, chunksize=16)
        for _ in results:
            bar.update()


def _write(folder: Path, size: int, cell: _Cell) -> None:
    for stain in cell.stains:
        image = render_cell(cell.cell_type, stain, cell.slide, cell.seed, size)
        Image.fromarray(image).save(folder / cell.file(stain), compress_level=1)


def _write_table(path: Path, cells: Sequence[_Cell]) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "slide", "domain", "pair"])
        for cell in cells:
            pair = f"{cell.cell_type.replace(' ', '_')}-{cell.number:05d}"
            for stain in cell.stains:
                table.writerow([cell.file(stain), cell.cell_type, f"slide-{cell.slide:03d}", stain, pair])
