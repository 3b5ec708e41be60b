"""Two stains and their cameras: from dye concentrations to pixels.

Deliberately not pure Beer-Lambert, which classical stain normalisation assumes: dense Romanowsky dyes shift their
colour (metachromasia), a camera channel averages over a band in which a dye's absorption varies, and a clipping colour
matrix and a tone curve follow.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from data_pipeline.phantoms.cell import (
    AZUROPHIL,
    CHROMATIN,
    EOSIN,
    FIELD_OF_VIEW,
    HAEMOGLOBIN,
    LAYERS,
    Canvas,
    Field,
    Random,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stain:
    """A laboratory's protocol and its camera; optical densities per unit of concentration, (R, G, B)."""

    haemoglobin: tuple[float, float, float]
    chromatin: tuple[float, float, float]
    basophilia: tuple[float, float, float]
    eosin: tuple[float, float, float]
    azurophil: tuple[float, float, float]
    metachromasia: tuple[float, float, float]  # added where chromatin and granules are dense
    background: tuple[float, float, float]  # bare glass, 0 to 1
    colour_mix: float  # saturation of the camera's colour matrix
    blur: tuple[float, float]  # focus, micrometres, sharpest and softest slide
    sharpening: float  # unsharp mask of the camera
    noise: float  # standard deviation, grey levels of 255


# Fitted by eye and by medians of background, red cells, nuclei and cytoplasm to the two public sets.
STAIN_RECIPES: dict[str, Stain] = {
    # May-Gruenwald-Giemsa, CellaVision DM96: cream glass, pink-grey red cells, crisp blue-purple nuclei.
    "giemsa": Stain(
        haemoglobin=(0.18, 0.20, 0.10),
        chromatin=(0.86, 1.36, 0.36),
        basophilia=(0.74, 0.70, 0.19),
        eosin=(0.15, 0.52, 0.42),
        azurophil=(0.52, 1.10, 0.36),
        metachromasia=(0.16, 0.05, 0.16),
        background=(1.00, 0.895, 0.79),
        colour_mix=0.10,
        blur=(0.12, 0.28),
        sharpening=0.7,
        noise=1.6,
    ),
    # Munich, Precipoint M8: nearly white glass, pink-lilac red cells, soft and saturated violet nuclei.
    "violet": Stain(
        haemoglobin=(0.15, 0.18, 0.12),
        chromatin=(0.52, 1.55, 0.22),
        basophilia=(0.46, 0.60, 0.07),
        eosin=(0.18, 0.56, 0.25),
        azurophil=(0.36, 1.20, 0.22),
        metachromasia=(0.26, 0.20, 0.02),
        background=(0.955, 0.935, 0.93),
        colour_mix=0.24,
        blur=(0.18, 0.42),
        sharpening=0.15,
        noise=1.2,
    ),
}


@dataclass(frozen=True)
class Film:
    """One stained slide under one microscope: a protocol and all that varies between slides."""

    dyes: Array  # [LAYERS, 3] optical density per unit of concentration
    metachromasia: Array  # [3]
    glass: Array  # [3] illumination after white balance, 0 to 1
    gradient: Array  # [2] change of illumination across the field, (x, y)
    colour_matrix: Array  # [3, 3]
    blur: float  # micrometres
    toe: float  # curvature of the tone curve
    sharpening: float
    noise: float

    @staticmethod
    def of_slide(stain: Stain, rng: Random) -> "Film":
        """Draw a slide: dye lots, staining time, acidity, film thickness, lamp, white balance, focus."""
        dyes = np.array([stain.haemoglobin, stain.chromatin, stain.basophilia, stain.eosin, stain.azurophil])
        dyes = dyes * np.exp(rng.normal(0, 0.15, (LAYERS, 3)))
        acid, thickness = rng.normal(0, 0.22), math.exp(rng.normal(0, 0.2))
        blue, pink = math.exp(-acid), math.exp(acid)  # acid buffer favours eosin, alkaline azure
        dyes[HAEMOGLOBIN] += rng.uniform(0.0, 0.45) * dyes[EOSIN]  # haemoglobin takes up eosin too
        dyes = dyes * (thickness * np.array([pink, blue, blue, pink, 1.0])[:, None])
        glass = np.array(stain.background)
        if rng.random() < 0.2:  # white balance left on the other setting
            glass = np.array([0.87, 0.865, 0.91]) if rng.random() < 0.5 else np.array([0.97, 0.9, 0.85])
        mix = np.eye(3) + (stain.colour_mix + rng.normal(0, 0.06)) * (np.eye(3) * 1.5 - 0.5)
        mix = mix + rng.normal(0, 0.015, (3, 3))
        return Film(
            dyes=dyes,
            metachromasia=np.array(stain.metachromasia) * rng.uniform(0.4, 1.6),
            glass=glass * np.exp(rng.normal(0, 0.018, 3)) * rng.uniform(0.88, 1.0),
            gradient=rng.normal(0, 0.015, 2),
            colour_matrix=mix / mix.sum(axis=1, keepdims=True),
            blur=rng.uniform(*stain.blur),
            toe=rng.uniform(0.0, 0.4),
            sharpening=stain.sharpening * rng.uniform(0.5, 1.2),
            noise=stain.noise * rng.uniform(0.6, 1.6),
        )


def _blurred(image: Field, sigma: float) -> Field:
    """Gaussian blur of [channels, size, size] over the last two axes, `sigma` in pixels."""
    for axis in (1, 2):
        image = gaussian_filter1d(image, sigma, axis=axis, mode="nearest", truncate=3.0)
    return image


def photograph(layers: Field, film: Film, rng: Random) -> NDArray[np.uint8]:
    """RGB image uint8 [size, size, 3] of concentrations `layers` float32 [LAYERS, size, size]."""
    size = layers.shape[1]
    canvas = Canvas(size)
    dense = layers[CHROMATIN] + layers[AZUROPHIL]
    shift = np.square(dense) / (dense + np.float32(0.6))
    stack = np.concatenate([layers, shift[None]]).reshape(LAYERS + 1, -1)
    density = np.vstack([film.dyes, film.metachromasia]).T.astype(np.float32) @ stack
    # Two halves of each channel's band: in one a dye absorbs half as much as in the other.
    weak = np.exp(np.float32(-2 / 3) * density)
    light = np.float32(0.5) * (weak + weak * weak)
    lamp = 1 + (film.gradient[0] * canvas.x + film.gradient[1] * canvas.y) / (FIELD_OF_VIEW / 2)
    light = light.reshape(3, size, size) * lamp.astype(np.float32)
    light = _blurred(light, max(film.blur / canvas.pixel, 0.35))
    photons = rng.standard_normal((3, size, size), dtype=np.float32) * np.float32(film.noise / 255)
    light = light + photons * np.sqrt(np.clip(light, 0.05, 1))
    light = light + np.float32(film.sharpening) * (light - _blurred(light, max(0.4 / canvas.pixel, 0.8)))
    # Rows of the colour matrix sum to 1, so bare glass keeps its colour.
    colour = np.clip(film.colour_matrix.astype(np.float32) @ light.reshape(3, -1), 0, 1.15)
    # An S-shaped tone curve that keeps black and white where they are.
    colour = colour + np.float32(film.toe) * colour * (1 - colour) * (2 * colour - 1)
    picture = colour.T.reshape(size, size, 3) * (film.glass * 255).astype(np.float32) + np.float32(0.5)
    return np.clip(picture, 0, 255).astype(np.uint8)
