"""What a classifier is, as plain typed values (the configuration group `model`)."""

from dataclasses import dataclass

from models.errors import ModelError


@dataclass(frozen=True)
class ClassifierConfig:
    """One classifier. The defaults are the thesis's SENet-154-GE (section 3.7, figures 36-39).

    Its networks take float images [n, 3, S, S] in [-1, 1] and return logits [n, number_of_types].
    """

    name: str = "senet154_ge"  # for reports and run directories
    # "senet": the fields below; "timm": the timm model `timm_name`; "sequential": a plain CNN of `layers` convolutions
    # per stage and `widths`; "naive_bayes": hand-made features, fitted without gradients.
    architecture: str = "senet"
    # A timm model. For "timm" the network itself; for "senet" the one whose pretrained weights fit the trunk.
    # Named in either case, images are re-normalised inside the network to that model's mean and deviation.
    timm_name: str = "legacy_senet154"
    # Smaller images are enlarged to this side inside the network, for a timm model that takes no smaller ones.
    least_size: int = 0
    # None, "pretrained" (timm's, downloaded), a .safetensors / .pt / .pth file, or a run of train_classifier.py
    weights: str | None = None
    dropout: float = 0.2  # before the last layer

    # The trunk ("senet", "sequential"): one entry of layers and widths per stage, each stage at half the resolution.
    block: str = "bottleneck"  # "bottleneck": SENet-154's, out = 4 * width; "basic": two 3x3, out = width
    layers: tuple[int, ...] = (3, 8, 36, 3)  # blocks ("sequential": convolutions) per stage
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 64  # of a block's last 3x3 convolution
    reduction: int = 16  # of every squeeze-and-excitation and of gather-excite's 1x1 convolutions
    stem_widths: tuple[int, ...] = (64, 64, 128)  # channels after each of the stem's convolutions
    stem_kernel: int = 3
    stem_pool: bool = True  # 3x3 max pooling of stride 2 after the stem
    shortcut: str = "conv3"  # downsampling on shortcuts: "conv3", "conv1", or "average" (2x2 mean, then 1x1)
    zero_init: bool = False  # the batch norm that closes a branch starts at zero: shortcuts alone at first

    # The attention on top of "senet", figure 38. ge: false leaves the plain SENet, and is what all others have.
    ge: bool = True
    ge_gather: str = "depthwise"  # "depthwise" (learned) or "average" (parameter-free)
    ge_extent: int = 0  # 0: the whole map; otherwise the extent ratio 2, 4, 8, ...
    ge_mlp: bool = False  # two 1x1 convolutions between gather and gate
    ge_kernel: int = 7  # side of a global depth-wise gather's kernel: the last map's at the usual image size
    fusion: str = "sum"  # of the attention with the last feature map: "sum", "product" or "concatenate"

    def __post_init__(self) -> None:
        for field in ("layers", "widths", "stem_widths"):  # YAML gives lists; a frozen value needs tuples
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.architecture != "senet":
            object.__setattr__(self, "ge", False)
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ModelError(f"model.{field}={getattr(self, field)!r}: choose one of {', '.join(allowed)}")
        if self.architecture == "timm" and not self.timm_name:
            raise ModelError("model.timm_name is empty: architecture=timm needs the name of a timm model")
        if self.least_size < 0 or (self.least_size and not self.timm_name):
            raise ModelError(f"model.least_size={self.least_size}: 0, or with model.timm_name a side in pixels")
        if self.architecture == "naive_bayes" and (self.timm_name or self.weights is not None):
            raise ModelError(
                "model.architecture=naive_bayes starts from nothing and takes images as they are: leave "
                "model.timm_name empty and model.weights null"
            )
        if len(self.layers) != len(self.widths) or not self.layers or min(*self.layers, *self.widths, 1) < 1:
            raise ModelError(
                f"model.layers={list(self.layers)} and model.widths={list(self.widths)}: "
                "give one positive number per stage in both"
            )
        if not self.stem_widths or min(self.stem_widths) < 1:
            raise ModelError(f"model.stem_widths={list(self.stem_widths)}: give one positive number per convolution")
        if self.architecture == "senet" and not 1 <= self.reduction <= min(self.widths):
            raise ModelError(f"model.reduction={self.reduction}: give 1 up to the smallest width, {min(self.widths)}")
        if not 0 <= self.dropout < 1:
            raise ModelError(f"model.dropout={self.dropout}: must be at least 0 and below 1")


CHOICES = {
    "architecture": ("senet", "timm", "sequential", "naive_bayes"),
    "block": ("bottleneck", "basic"),
    "shortcut": ("conv3", "conv1", "average"),
    "ge_gather": ("average", "depthwise"),
    "fusion": ("sum", "product", "concatenate"),
}
