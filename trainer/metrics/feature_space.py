"""Feature spaces for distances between sets of images: Inception's, a classifier's of cells, or a random network's."""

import itertools
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_pipeline.errors import UserError
from models.classifiers.features import watch_features

_RANDOM_WIDTHS = (32, 64, 128, 256)
_FILE = "weights-inception-2015-12-05-6726825d.pth"  # of torch-fidelity

# Score -> (its name in Inception's features, the name of the same formula in any others).
_NAMES = {
    "frechet": ("FID", "Fréchet distance"),
    "kernel": ("KID", "kernel distance"),
    "inception": ("inception score", "inception-type score"),
}


class FeatureSpace(nn.Module, ABC):
    """Frozen network: images float32 [n, 3, H, W] in [-1, 1] -> features float32 [n, d], probabilities [n, k]."""

    name: str  # of the network, for reports
    is_inception: bool  # only then scores have the published names

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As the class says."""

    def score_name(self, score: str) -> str:
        """The name of "frechet", "kernel" or "inception": "FID", but "Fréchet distance [classifier x]"."""
        published, general = _NAMES[score]
        return published if self.is_inception else f"{general} [{self.name}]"


class InceptionFeatures(FeatureSpace):
    """The Inception-v3 of the published FID, KID and inception score: d = 2,048 features, k = 1,008 classes.

    torch-fidelity's port of TensorFlow's network of 2015-12-05, with TensorFlow's resizing to 299 px; images are
    rounded to 8 bits first. weights: that network's file (...inception-2015-12-05-6726825d.pth); default: the one in
    torch's cache. Nothing is downloaded. UserError for a missing file, or one of another network.
    """

    name = "Inception"
    is_inception = True

    def __init__(self, weights: str | None = None) -> None:
        # Imported here: with torchvision it takes seconds, for which a training's first step need not wait.
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        super().__init__()
        path = inception_file(weights)
        if path is None:
            raise UserError(
                f"the Inception network's weights are not at hand: get {URL_INCEPTION_V3} and name the file, "
                "inception_weights=FILE, or score in a classifier's features instead"
            )
        if not path.is_file():
            raise UserError(f"{path}: no such file: give the Inception network's weights, {_FILE}")
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # the extractor itself would run pickled code
            self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        except Exception as error:  # a damaged or foreign file raises errors of many kinds
            reason = " ".join(str(error).split())[:120]
            raise UserError(
                f"{path}: not the weights of the Inception network of FID ({type(error).__name__}: {reason}): "
                f"give the file {_FILE}"
            ) from error

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        intensities = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        features, logits = self.network(intensities)
        return features, logits.softmax(dim=1)


class RandomFeatures(FeatureSpace):
    """Mean and deviation over the image of each channel of an untrained convolutional network: d = 960.

    Needs no weights and has seen no image: it tells textures, edges and colours apart, and no types (k = 1). Random
    features rank generators as well as trained ones where images are unlike photographs (Naeem et al. 2020, section 3).
    """

    name = "random network"
    is_inception = False

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        widths = [3, *_RANDOM_WIDTHS]
        layers = [nn.Conv2d(before, after, 4, 2, 1, bias=False) for before, after in itertools.pairwise(widths)]
        self.layers = nn.ModuleList(layers).requires_grad_(False)
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, found = images.float(), []
        for layer in self.layers:
            features = functional.relu(layer(features))
            flat = features.flatten(2)
            found += [flat.mean(dim=2), flat.std(dim=2, correction=0)]
        return torch.cat(found, dim=1), images.new_ones(len(images), 1)


def inception_file(weights: str | None) -> Path | None:
    """The file of the Inception network's weights: `weights`, else the one in torch's cache; None without either."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
    return Path(weights) if weights else cached if cached.is_file() else None


class ClassifierFeatures(FeatureSpace):
    """The input of a classifier's last layer, and its probabilities.

    network: one of models.classifiers, images in [-1, 1] -> logits. name: of the network and its weights, short.
    image_size: pixels; images of other sizes are resized (bilinear, antialiased).
    """

    is_inception = False

    def __init__(self, network: nn.Module, name: str, image_size: int) -> None:
        super().__init__()
        self.name = f"classifier {name}"
        self.image_size = image_size
        self.network = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = (self.image_size, self.image_size)
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bilinear", antialias=True)
        with watch_features(self.network) as features:
            logits = self.network(images)
        return features[0], logits.softmax(dim=1)
