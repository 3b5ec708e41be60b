"""From a configuration to a network of section 3.5."""

from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from models.conditional.critic import Critic
from models.conditional.generator import Generator
from models.errors import ModelError


def build_generator(config: GeneratorConfig, image_size: int, classes: int) -> Generator:
    """Latents [n, latent_size] and types int64 [n] -> images float32 [n, 3, S, S] in [-1, 1] (table 10).

    classes: number of types; 0 for a generator that knows none. ModelError unless 4 divides image_size.
    """
    check_size(image_size)
    return Generator(config, image_size, classes)


def build_critic(config: CriticConfig, image_size: int, *, class_outputs: int = 0, shown_classes: int = 0) -> Critic:
    """Images [n, 3, S, S] -> float [n, 1 + class_outputs]: the score, then a logit for each type (table 11).

    shown_classes: number of types, where the critic is told each image's. ModelError unless 4 divides image_size.
    """
    check_size(image_size)
    return Critic(config, image_size, 1 + class_outputs, shown_classes)


def build_classifier(config: ClassifierConfig, image_size: int, classes: int) -> Critic:
    """Images [n, 3, S, S] -> logits [n, classes] (table 12). ModelError unless 4 divides image_size."""
    check_size(image_size)
    return Critic(config, image_size, classes, 0)


def check_size(image_size: int) -> None:
    """ModelError unless a generator, which begins at a quarter of the size, can make such images."""
    if image_size < 4 or image_size % 4:
        nearest = max(4, 4 * round(image_size / 4))
        raise ModelError(f"images of {image_size} pixels: the side must be a multiple of 4; {nearest} is the nearest")
