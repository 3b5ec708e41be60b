"""Networks of stain normalisation: generators between two stains, and the critics that judge them."""

from models.stain.build import build_critic, build_generator
from models.stain.config import CriticConfig, GeneratorConfig
from models.stain.two_way import DomainPair, Translation, TwoWay

__all__ = [
    "CriticConfig",
    "DomainPair",
    "GeneratorConfig",
    "Translation",
    "TwoWay",
    "build_critic",
    "build_generator",
]
