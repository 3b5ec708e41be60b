"""One phantom cell: outline, cytoplasm, nucleus, granules and holes as layers of dye."""

import math

import numpy as np
from numpy.typing import NDArray

from data_pipeline.phantoms.shapes import Canvas, Field, ellipse

# Layers of concentration, by what binds dye; 1 is the densest common structure of its kind.
HAEMOGLOBIN, CHROMATIN, BASOPHILIA, EOSIN, AZUROPHIL = range(5)
LAYERS = 5

Random = np.random.Generator


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
        found: NDArray[np.float64] = tries[inside[pixel[:, 1], pixel[:, 0]] > margin][:count]
        return found

    def hollow(self, layer: int, count: int, inside: Field, radius: float, strength: float) -> None:
        """Pale round holes (vacuoles, nucleoli) inside `inside`, taking `strength` of a layer's dye away.

        Holes in the cytoplasm (layer BASOPHILIA) are holes in its eosin too.
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
