"""FCOS: focal loss of the kind, generalised IoU of the box, cross entropy of the centre (Tian et al. 2019, eq. 2)."""

from torch import nn

from data_pipeline.stream.stream import MicroBatch
from models.detection.config import DetectorConfig
from models.detection.fcos import build_fcos
from trainer.learners.learner import Learner, Setting, Terms
from trainer.loop.algorithm import Batches, Stateless, StepResult
from trainer.runs.registry import NoOptions, registered
from trainer.tasks.detection.config import DetectorRunConfig
from trainer.tasks.detection.targets import FieldBoxes


@registered
class Fcos(Stateless):
    """FCOS with its three losses; each step takes one global batch of fields."""

    Options = NoOptions

    @staticmethod
    def build_network(config: DetectorConfig, kinds: int) -> nn.Module:
        """The network with its initial weights. ModelError where it cannot be built."""
        return build_fcos(config, kinds)

    def __init__(self, network: nn.Module, config: DetectorRunConfig, setting: Setting, boxes: FieldBoxes) -> None:
        self._boxes = boxes
        self._detector = Learner("detector", network, config.optimizer, setting, choices=config.model.choices)
        self.learners = {"detector": self._detector}
        self.takes = {"train": 1}

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """Sums of the three losses, norm `gradient_norm`."""
        self._detector.engine.train()
        sums, norm = self._detector.move(next(batches["train"]), self._terms)
        return StepResult(sums, {"gradient_norm": norm})

    def _terms(self, part: MicroBatch) -> Terms:
        """torchvision's losses are means over the places of a micro-batch's cells: each image has the same share."""
        with self._detector.autocast():
            losses = self._detector.engine(part.images, self._boxes.of(part))
        return {name.removeprefix("bbox_"): (1.0, len(part.images) * value.float()) for name, value in losses.items()}
