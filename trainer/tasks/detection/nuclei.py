"""A finder of nucleated cells that needs no training: nuclei by optical density, cells by what surrounds them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.filters import threshold_otsu
from skimage.measure import label, regionprops
from skimage.morphology import disk, remove_small_holes
from skimage.segmentation import watershed
from skimage.transform import rescale

from data_pipeline.nuclei import Floats, Mask, nuclei_of_field, optical_density
from data_pipeline.sources.annotations import Box
from data_pipeline.sources.fields import WHITE_CELL

_LONGER_SIDE = 480  # pixels to which a field is reduced: speed, and nuclei are many times larger than a pixel


@dataclass(frozen=True)
class NucleusFinder:
    """Finds nuclei, joins the lobes of a cell, and draws a box round each cell. Lengths are in radii of a red cell."""

    least_violet: float = 0.08  # density in red less that in blue that a nucleus has at least
    most_violet: float = 0.12  # density in red less that in blue that every nucleus has
    lobe_gap: float = 0.8  # nuclei nearer than this are lobes of one cell
    cell_distance: float = 1.8  # centres of two cells that touch are further apart
    least_area: float = 0.35  # of a nucleus, in areas of a red cell; a platelet has less
    cytoplasm: float = 0.35  # how far a cell reaches beyond its nucleus at most
    margin: float = 0.1  # how far it reaches at least

    def find(self, pixels: npt.NDArray[np.uint8]) -> list[Box]:
        """White cells of a field, uint8 RGB [H, W, 3], the surest first."""
        scale = min(1.0, _LONGER_SIDE / max(pixels.shape[:2]))
        small = rescale(pixels, scale, channel_axis=2, anti_aliasing=True, preserve_range=True)
        density = optical_density(small.round().clip(0, 255).astype(np.uint8))
        stained = _stained(density[..., 1])
        nuclei = nuclei_of_field(density, self.least_violet, self.most_violet)
        radius = red_cell_radius(stained & ~ndimage.binary_dilation(nuclei, iterations=2))
        boxes = []
        for cell in regionprops(self._cells(nuclei, radius)):
            area = cell.area_filled / (np.pi * radius**2)
            if area >= self.least_area:
                mask = self._with_cytoplasm(cell, stained, radius)
                rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
                edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / scale
                left, top, right, bottom = edges.round().astype(int).tolist()
                size = min(right, pixels.shape[1]), min(bottom, pixels.shape[0])
                boxes.append(Box(WHITE_CELL, left, top, *size, score=float(area / (area + 1))))
        return sorted(boxes, key=lambda box: -box.score)

    def _cells(self, nuclei: Mask, radius: float) -> npt.NDArray[np.int64]:
        """Labels [H, W] of nuclei: lobes joined, cells that touch divided by a watershed."""
        gap = max(1, round(self.lobe_gap * radius / 2))
        padded = np.pad(nuclei, gap)  # a closing of the whole image would eat its border
        joined = ndimage.binary_closing(padded, disk(gap))[gap:-gap, gap:-gap]
        joined = ndimage.binary_opening(joined, disk(max(1, round(0.1 * radius))))
        depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(joined), 0.15 * radius)
        regions = label(joined)
        peaks = peak_local_max(depth, min_distance=max(1, round(self.cell_distance * radius)), labels=regions)
        seeds = np.zeros_like(regions)
        seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return np.asarray(watershed(-depth, seeds, mask=joined))

    def _with_cytoplasm(self, cell: Any, stained: Mask, radius: float) -> Mask:
        """The cell's mask [H, W]: its nucleus's hull, and stained pixels near it, for plasma is unstained."""
        hull = np.zeros_like(stained)
        hull[cell.slice] = cell.image_convex
        distance = ndimage.distance_transform_edt(~hull)
        return (distance <= self.margin * radius) | (stained & (distance <= self.cytoplasm * radius))


def _stained(green: Floats) -> Mask:
    """Pixels of cells: every dye and haemoglobin absorb green. Pale middles of red cells count too."""
    plasma, between = float(np.percentile(green, 5)), float(threshold_otsu(green))
    return remove_small_holes(green > plasma + 0.6 * (between - plasma), max_size=round(0.006 * green.size))


def red_cell_radius(red_cells: Mask) -> float:
    """Typical radius of red cells, pixels: of the larger circles in their mask; where there are none, a guess."""
    guess = max(red_cells.shape) / 14
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(red_cells), 1)
    peaks = peak_local_max(depth, min_distance=max(2, round(guess / 2)), exclude_border=False)
    radii = depth[tuple(peaks.T)]
    radii = radii[(radii > guess / 3) & (radii < 3 * guess)]
    return float(np.percentile(radii, 75)) if len(radii) >= 3 else guess
