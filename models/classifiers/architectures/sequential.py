"""A sequential CNN, the plain rival among the thesis's classifiers (figure 52)."""

from torch import Tensor, nn

from models.classifiers.config import ClassifierConfig


def build(config: ClassifierConfig, number_of_types: int, image_size: int | None) -> nn.Module:
    return SequentialCNN(config, number_of_types)


def make_stage(in_channels: int, width: int, convolutions: int) -> nn.Sequential:
    """3x3 convolutions with batch norm and ReLU, then 2x2 max pooling: [n, C, H, W] -> [n, width, H // 2, W // 2]."""
    modules: list[nn.Module] = []
    for channels in (in_channels, *[width] * (convolutions - 1)):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        modules += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules, nn.MaxPool2d(2))


class SequentialCNN(nn.Module):
    """Stages of `config.layers` convolutions, mean over the map, dense layer with ReLU, dropout, last layer.

    float [n, 3, S, S] -> logits [n, number_of_types], S at least 2 ** stages. Its features have the names of timm's
    models (`forward_features`, `forward_head`, `feature_info`), so that images can be compared in them.
    """

    def __init__(self, config: ClassifierConfig, number_of_types: int) -> None:
        super().__init__()
        inputs = (3, *config.widths[:-1])
        stages = zip(inputs, config.widths, config.layers, strict=True)
        self.stages = nn.Sequential(*(make_stage(*stage) for stage in stages))
        self.feature_info = [{"module": f"stages.{number}"} for number in range(len(config.widths))]
        self.dense = nn.Sequential(nn.Linear(config.widths[-1], config.widths[-1]), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(config.dropout)
        self.last_linear = nn.Linear(config.widths[-1], number_of_types)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Pattern of the stages' names, in their order (timm's name for it)."""
        return {"stages": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map: float [n, 3, S, S] -> [n, C, S', S']."""
        return self.stages(images)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [n, number_of_types] from the last stage's map; pre_logits: the last layer's input [n, C] instead."""
        features: Tensor = self.dropout(self.dense(maps.mean((2, 3))))
        return features if pre_logits else self.last_linear(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))
