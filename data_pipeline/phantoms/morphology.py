"""The twelve cell types as textbook shapes: where each dye binds in one phantom cell.

Sizes are micrometres and follow the usual haematology atlases; the types overlap in size, in nuclear share
and in the tint of their cytoplasm, as real ones do, so that form decides and not the amount of a colour.
"""

import math
from collections.abc import Callable

import numpy as np

from data_pipeline.phantoms.cell import (
    AZUROPHIL,
    BASOPHILIA,
    CHROMATIN,
    EOSIN,
    HAEMOGLOBIN,
    Canvas,
    Cell,
    Random,
    capsule,
    cut,
    ellipse,
    union,
)


def neutrophil(canvas: Canvas, rng: Random) -> Cell:
    """Two to five lobes on thin bridges, or a band; pale pink cytoplasm with fine granules."""
    cell = Cell(canvas, rng, rng.uniform(5.9, 7.4), ragged=rng.uniform(0.01, 0.05))
    cell.fill(rng.uniform(0.03, 0.2), rng.uniform(0.12, 0.5))
    band = rng.random() < 0.2
    lobes = 5 if band else int(rng.choice([2, 3, 3, 4, 4, 5]))
    span = rng.uniform(3.2, 4.4) if lobes > 2 else rng.uniform(1.9, 2.6)
    orbit = cell.radius * rng.uniform(0.45, 0.54)
    turn = np.linspace(-span / 2, span / 2, lobes) + rng.normal(0, 0.02 if band else 0.12, lobes)
    far = orbit * np.exp(rng.normal(0, 0.03 if band else 0.14, lobes))
    centres = np.column_stack([far * np.cos(turn), far * np.sin(turn)]) - [0.2 * orbit, 0]
    share = rng.uniform(0.17, 0.22) if band else rng.uniform(0.6, 0.7) / math.sqrt(lobes + 1.2)
    thick = cell.radius * share
    u, v = cell.warp(0.2, 5.0)
    distance = np.full_like(cell.body, -9)
    for i in range(lobes):
        size = thick * math.exp(rng.normal(0, 0.02 if band else 0.1))
        stretch = 1.0 if band else rng.uniform(1.0, 1.35)
        x, y = centres[i]
        lobe = ellipse(u, v, x, y, size / math.sqrt(stretch), size * stretch, turn[i])
        distance = union(distance, lobe, 0.25)
        if i:
            bridge = thick * 0.9 if band else rng.uniform(0.22, 0.4)
            distance = union(distance, capsule(u, v, centres[i - 1], centres[i], bridge), 0.3)
    cell.stain_nucleus(distance, rng.uniform(0.85, 1.1), clumps=1.5, contrast=0.22)
    cell.speckle(AZUROPHIL, rng.uniform(0.06, 0.2), 0.75, 0.3)
    return cell


def eosinophil(canvas: Canvas, rng: Random) -> Cell:
    """Two, sometimes three plump lobes to one side; coarse round orange granules packed side by side."""
    cell = Cell(canvas, rng, rng.uniform(6.2, 7.8), ragged=rng.uniform(0.01, 0.05))
    cell.fill(rng.uniform(0.05, 0.2), rng.uniform(0.12, 0.3))
    lobes = 3 if rng.random() < 0.2 else 2
    gap = rng.uniform(1.5, 2.0) if lobes == 2 else rng.uniform(1.15, 1.35)
    turn = (np.arange(lobes) - (lobes - 1) / 2) * gap
    orbit = cell.radius * rng.uniform(0.5, 0.58)
    centres = np.column_stack([orbit * np.cos(turn), orbit * np.sin(turn)])
    u, v = cell.warp(0.2, 6.0)
    distance = np.full_like(cell.body, -9)
    for i in range(lobes):
        size = cell.radius * (rng.uniform(0.3, 0.36) if lobes == 2 else rng.uniform(0.25, 0.3))
        x, y = centres[i]
        lobe = ellipse(u, v, x, y, size, size * rng.uniform(1.05, 1.3), turn[i])
        distance = union(distance, lobe, 0.2)
        if i:
            distance = union(distance, capsule(u, v, centres[i - 1], centres[i], rng.uniform(0.3, 0.5)), 0.3)
    cell.stain_nucleus(distance, rng.uniform(0.75, 1.05), clumps=1.6, contrast=0.22)
    packed = canvas.cover(cell.body - np.float32(0.5), 0.8) * (1 - canvas.cover(cell.nucleus, 0.3))
    amount = rng.uniform(0.35, 0.9)
    cell.layers[EOSIN] += np.float32(0.45 * amount) * packed
    cell.speckle(EOSIN, 0.6 * amount, 1.15, -0.4, 0.12)
    return cell


