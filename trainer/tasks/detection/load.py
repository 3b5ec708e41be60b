"""A detector that a run has trained, as a finder of cells in fields."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError
from data_pipeline.sources.annotations import Box
from models.detection.config import DetectorConfig
from models.errors import ModelError
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.record import RunRecord
from trainer.runs.registry import algorithm_class
from trainer.runs.run_directory import CONFIG_FILE
from trainer.tasks.detection.config import DetectorModelConfig, DetectorRunConfig
from trainer.tasks.detection.targets import Square

# In a run: the least score of a box that is counted, of each kind, and for which checkpoint it was chosen.
_BOUNDS = "least_scores.json"
_PADDING = 255  # as of the graph's padding


@dataclass(frozen=True)
class TrainedDetector:
    """A run's best network, on the CPU in evaluation mode."""

    network: nn.Module
    checkpoint: Checkpoint
    config: DetectorRunConfig
    kinds: tuple[str, ...]
    dataset_hash: str
    least_scores: Mapping[str, float]  # empty before they are chosen

    def find(self, pixels: npt.NDArray[np.uint8]) -> list[Box]:
        """Cells of a field, uint8 RGB [H, W, 3], at or above the least score of their kind, the surest first."""
        height, width = pixels.shape[:2]
        square = Square(width, height, self.config.data.image_size)
        side = max(height, width)
        padded = Image.new("RGB", (side, side), (_PADDING,) * 3)
        padded.paste(Image.fromarray(pixels), ((side - width) // 2, (side - height) // 2))
        small = np.asarray(padded.resize((square.size, square.size), Image.Resampling.BILINEAR), np.float32)
        device = next(self.network.parameters()).device
        image = torch.from_numpy(small / 127.5 - 1).permute(2, 0, 1)[None].to(device)
        (boxes,) = detect(self.network, image, self.kinds, [square])
        return [box for box in boxes if box.score >= self.least_scores.get(box.name, 0.0)]


@torch.no_grad()
def detect(
    network: nn.Module, images: torch.Tensor, kinds: Sequence[str], squares: Sequence[Square]
) -> list[list[Box]]:
    """Boxes of each field, in its pixels, the surest first. images: float [n, 3, S, S] in [-1, 1] of the squares."""
    network.eval()
    found = []
    for answer, square in zip(network(images), squares, strict=True):
        edges = square.back(answer["boxes"].double().cpu().numpy()).round().astype(int).tolist()
        names = [kinds[label] for label in answer["labels"].tolist()]
        boxes = [
            Box(name, left, top, right, bottom, score)
            for name, (left, top, right, bottom), score in zip(names, edges, answer["scores"].tolist(), strict=True)
        ]
        found.append([box for box in boxes if box.right > box.left and box.bottom > box.top])
    return found


def load_detector(run: Path) -> TrainedDetector:
    """The best checkpoint of a run. UserError when the folder holds no finished epoch, or another kind of run."""
    made = RunRecord.read(run, "detection")
    config: DetectorRunConfig = made.config
    checkpoint = CheckpointStore(run / "checkpoints").best()
    if checkpoint is None:
        raise UserError(f"{run}: no best checkpoint yet: let train_detector.py finish an epoch first")
    state = checkpoint.load()["learners"]["detector"]
    network = build_network(config.model, len(made.cell_types), fresh=False)
    checkpoint.fill(network, state["average"] or state["module"], run / CONFIG_FILE)
    bounds = _read_bounds(run, checkpoint)
    return TrainedDetector(network.eval(), checkpoint, config, made.cell_types, made.dataset_hash, bounds)


def build_network(config: DetectorModelConfig, kinds: int, *, fresh: bool) -> nn.Module:
    """The algorithm's network; fresh: with the initial weights that the configuration names, else UserError."""
    network = config.network if fresh else dataclasses.replace(config.network, weights=None)
    build: Callable[[DetectorConfig, int], nn.Module] = algorithm_class("detection", config.algorithm).build_network
    try:
        return build(network, kinds)
    except ModelError as error:
        raise UserError(str(error)) from error


def save_bounds(run: Path, checkpoint: Checkpoint, bounds: Mapping[str, float]) -> None:
    """Keep the least scores with the run."""
    content = {"checkpoint": checkpoint.digest, "least_scores": dict(bounds)}
    replace_through(run / _BOUNDS, (json.dumps(with_checksum(content), indent=1) + "\n").encode())


def _read_bounds(run: Path, checkpoint: Checkpoint) -> dict[str, float]:
    try:
        content = checked(json.loads((run / _BOUNDS).read_text()))
        return dict(content["least_scores"]) if content["checkpoint"] == checkpoint.digest else {}
    except (OSError, ValueError, KeyError):
        return {}
