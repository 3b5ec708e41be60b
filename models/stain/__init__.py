"""Networks of stain normalisation: generators between two stains, and the critics that judge them."""

from models.stain.build import Generator, build_critic, build_generator
from models.stain.colour_statistics import ColourStatistics, restain
from models.stain.config import CriticConfig, GeneratorConfig
from models.stain.two_way import DomainPair, Translation, TwoWay

__all__ = [
    "ColourStatistics",
    "CriticConfig",
    "DomainPair",
    "Generator",
    "GeneratorConfig",
    "Translation",
    "TwoWay",
    "build_critic",
    "build_generator",
    "restain",
]
