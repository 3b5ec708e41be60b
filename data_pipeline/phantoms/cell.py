"""One phantom cell: outline, cytoplasm, nucleus, granules and holes as layers of dye; soft shapes and textures.

All shapes are functions of the position in micrometres, so a cell has the same shape at every image size.
A "distance" is in micrometres, positive inside a shape and negative outside (exact near the edge only).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Field = NDArray[np.float32]

FIELD_OF_VIEW = 29.0  # micrometres shown by one image: red cells are a quarter as wide, as in both real sets

# Layers of concentration, by what binds dye; 1 is the densest common structure of its kind.
HAEMOGLOBIN, CHROMATIN, BASOPHILIA, EOSIN, AZUROPHIL = range(5)
LAYERS = 5

Random = np.random.Generator


class Canvas:
    """A square grid of pixels, its origin at `centre` (x right, y down, micrometres), enlarged by `scale`."""

    def __init__(self, size: int, centre: tuple[float, float] = (0.0, 0.0), scale: float = 1.0) -> None:
        self.size = size
        self.pixel = FIELD_OF_VIEW / scale / size
        axis = (np.arange(size, dtype=np.float32) + np.float32(0.5 - size / 2)) * np.float32(self.pixel)
        self.x: Field = (axis - np.float32(centre[0] / scale))[None, :]
        self.y: Field = (axis - np.float32(centre[1] / scale))[:, None]

    def frame(self, x: float = 0.0, y: float = 0.0, angle: float = 0.0) -> tuple[Field, Field]:
        """Coordinates [size, size] in a frame placed at (x, y) and turned by `angle` (radians)."""
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        dx, dy = self.x - np.float32(x), self.y - np.float32(y)
        return dx * cos + dy * sin, dy * cos - dx * sin

    def cover(self, distance: Field, softness: float = 0.0) -> Field:
        """How much of each pixel lies inside, 0 to 1; the edge is a pixel or `softness` micrometres wide."""
        return np.clip(distance / np.float32(max(self.pixel, softness)) + np.float32(0.5), 0, 1)

    def texture(
        self,
        rng: np.random.Generator,
        wavelength: float,
        spread: float = 0.3,
        waves: int = 40,
        direction: float | None = None,
    ) -> Field:
        """A random field [size, size] of mean 0 and variance about 1: a sum of plane waves.

        wavelength: micrometres; spread: its log-normal width; direction: radians along which fibres run.
        A sum of plane waves is a product of two thin matrices, ten times faster than filtered noise.
        """
        number = 2 * math.pi / wavelength * np.exp(spread * rng.standard_normal(waves))
        angle = rng.uniform(0, 2 * math.pi, waves)
        if direction is not None:
            angle = direction + math.pi / 2 + 0.25 * rng.standard_normal(waves)
        phase = rng.uniform(0, 2 * math.pi, waves).astype(np.float32)
        along_x = self.x.T * (number * np.cos(angle)).astype(np.float32) + phase
        along_y = self.y * (number * np.sin(angle)).astype(np.float32)
        left = np.concatenate([np.cos(along_y), -np.sin(along_y)], axis=1)
        right = np.concatenate([np.cos(along_x), np.sin(along_x)], axis=1)
        right = right.T * np.float32(math.sqrt(2 / waves))
        field = np.empty((self.size, self.size), np.float32)
        # In strips too small for a BLAS to start threads: those would cost ten times the product.
        strip = max(1, 200_000 // (2 * waves * self.size))
        for row in range(0, self.size, strip):
            np.matmul(left[row : row + strip], right, out=field[row : row + strip])
        return field

    def dots(self, places: NDArray[np.float64], radius: float) -> Field:
        """Soft dots of peak 1 at `places` [n, 2] (x, y, micrometres); overlaps saturate at 1."""
        origin = np.array([self.x[0, 0], self.y[0, 0]])
        at = (places - origin) / self.pixel
        low = np.floor(at).astype(int)
        part = at - low
        impulses = np.zeros((self.size, self.size), np.float32)
        for step_x in (0, 1):
            for step_y in (0, 1):
                column, row = low[:, 0] + step_x, low[:, 1] + step_y
                weight = np.abs(1 - step_x - part[:, 0]) * np.abs(1 - step_y - part[:, 1])
                seen = (column >= 0) & (column < self.size) & (row >= 0) & (row < self.size)
                np.add.at(impulses, (row[seen], column[seen]), weight[seen].astype(np.float32))
        sigma = max(radius / self.pixel * 0.75, 0.55)
        blurred = gaussian_filter(impulses, sigma, truncate=3.0) * np.float32(2 * math.pi * sigma**2 * 1.5)
        return np.minimum(blurred, np.float32(1))


def ellipse(u: Field, v: Field, x: float, y: float, a: float, b: float, angle: float = 0.0) -> Field:
    """Distance to an ellipse of half axes a, b (micrometres) at (x, y), turned by `angle`."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    du, dv = u - np.float32(x), v - np.float32(y)
    along, across = (du * cos + dv * sin) / np.float32(a), (dv * cos - du * sin) / np.float32(b)
    return (1 - np.sqrt(along * along + across * across)) * np.float32(min(a, b))


def capsule(u: Field, v: Field, start: Sequence[float], end: Sequence[float], radius: float) -> Field:
    """Distance to a rod of `radius` (micrometres) with round ends from `start` to `end`."""
    length_u, length_v = end[0] - start[0], end[1] - start[1]
    du, dv = u - np.float32(start[0]), v - np.float32(start[1])
    square = max(length_u**2 + length_v**2, 1e-6)
    along = np.clip((du * np.float32(length_u) + dv * np.float32(length_v)) / np.float32(square), 0, 1)
    du, dv = du - along * np.float32(length_u), dv - along * np.float32(length_v)
    return np.float32(radius) - np.sqrt(du * du + dv * dv)


