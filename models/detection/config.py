"""The size of a detector, as plain typed values."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DetectorConfig:
    """A detector's backbone and head."""

    backbone: str = "tf_efficientnet_lite0"  # one of timm's networks that give feature maps
    weights: str | None = None  # initial weights of the backbone: a file of timm's, or pretrained; null: random
    width: int = 64  # channels of the feature pyramid and the head; a multiple of 32
    head_layers: int = 2  # convolutions of the head before its last one

    def __post_init__(self) -> None:
        if self.width < 32 or self.width % 32:
            raise ValueError(f"model.network.width={self.width}: must be a multiple of 32")
        if self.head_layers < 1:
            raise ValueError(f"model.network.head_layers={self.head_layers}: must be at least 1")
