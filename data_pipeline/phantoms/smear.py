"""The smear around a phantom cell: red cells, stray platelets, a neighbour; one field of concentrations."""

import math
from dataclasses import dataclass

import numpy as np

from data_pipeline.phantoms.cell import FIELD_OF_VIEW, HAEMOGLOBIN, LAYERS, Canvas, Field, Random
from data_pipeline.phantoms.morphology import DRAW, platelet


@dataclass(frozen=True)
class Blood:
    """One patient's film before staining: shared by all cells and both stains of a slide."""

    red_cells: float  # mean number in one field of view
    radius: float  # of a red cell, micrometres
    pallor: float  # of a red cell's centre, 0 to 1
    oval: float  # standard deviation of the log axis ratio of red cells
    crenated: float  # depth of spines on red cells, as a fraction of the radius
    platelets: float  # mean number of stray platelets
    cell_scale: float  # size of white cells against the textbook's

    @staticmethod
    def of_slide(rng: Random) -> "Blood":
        """Draw a film's properties."""
        return Blood(
            red_cells=rng.uniform(3, 17),
            radius=rng.uniform(3.2, 4.0),
            pallor=rng.uniform(0.4, 0.95),
            oval=rng.uniform(0.03, 0.15),
            crenated=rng.uniform(0.03, 0.07) if rng.random() < 0.15 else 0.0,
            platelets=rng.uniform(0.2, 1.4),
            cell_scale=rng.uniform(0.92, 1.08),
        )


def _red_cell(layer: Field, canvas: Canvas, rng: Random, blood: Blood, x: float, y: float) -> None:
    """Add one biconcave disc at (x, y) to the haemoglobin layer, drawn inside its own window only."""
    radius = blood.radius * math.exp(rng.normal(0, 0.07))
    stretch = math.exp(rng.normal(0, blood.oval))
    reach = radius * max(stretch, 1 / stretch) * 1.15 + canvas.pixel
    columns = slice(*np.searchsorted(canvas.x[0], [x - reach, x + reach]))
    rows = slice(*np.searchsorted(canvas.y[:, 0], [y - reach, y + reach]))
    angle, phase, amount = rng.uniform(0, math.pi), rng.uniform(0, 6), rng.uniform(0.85, 1.15)
    pallor, width = blood.pallor * rng.uniform(0.7, 1.15), rng.uniform(0.38, 0.55)
    if columns.start == columns.stop or rows.start == rows.stop:
        return
    dx, dy = canvas.x[:, columns] - np.float32(x), canvas.y[rows] - np.float32(y)
    cos, sin = np.float32(math.cos(angle) / radius), np.float32(math.sin(angle) / radius)
    u, v = (dx * cos + dy * sin) / np.float32(stretch), (dy * cos - dx * sin) * np.float32(stretch)
    square = u * u + v * v
    out = np.sqrt(square)
    if blood.crenated:
        out = out + np.float32(blood.crenated) * np.cos(11 * np.arctan2(v, u) + np.float32(phase))
    edge = canvas.cover((1 - out) * np.float32(radius), 0.4)
    square *= np.float32(1 / width**2)
    dimple = 1 / (1 + square * square)
    layer[rows, columns] += np.float32(amount) * edge * (1 - np.float32(min(pallor, 0.95)) * dimple)


def _scatter(rng: Random, mean: float, apart: float, clear: float) -> list[tuple[float, float]]:
    """Places (x, y) in and just outside the field, `apart` micrometres from each other, `clear` from the centre."""
    edge = FIELD_OF_VIEW / 2 + 3
    wanted = int(rng.poisson(mean))
    places: list[tuple[float, float]] = []
    for x, y in rng.uniform(-edge, edge, (4 * wanted, 2)).tolist():
        if math.hypot(x, y) > clear and all(math.hypot(x - a, y - b) > apart for a, b in places):
            places.append((x, y))
    return places[:wanted]


def draw_smear(cell_type: str, size: int, blood: Blood, rng: Random) -> Field:
    """One field of view with a cell of `cell_type` near its middle.

    Returns concentrations float32 [LAYERS, size, size], 0 to about 2 (see phantom_cell's layers).
    """
    jitter = rng.normal(0, 0.8, 2).clip(-2, 2)
    scale = blood.cell_scale * math.exp(rng.normal(0, 0.05))
    cell = DRAW[cell_type](Canvas(size, (float(jitter[0]), float(jitter[1])), scale), rng)
    uptake = np.exp(rng.normal(0, 0.2, (LAYERS, 1, 1)))  # cells of one slide differ in dye uptake
    cell.layers *= uptake.astype(np.float32)
    canvas = Canvas(size)
    layers = np.zeros((LAYERS, size, size), np.float32)
    lapping = rng.uniform(0.2, 1.1)  # red cells may touch the cell or lie a little under it
    density = blood.red_cells * rng.uniform(0.6, 1.4) * (1.35 if cell_type == "platelet" else 1.0)
    apart = 2 * blood.radius * rng.uniform(0.7, 0.95)
    for x, y in _scatter(rng, density * 1.45, apart, cell.radius + lapping + 2.0):
        _red_cell(layers[HAEMOGLOBIN], canvas, rng, blood, x, y)
    strangers = [cell]
    for x, y in _scatter(rng, blood.platelets, 3, cell.radius + 2):
        strangers.append(platelet(Canvas(size, (x, y)), rng))
    if rng.random() < 0.35:  # a white neighbour, most of it out of view
        turn, reach = rng.uniform(0, 2 * math.pi), FIELD_OF_VIEW / 2 + rng.uniform(0.0, 4.0)
        other = list(DRAW.values())[rng.integers(len(DRAW))]
        strangers.append(other(Canvas(size, (reach * math.cos(turn), reach * math.sin(turn))), rng))
    for stranger in reversed(strangers):  # the labelled cell last, on top
        layers *= 1 - np.float32(0.93) * stranger.cover
        layers += stranger.layers
    return layers
