"""Networks that make images of a wanted cell type, and those that judge them (thesis section 3.5)."""

from models.conditional.build import build_classifier, build_critic, build_generator
from models.conditional.config import ClassifierConfig, CriticConfig, GeneratorConfig
from models.conditional.of_each_type import OfEachType

__all__ = [
    "ClassifierConfig",
    "CriticConfig",
    "GeneratorConfig",
    "OfEachType",
    "build_classifier",
    "build_critic",
    "build_generator",
]