def union(one: Field, other: Field, round_over: float = 0.6) -> Field:
    """Both shapes as one, the crease between them filled over `round_over` micrometres."""
    near = np.maximum(np.float32(round_over) - np.abs(one - other), 0) / np.float32(round_over)
    return np.maximum(one, other) + near * near * np.float32(round_over / 4)


def cut(one: Field, other: Field, round_over: float = 0.6) -> Field:
    """The first shape without the second, the edge rounded over `round_over` micrometres."""
    return -union(-one, other, round_over)


class Cell:
    """One cell: `layers` float32 [LAYERS, size, size]; `cover` [size, size] is the opacity, 0 to 1."""

    def __init__(self, canvas: Canvas, rng: Random, radius: float, *, ragged: float = 0.05) -> None:
        """An empty cell of `radius` micrometres; `ragged`: deviation of its outline from an ellipse."""
        self.canvas, self.rng, self.radius = canvas, rng, radius
        self.layers = np.zeros((LAYERS, canvas.size, canvas.size), np.float32)
        self.u, self.v = canvas.frame(angle=rng.uniform(0, 2 * math.pi))
        stretch = math.exp(abs(rng.normal(0, 0.06)) + 0.5 * ragged)
        wander = canvas.texture(rng, 2.0 * radius, 0.3, 10)
        self.body = ellipse(self.u, self.v, 0, 0, radius * stretch, radius / stretch)
        self.body = self.body + wander * np.float32(ragged * radius)
        self.cover = canvas.cover(self.body, 0.35)
        self.nucleus: Field = np.full_like(self.body, -radius)

    def fill(self, basophilia: float, eosin: float, *, mottle: float = 0.12, rim: float = 0.3) -> None:
        """Cytoplasm: blue and pink concentrations, cloudiness, and the excess of dye at its outer edge."""
        cloud = 1 + np.float32(mottle) * self.canvas.texture(self.rng, 2.2, 0.5, 24)
        edge = np.exp(-np.square(self.body * np.float32(1 / 0.55)))
        amount = self.cover * np.maximum(cloud, 0) * (1 + np.float32(rim) * edge)
        self.layers[BASOPHILIA] += np.float32(basophilia) * amount
        self.layers[EOSIN] += np.float32(eosin) * amount

    def warp(self, amount: float, wavelength: float) -> tuple[Field, Field]:
        """The cell's own coordinates, distorted by `amount` micrometres, so that nuclei are irregular."""
        bend_u, bend_v = (self.canvas.texture(self.rng, wavelength, 0.2, 10) for _ in range(2))
        return self.u + np.float32(amount) * bend_u, self.v + np.float32(amount) * bend_v

    def stain_nucleus(
        self, distance: Field, density: float, *, clumps: float, contrast: float, rim: float = 0.25
    ) -> None:
        """Chromatin inside `distance`: mean density, width of clumps (micrometres), their contrast, a rim."""
        self.nucleus = np.minimum(distance, self.body - np.float32(0.25))
        inside = self.canvas.cover(self.nucleus, 0.3)
        clump = np.tanh(np.float32(1.3) * self.canvas.texture(self.rng, clumps, 0.55, 40))
        edge = np.exp(-np.square((self.nucleus - np.float32(0.25)) * np.float32(1 / 0.35)))
        chromatin = 1 + np.float32(contrast) * clump + np.float32(rim) * edge
        self.layers[CHROMATIN] += np.float32(density) * inside * np.maximum(chromatin, np.float32(0.1))
        for layer in (BASOPHILIA, EOSIN):
            self.layers[layer] *= 1 - np.float32(0.7) * inside

    def places(self, count: int, inside: Field, margin: float) -> NDArray[np.float64]:
        """Up to `count` places [n, 2] in micrometres where `inside` (a distance) exceeds `margin`."""
        reach = 1.3 * self.radius
        tries = self.rng.uniform(-reach, reach, (8 * count, 2))
        at = np.column_stack([tries[:, 0] - self.canvas.x[0, 0], tries[:, 1] - self.canvas.y[0, 0]])
        pixel = (at / self.canvas.pixel + 0.5).astype(int)
        seen = np.all((pixel >= 0) & (pixel < self.canvas.size), axis=1)
        pixel, tries = pixel[seen], tries[seen]
        return tries[inside[pixel[:, 1], pixel[:, 0]] > margin][:count]

    def hollow(self, layer: int, count: int, inside: Field, radius: float, strength: float) -> None:
        """Draw `count` pale round holes (vacuoles, nucleoli) inside `inside` into a layer of dye.

        radius: micrometres. strength: share of the dye that is taken away. Holes in the cytoplasm (layer BASOPHILIA)
        are holes in its eosin too.
        """
        hole = self.canvas.dots(self.places(count, inside, 0.6 * radius), radius)
        for each in (BASOPHILIA, EOSIN) if layer == BASOPHILIA else (layer,):
            self.layers[each] *= 1 - np.float32(strength) * hole

    def speckle(self, layer: int, amount: float, wavelength: float, level: float, over_nucleus: float = 0.0) -> None:
        """Granules by the hundred: the peaks of a random field, `level` deviations above its mean."""
        field = self.canvas.texture(self.rng, wavelength, 0.15, 48)
        grains = np.clip((field - np.float32(level)) * np.float32(1.6), 0, 1)
        where = self.canvas.cover(self.body - np.float32(0.4), 0.8)
        where = where * (1 - np.float32(1 - over_nucleus) * self.canvas.cover(self.nucleus, 0.3))
        self.layers[layer] += np.float32(amount) * grains * where
