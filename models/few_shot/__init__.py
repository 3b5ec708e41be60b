"""Networks of few-shot generation: encoder, generator and discriminator, and what its rivals add."""

from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from models.few_shot.decoder import FeatureDecoder
from models.few_shot.discriminator import Discriminator
from models.few_shot.encoder import Encoder
from models.few_shot.generator import Generator
from models.few_shot.miner import Miner

__all__ = [
    "Discriminator",
    "DiscriminatorConfig",
    "Encoder",
    "EncoderConfig",
    "FeatureDecoder",
    "Generator",
    "GeneratorConfig",
    "Miner",
]
