"""The thesis's numbers for its ablation (chapter 5) and its comparison of classifiers (section 4.4), and what of them
cannot be right."""

import re
from dataclasses import dataclass

from trainer.reports.page import Block, Text


@dataclass(frozen=True)
class Published:
    """What the thesis prints for one arm, in per cent; None where it does not.

    figure: where its scores of single types are drawn. time: of training, table 24.
    """

    name: str
    accuracy: float
    figure: str = ""
    sensitivity: float | None = None
    specificity: float | None = None
    time: str = ""


# Figure 58; the overall sensitivity and specificity are in the text beside figures 53 and 54.
_ABLATION = {
    "full": Published("full method", 98.4, "figure 54", 98.58, 98.21),
    "without_ge": Published("without GE", 96.9, "figure 60"),
    "without_normalization": Published("without stain normalisation", 95.8, "figure 59"),
    "few_shot_only": Published("few-shot for every type", 95.0, "figure 62"),
    "conditional_only": Published("C-WGAN-GP for every type", 94.3, "figure 61"),
    "original": Published("original data", 92.41, "figure 53", 92.66, 92.16),
}
# Figure 52 and table 24, by the start of a model's name without what is no letter or digit.
_COMPARISON = {
    "vgg19": Published("VGG-19", 83.6, time="16 h 22 min"),
    "resnet50": Published("ResNet-50", 85.38),
    "inceptionv3": Published("Inception v3", 90.19, time="13 h 11 min"),
    "xception": Published("Xception", 84.2),
    "efficientnet": Published("EfficientNet", 92.44, time="12 h 47 min"),
    "resnext101": Published("ResNeXt-101", 93.32, time="10 h 55 min"),
    "naivebayes": Published("naive Bayes", 81.85),
    "seresnext50": Published("SE-ResNeXt-50", 95.9, time="9 h 6 min"),
    "sequentialcnn": Published("sequential CNN", 96.83),
    "senet154ge": Published("SENet-154-GE", 98.4, "", 98.58, 98.21, "8 h 3 min"),
}
_SPECIFICITY = (
    "A mean specificity of 98.21 cannot go with 98.4 % accuracy: over twelve types with as many images each it is "
    "1 - 1.6 % / 11 = 99.85."
)
_ABLATION_NOTES = (
    "The thesis gives 95.0 for few-shot generation alone and 94.3 for C-WGAN-GP alone, and below figure 62 a loss of "
    "4.1 points for the former, which is that of the latter: one of the two is swapped. The numbers here are those of "
    "the text that goes with figure 58.",
    _SPECIFICITY,
    "It does not say whether generated images were kept out of the test images. Here they are: real ones are scored.",
)
_COMPARISON_NOTES = (
    "The training of SENet-154-GE took 8 h 3 min by table 24, 1 h 20 min by the text beside figure 51. Table 24 makes "
    "it the fastest; a step of it is about five times as many multiply-accumulates as one of SE-ResNeXt-50.",
    "VGG-19 at 83.6 and ResNet-50 at 85.38 are far below what such networks reach on one of the two sources alone "
    "(ResNet-18: 98.9 on BloodMNIST at 224 px).",
    _SPECIFICITY,
)


def published(kind: str, arm: str) -> Published | None:
    """What the thesis prints for an arm of a sweep of this kind, None where it knows no such arm."""
    if kind == "ablation":
        return _ABLATION.get(arm)
    bare = re.sub(r"[^a-z0-9]", "", arm.lower())
    return next((numbers for name, numbers in _COMPARISON.items() if bare.startswith(name)), None)


def notes(kind: str) -> list[Block]:
    """What cannot be right of the thesis's numbers for sweeps of this kind."""
    texts = {"ablation": _ABLATION_NOTES, "comparison": _COMPARISON_NOTES}.get(kind, ())
    return [Text(text, warning=True) for text in texts]