def basophil(canvas: Canvas, rng: Random) -> Cell:
    """Coarse, dark, uneven granules that hide a pale lobed nucleus."""
    cell = Cell(canvas, rng, rng.uniform(5.2, 6.8), ragged=rng.uniform(0.02, 0.08))
    cell.fill(rng.uniform(0.05, 0.25), rng.uniform(0.15, 0.4))
    u, v = cell.warp(0.5, 4.0)
    distance = np.full_like(cell.body, -9)
    for turn in rng.uniform(0, 1) + np.arange(3) * rng.uniform(1.6, 2.1):
        orbit, size = cell.radius * rng.uniform(0.28, 0.4), cell.radius * rng.uniform(0.32, 0.42)
        lobe = ellipse(u, v, orbit * math.cos(turn), orbit * math.sin(turn), size, size)
        distance = union(distance, lobe, 0.8)
    cell.stain_nucleus(distance, rng.uniform(0.55, 0.85), clumps=2.2, contrast=0.2, rim=0.1)
    count = int(rng.integers(70, 160))
    fine = canvas.dots(cell.places(count, cell.body, 0.1), rng.uniform(0.26, 0.34))
    coarse = canvas.dots(cell.places(count // 3, cell.body, 0.2), rng.uniform(0.38, 0.5))
    cell.layers[AZUROPHIL] += np.float32(rng.uniform(0.75, 1.1)) * np.maximum(fine, coarse)
    return cell


def erythroblast(canvas: Canvas, rng: Random) -> Cell:
    """A small, round, dense nucleus clumped like a chessboard; smooth cytoplasm, blue-grey to pink."""
    ripe = rng.random()
    cell = Cell(canvas, rng, rng.uniform(5.8, 7.0) - 1.6 * ripe, ragged=rng.uniform(0.01, 0.06))
    cell.fill(rng.uniform(0.35, 0.7) * (1 - 0.75 * ripe), 0.05, mottle=0.05, rim=0.2)
    cell.layers[HAEMOGLOBIN] += np.float32(0.15 + 0.75 * ripe) * cell.cover
    size = cell.radius * (rng.uniform(0.56, 0.64) - 0.12 * ripe)
    off = (cell.radius - size) * rng.uniform(0.2, 0.75)
    u, v = cell.warp(0.08, 4.0)
    distance = ellipse(u, v, off, 0, size, size * rng.uniform(0.92, 1.05))
    cell.stain_nucleus(distance, rng.uniform(0.9, 1.2), clumps=1.7, contrast=0.3 - 0.15 * ripe, rim=0.2)
    return cell


def lymphocyte(canvas: Canvas, rng: Random) -> Cell:
    """A round nucleus of coarse dark blocks that nearly fills the cell; a thin sky-blue rim."""
    cell = Cell(canvas, rng, rng.uniform(4.5, 5.9), ragged=rng.uniform(0.02, 0.07))
    cell.fill(rng.uniform(0.25, 0.75), rng.uniform(0.0, 0.08), mottle=0.08)
    size = cell.radius * rng.uniform(0.8, 0.9)
    off = (cell.radius - size) * rng.uniform(0.3, 0.9)
    u, v = cell.warp(0.12, 7.0)
    distance = ellipse(u, v, off, 0, size, size * rng.uniform(0.9, 1.03))
    if rng.random() < 0.4:  # a shallow notch
        distance = cut(distance, ellipse(u, v, off - 1.25 * size, 0.2, 0.5 * size, 0.45 * size), 0.8)
    cell.stain_nucleus(distance, rng.uniform(0.85, 1.2), clumps=2.2, contrast=0.3, rim=0.15)
    return cell


def monocyte(canvas: Canvas, rng: Random) -> Cell:
    """A kidney or horseshoe nucleus; wide grey-blue cytoplasm with vacuoles and an uneven outline."""
    cell = Cell(canvas, rng, rng.uniform(7.0, 8.8), ragged=rng.uniform(0.06, 0.11))
    cell.fill(rng.uniform(0.25, 0.6), rng.uniform(0.08, 0.22), mottle=0.15)
    size = cell.radius * rng.uniform(0.6, 0.68)
    u, v = cell.warp(0.4, 8.0)
    distance = ellipse(u, v, 0.1 * size, 0, size * 0.88, size * rng.uniform(1.05, 1.2))
    notch = size * rng.uniform(0.28, 0.42)
    distance = cut(distance, ellipse(u, v, -size * rng.uniform(0.7, 0.95), 0, size * 0.8, notch), 0.9)
    cell.stain_nucleus(distance, rng.uniform(0.6, 0.9), clumps=1.9, contrast=0.28, rim=0.2)
    cell.speckle(AZUROPHIL, rng.uniform(0.04, 0.14), 0.7, 0.7)
    around = np.minimum(cell.body, -cell.nucleus)
    cell.hollow(BASOPHILIA, int(rng.integers(2, 12)), around, rng.uniform(0.4, 0.75), 0.85)
    return cell


def monoblast(canvas: Canvas, rng: Random) -> Cell:
    """The largest blast: lacy, lightly folded nucleus, one clear nucleolus, plenty of grey cytoplasm."""
    cell = Cell(canvas, rng, rng.uniform(8.2, 10.2), ragged=rng.uniform(0.03, 0.09))
    cell.fill(rng.uniform(0.3, 0.65), rng.uniform(0.06, 0.2), mottle=0.12, rim=0.5)
    size = cell.radius * rng.uniform(0.64, 0.72)
    off = (cell.radius - size) * rng.uniform(0.0, 0.5)
    u, v = cell.warp(0.3, 9.0)
    distance = ellipse(u, v, off, 0, size * rng.uniform(0.9, 0.97), size)
    cell.stain_nucleus(distance, rng.uniform(0.55, 0.8), clumps=1.15, contrast=0.3, rim=0.1)
    for _ in range(int(rng.integers(1, 3))):  # folds: pale creases across the nucleus
        tilt, shift = rng.uniform(-0.5, 0.5), rng.uniform(-0.4, 0.4) * size
        start, end = (off - 1.2 * size, shift), (off + rng.uniform(-0.2, 0.5) * size, shift + tilt * size)
        crease = canvas.cover(capsule(u, v, start, end, 0.3), 0.5)
        cell.layers[CHROMATIN] *= 1 - np.float32(0.5) * crease
    cell.hollow(CHROMATIN, 1, cell.nucleus - np.float32(1.2), rng.uniform(0.9, 1.2), 0.55)
    around = np.minimum(cell.body, -cell.nucleus)
    cell.hollow(BASOPHILIA, int(rng.integers(0, 4)), around, rng.uniform(0.4, 0.6), 0.8)
    return cell


def myeloblast(canvas: Canvas, rng: Random) -> Cell:
    """A large round nucleus of even, fine chromatin, several nucleoli; a narrow blue rim, no granules."""
    cell = Cell(canvas, rng, rng.uniform(6.6, 8.4), ragged=rng.uniform(0.02, 0.07))
    cell.fill(rng.uniform(0.35, 0.8), rng.uniform(0.0, 0.1), mottle=0.08, rim=0.5)
    size = cell.radius * rng.uniform(0.8, 0.88)
    off = (cell.radius - size) * rng.uniform(0.5, 1.0)
    u, v = cell.warp(0.2, 9.0)
    distance = ellipse(u, v, off, 0, size, size * rng.uniform(0.9, 1.02))
    cell.stain_nucleus(distance, rng.uniform(0.6, 0.95), clumps=0.8, contrast=0.12, rim=0.08)
    deep = cell.nucleus - np.float32(0.8)
    cell.hollow(CHROMATIN, int(rng.integers(2, 5)), deep, rng.uniform(0.85, 1.15), 0.65)
    if rng.random() < 0.12:  # an Auer rod
        x = -0.5 * (cell.radius + size - off)
        rod = canvas.cover(capsule(cell.u, cell.v, (x, -1.2), (x + 0.4, 1.2), 0.18), 0.3)
        cell.layers[AZUROPHIL] += np.float32(0.8) * rod * cell.cover
    return cell


def promyelocyte(canvas: Canvas, rng: Random) -> Cell:
    """A big cell, its nucleus to one side beside a pale hof; nucleoli; azurophilic granules all over."""
    cell = Cell(canvas, rng, rng.uniform(7.6, 9.4), ragged=rng.uniform(0.03, 0.08))
    cell.fill(rng.uniform(0.35, 0.75), rng.uniform(0.05, 0.2), mottle=0.1, rim=0.5)
    size = cell.radius * rng.uniform(0.6, 0.68)
    off = (cell.radius - size) * rng.uniform(0.7, 0.95)
    u, v = cell.warp(0.25, 8.0)
    distance = ellipse(u, v, off, 0, size * rng.uniform(0.88, 0.98), size * rng.uniform(1.0, 1.1))
    cell.stain_nucleus(distance, rng.uniform(0.6, 0.85), clumps=1.1, contrast=0.15, rim=0.12)
    deep = cell.nucleus - np.float32(0.8)
    cell.hollow(CHROMATIN, int(rng.integers(1, 4)), deep, rng.uniform(0.85, 1.1), 0.6)
    hof = ellipse(cell.u, cell.v, off - 1.05 * size, 0, 0.3 * cell.radius, 0.36 * cell.radius)
    pale = 1 - np.float32(rng.uniform(0.5, 0.75)) * canvas.cover(hof, 1.8)
    around = np.minimum(cell.body, -hof)
    granules = canvas.dots(cell.places(int(rng.integers(110, 240)), around, 0.3), rng.uniform(0.22, 0.3))
    cell.layers[BASOPHILIA : EOSIN + 1] *= pale
    cell.layers[AZUROPHIL] += np.float32(rng.uniform(0.4, 0.8)) * granules
    return cell


def immature_granulocyte(canvas: Canvas, rng: Random) -> Cell:
    """Myelocyte or metamyelocyte: an oval or bean nucleus half as wide as the cell; finely granular."""
    cell = Cell(canvas, rng, rng.uniform(6.6, 8.6), ragged=rng.uniform(0.02, 0.09))
    cell.fill(rng.uniform(0.12, 0.4), rng.uniform(0.12, 0.34), mottle=0.12)
    size = cell.radius * rng.uniform(0.52, 0.6)
    off = (cell.radius - size) * rng.uniform(0.55, 0.95)
    u, v = cell.warp(0.2, 7.0)
    distance = ellipse(u, v, off, 0, size * rng.uniform(0.72, 0.85), size * rng.uniform(1.1, 1.3))
    if rng.random() < 0.6:  # a metamyelocyte's shallow dent
        distance = cut(distance, ellipse(u, v, off - 1.15 * size, 0, 0.55 * size, 0.5 * size), 0.9)
    cell.stain_nucleus(distance, rng.uniform(0.7, 1.05), clumps=1.7, contrast=0.25)
    cell.speckle(AZUROPHIL, rng.uniform(0.2, 0.45), 0.85, 0.45, 0.15)
    return cell


def platelet(canvas: Canvas, rng: Random) -> Cell:
    """A fragment of one to four micrometres: granular purple centre, pale blue hem; now and then a clump."""
    cell = Cell(canvas, rng, rng.uniform(1.3, 2.4), ragged=rng.uniform(0.06, 0.16))
    for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.25 else 0):
        turn, reach = rng.uniform(0, 2 * math.pi), cell.radius * rng.uniform(1.3, 2.0)
        size = cell.radius * rng.uniform(0.5, 0.9)
        piece = ellipse(cell.u, cell.v, reach * math.cos(turn), reach * math.sin(turn), size, size * 1.15)
        cell.body = union(cell.body, piece, 0.3)
    cell.cover = canvas.cover(cell.body, 0.4)
    cell.fill(rng.uniform(0.2, 0.45), rng.uniform(0.05, 0.2), rim=0.1)
    centre = canvas.cover(cell.body - np.float32(0.55), 0.9)
    grain = np.clip(canvas.texture(rng, 0.9, 0.2, 32) + np.float32(0.5), 0, 2)
    cell.layers[AZUROPHIL] += np.float32(rng.uniform(0.4, 0.75)) * centre * grain
    return cell


def smudge_cell(canvas: Canvas, rng: Random) -> Cell:
    """A burst cell: a bare nucleus smeared into fibres, torn edges, no cytoplasm around it."""
    cell = Cell(canvas, rng, rng.uniform(5.0, 8.0), ragged=0.12)
    drag = rng.uniform(0, 2 * math.pi)
    tear = 1.3 * canvas.texture(rng, 5.0, 0.5, 20) + 0.3 * canvas.texture(rng, 2.2, 0.4, 24, drag)
    along, across = canvas.frame(angle=drag)
    stretch = rng.uniform(1.0, 1.35)
    shape = ellipse(along, across, 0, 0, cell.radius * stretch, cell.radius / stretch)
    torn = np.clip(0.6 + along / np.float32(cell.radius), 0.4, 1.3)  # it tears on the lee side
    cell.body = shape + tear * np.float32(rng.uniform(0.5, 0.85)) * torn
    cell.cover = canvas.cover(cell.body, 0.8)
    fibre = canvas.texture(rng, 1.5, 0.5, 24, drag) + canvas.texture(rng, 1.2, 0.5, 24)
    thin = 1 - np.float32(0.3) * np.clip(along / np.float32(cell.radius), -0.3, 1.2)
    chromatin = np.maximum(1 + np.float32(0.13) * fibre, np.float32(0.1))
    cell.layers[CHROMATIN] += np.float32(rng.uniform(0.45, 0.85)) * cell.cover * chromatin * thin
    return cell


DRAW: dict[str, Callable[[Canvas, Random], Cell]] = {
    "basophil": basophil,
    "eosinophil": eosinophil,
    "erythroblast": erythroblast,
    "immature granulocyte": immature_granulocyte,
    "lymphocyte": lymphocyte,
    "monoblast": monoblast,
    "monocyte": monocyte,
    "myeloblast": myeloblast,
    "neutrophil": neutrophil,
    "platelet": platelet,
    "promyelocyte": promyelocyte,
    "smudge cell": smudge_cell,
}
