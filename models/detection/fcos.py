"""FCOS (Tian et al. 2019), torchvision's, on feature maps of a timm network: one prediction a place, no anchors."""

from pathlib import Path

import timm
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FeaturePyramidNetwork

from models.classifiers.weights import load_weights, read_weights
from models.detection.config import DetectorConfig
from models.errors import ModelError

STRIDES = (8, 16, 32)
# Two boxes that overlap by more are of one cell. Cells of a smear touch, and seldom lie over each other by so much.
_SAME_CELL = 0.5
# Boxes of a lower score are not given; a run's own bound, chosen on validation fields, is above it.
LEAST_SCORE = 0.05


def build_fcos(config: DetectorConfig, kinds: int) -> FCOS:
    """A detector of so many kinds of cells, for squares [n, 3, S, S] in [-1, 1] with S a multiple of 32.

    In training it takes images and targets (a dictionary of boxes float [m, 4] and labels int64 [m] for each image),
    and gives losses; else a dictionary of boxes, labels and scores for each image. ModelError for an unknown backbone,
    and for weights of another one.
    """
    backbone = _Backbone(config)
    sizes = tuple((stride,) for stride in STRIDES)
    network = FCOS(
        backbone,
        num_classes=kinds,
        anchor_generator=AnchorGenerator(sizes, ((1.0,),) * len(STRIDES)),
        head=FCOSHead(config.width, 1, kinds, config.head_layers),
        score_thresh=LEAST_SCORE,
        nms_thresh=_SAME_CELL,
        detections_per_img=300,
    )
    network.transform = _AsTheyAre()
    return network


class _Backbone(nn.Module):
    """Feature maps at STRIDES, of one width, from the last stages of a timm network."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        try:
            self.trunk = timm.create_model(
                config.backbone, features_only=True, out_indices=(2, 3, 4), pretrained=config.weights == "pretrained"
            )
        except (RuntimeError, ValueError, AttributeError, IndexError, AssertionError) as error:
            raise ModelError(
                f"model.network.backbone={config.backbone}: no feature maps of it ({error}); choose another"
            ) from error
        if tuple(self.trunk.feature_info.reduction()) != STRIDES:
            raise ModelError(
                f"model.network.backbone={config.backbone}: its feature maps are not at strides {STRIDES}; choose "
                "another"
            )
        if config.weights not in (None, "pretrained"):
            weights, own = read_weights(Path(str(config.weights))), self.trunk.state_dict()
            load_weights(self.trunk, {name: weights[name] for name in own if name in weights}, str(config.weights))
        self.pyramid = FeaturePyramidNetwork(self.trunk.feature_info.channels(), config.width)
        self.out_channels = config.width

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.pyramid({str(n): each for n, each in enumerate(self.trunk(images))})


class _AsTheyAre(nn.Module):
    """In place of torchvision's transform: images come resized and normalised."""

    def forward(
        self, images: Tensor, targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        height, width = images.shape[-2:]
        return ImageList(images, [(height, width)] * len(images)), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], shapes: list[tuple[int, int]], originals: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        return result
