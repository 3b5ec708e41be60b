"""Grad-CAM: where in an image a classifier found its answer (Selvaraju et al. 2017, equations 1 and 2)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.classifiers.features import stages

# Side, in pixels, of the heat map that is stored for a picture.
HEAT_SIDE = 32
# The last feature map is nearest to the answer; below 4 pixels a side it shows no place.
_LEAST_SIDE = 4


class GradCam:
    """A classifier with heat maps: images -> logits, and the heat of each image's most probable type.

    The heat is taken at the last stage whose map has 4 pixels a side or more, else at the one with the widest map.
    UserError for a network without feature maps: naive Bayes, a transformer, an exported model.
    """

    def __init__(self, network: nn.Module, classifier: nn.Module | None, image_size: int, device: torch.device) -> None:
        """network: images [n, 3, S, S] in [-1, 1] -> logits, S image_size; classifier: its part that has stages.

        Freezes their parameters.
        """
        self._network = network.to(device).eval().requires_grad_(False)
        images = torch.zeros((1, 3, image_size, image_size), device=device)
        sides: dict[nn.Module, int] = {}
        for stage in [] if classifier is None else stages(classifier):
            with _watch(stage) as seen, torch.no_grad():
                network(images)
            # Square, as the images are: some transformers give maps with their channels last.
            if seen and seen[0].ndim == 4 and seen[0].shape[2] == seen[0].shape[3]:
                sides[stage] = seen[0].shape[3]
        if not sides:
            raise UserError(
                "this classifier has no feature maps to show where it looked (several runs or views, an export, naive "
                "Bayes and transformers have none): give one run of a convolutional network, or leave heatmaps= out"
            )
        fine = [stage for stage, side in sides.items() if side >= _LEAST_SIDE]
        self._stage = fine[-1] if fine else max(sides, key=lambda stage: sides[stage])

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [n, types] and heat float32 [n, h, w] in [0, 1], at most 1 in each image.

        Heat is 0 everywhere where nothing in the map supports the type.
        """
        with _watch(self._stage) as seen, torch.enable_grad():
            logits: Tensor = self._network(images)
            chosen = logits.float().max(dim=1).values.sum()
            (maps,) = seen
            (gradient,) = torch.autograd.grad(chosen, maps)
        heat = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).clamp_min(0).detach().float()
        most = heat.amax((1, 2), keepdim=True)
        return logits.detach().float(), torch.where(most > 0, heat / most, 0)


def predict_with_heat(
    grad_cam: GradCam, batches: Iterable[MicroBatch], crop: float
) -> tuple[Tensor, Tensor, list[bytes]]:
    """Logits [n, types], rows [n] and heat maps (see `in_picture`) of all images in `batches`."""
    parts = [(*grad_cam(batch.images), batch.rows) for batch in batches]
    if not parts:
        return torch.empty(0, 0), torch.empty(0, dtype=torch.int64), []
    heat = [each for _, maps, _ in parts for each in in_picture(maps, crop)]
    return torch.cat([part[0].cpu() for part in parts]), torch.cat([torch.from_numpy(part[2]) for part in parts]), heat


def in_picture(heat: Tensor, crop: float) -> list[bytes]:
    """Heat maps of whole pictures, each uint8 bytes of HEAT_SIDE squared pixels, 0 outside the crop.

    heat: [n, h, w] in [0, 1], of their middles. crop: the share of a picture's sides that the network saw.
    """
    side = max(1, round(HEAT_SIDE * crop))
    small = functional.interpolate(heat[:, None], (side, side), mode="bilinear")[:, 0]
    whole = torch.zeros((len(heat), HEAT_SIDE, HEAT_SIDE), dtype=torch.uint8)
    start = (HEAT_SIDE - side) // 2
    whole[:, start : start + side, start : start + side] = (255 * small).round().to(torch.uint8).cpu()
    return [each.numpy().tobytes() for each in whole]


@contextmanager
def _watch(stage: nn.Module) -> Iterator[list[Tensor]]:
    """The stage's outputs while the context lasts, each a leaf with a gradient."""
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        seen.append(output.detach().requires_grad_())
        return seen[-1].clone()  # later layers may change it in place

    handle = stage.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
