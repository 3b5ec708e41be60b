"""Configuration of a classifier (group `model` of train_classifier.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.checks import check_choices
from models.errors import ModelError
from models.layer_choices import ClassifierNorm

ARCHITECTURES = sorted(path.stem for path in (Path(__file__).parent / "architectures").glob("[!_]*.py"))


@dataclass(frozen=True)
class ClassifierConfig:
    """One classifier. The defaults are the thesis's SENet-154-GE (section 3.7, figures 36-39).

    Its networks take float images [n, 3, S, S] in [-1, 1] and return logits [n, number_of_types].
    """

    name: str = "senet154_ge"  # for reports and run directories
    # A file of models/classifiers/architectures. "senet": the fields below; "timm": the model `timm_name`;
    # "sequential": a plain CNN of `layers` and `widths`; "naive_bayes": hand-made features, fitted without gradients;
    # "frozen": the features of `timm_name`, which are not trained, and a head that is fitted to them.
    architecture: str = "senet"
    # "timm", "frozen": the network itself; "senet": the timm model whose pretrained weights fit the trunk. If it is not
    # empty, images are normalised inside the network to that model's mean and deviation.
    timm_name: str = "legacy_senet154"
    least_size: int = 0  # with timm_name: smaller images are enlarged to this side inside the network
    # Each channel of each image is stretched to the same range inside the network: light, camera and amount of stain
    # then change less. For images of laboratories that the training has none of.
    stretch: bool = False
    # None, "pretrained" (timm's, downloaded), a .safetensors / .pt / .pth file, or a run of train_classifier.py
    weights: str | None = None
    dropout: float = 0.2  # before the last layer
    # Normalisation layers. None: the network's own. "group": group norm in the place of each batch norm. "frozen":
    # batch norms use the running statistics of the initial weights, in training too. "auxiliary": generated training
    # images have batch-norm statistics and affine weights of their own, which evaluation does not use.
    norm: ClassifierNorm | None = None

    # "frozen" only. linear: logistic regression; nearest: k nearest neighbours. The l2 penalty, or k, has the
    # lowest log loss on validation images.
    head: Literal["linear", "nearest"] = "linear"
    # Features of each training image: 1: of the image as it is; more: of so many augmented copies less one, too.
    views: int = 1

    # The trunk ("senet", "sequential"): one entry of layers and widths per stage, each stage at half the resolution.
    # "bottleneck": SENet-154's, out = 4 * width; "basic": two 3x3 convolutions, out = width
    block: Literal["bottleneck", "basic"] = "bottleneck"
    layers: tuple[int, ...] = (3, 8, 36, 3)  # blocks ("sequential": convolutions) per stage
    widths: tuple[int, ...] = (64, 128, 256, 512)
    groups: int = 64  # of a block's last 3x3 convolution
    reduction: int = 16  # of every squeeze-and-excitation
    stem_widths: tuple[int, ...] = (64, 64, 128)  # channels after each of the stem's convolutions
    stem_kernel: int = 3
    stem_pool: bool = True  # 3x3 max pooling of stride 2 after the stem
    shortcut: Literal["conv3", "average"] = "conv3"  # downsampling on shortcuts; "average": 2x2 mean, then 1x1
    zero_init: bool = False  # the last batch norm of each branch starts at zero: the network starts as its shortcuts

    # The attention on top of "senet", figure 38.
    ge: bool = True  # false: the plain SENet; always false for the other architectures
    # F1: the output of the whole stem, or of its first convolution.
    ge_first: Literal["stem", "convolution"] = "stem"
    ge_gather: Literal["average", "depthwise"] = "depthwise"  # parameter-free, or learned
    ge_extent: int = 0  # 0: the whole map; otherwise the extent ratio 2, 4, 8, ...
    ge_kernel: int = 7  # side of a global depth-wise gather's kernel: that of the last map at the usual image size
    fusion: Literal["sum", "product", "concatenate"] = "sum"  # of the attention with the last feature map

    def __post_init__(self) -> None:
        for field in ("layers", "widths", "stem_widths"):  # YAML gives lists; a frozen value needs tuples
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if self.architecture != "senet":
            object.__setattr__(self, "ge", False)
        check_choices(self, "model")
        if self.architecture not in ARCHITECTURES:
            raise ModelError(f"model.architecture={self.architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
        if self.architecture in ("timm", "frozen") and not self.timm_name:
            raise ModelError(
                f"model.timm_name is empty: architecture={self.architecture} needs the name of a timm model"
            )
        if self.views < 1:
            raise ModelError(f"model.views={self.views}: must be at least 1")
        if self.least_size < 0 or (self.least_size and not self.timm_name):
            raise ModelError(f"model.least_size={self.least_size}: 0, or with model.timm_name a side in pixels")
        if self.architecture == "naive_bayes" and (self.timm_name or self.weights is not None or self.stretch):
            raise ModelError(
                "model.architecture=naive_bayes has no weights to start from and takes images as they are: leave "
                "model.timm_name empty, model.weights null and model.stretch false"
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
