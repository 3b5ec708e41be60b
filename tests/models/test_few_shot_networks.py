"""If these fail, the few-shot networks are not those of figures 31-34."""

import pytest
import torch
from torch import nn

from models.errors import ModelError
from models.few_shot.config import DiscriminatorConfig, EncoderConfig, GeneratorConfig
from models.few_shot.networks import (
    Discriminator,
    Encoder,
    FeatureDecoder,
    Generator,
    Miner,
    SkipLayerExcitation,
    skips,
)


def images(count: int, size: int) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("size", [128, 256])
def test_the_generator_has_the_parameters_of_table_22(size: int) -> None:
    generator = Generator(GeneratorConfig(), GeneratorConfig().latent_size + EncoderConfig().feature_size, size)
    assert sum(parameter.numel() for parameter in generator.parameters()) == pytest.approx(5.8e6, rel=0.02)


@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize("size", [32, 64, 256])
def test_every_network_takes_every_power_of_two(size: int, upsample: str) -> None:
    generator = Generator(GeneratorConfig(width=2, latent_size=6, upsample=upsample), 10, size)  # type: ignore[arg-type]
    made = generator(torch.randn(2, 10))
    assert made.shape == (2, 3, size, size)
    assert made.abs().max() <= 1
    assert made.dtype == torch.float32
    assert Encoder(EncoderConfig(width=2, feature_size=4), size)(made).shape == (2, 4)
    discriminator = Discriminator(DiscriminatorConfig(width=2), size)
    assert discriminator(made).shape == (2,)
    features = discriminator.features(made)
    torch.testing.assert_close(discriminator.judge(features).shape, discriminator(made).shape)
    assert FeatureDecoder(discriminator.feature_channels, 2)(features).shape == (2, 3, size // 2, size // 2)
    assert Miner(6)(torch.randn(2, 6)).shape == (2, 6)


def test_skips_join_the_levels_of_figure_31() -> None:
    assert skips(256) == [(8, 128), (16, 256)]
    assert skips(128) == [(8, 128)]
    assert skips(64) == [(8, 64)]
    assert skips(32) == [(8, 32)]
    assert set(Generator(GeneratorConfig(width=2), 4, 256).skips) == {"128", "256"}
    assert not Generator(GeneratorConfig(width=2, skip_excitation=False), 4, 256).skips


@pytest.mark.parametrize(("low_size", "high_size"), [(8, 128), (16, 256), (8, 32)])
def test_an_excitation_weighs_whole_channels(low_size: int, high_size: int) -> None:
    """Equation 45: one factor in (0, 1) for each image and channel, and it comes from the low resolution alone."""
    torch.manual_seed(0)
    excitation = SkipLayerExcitation(low_size, 6, 5)
    low, high = torch.randn(2, 6, low_size, low_size), torch.randn(2, 5, high_size, high_size)
    factors = excitation(low, torch.ones_like(high))
    assert factors.shape == high.shape
    assert (factors.flatten(2).amax(2) == factors.flatten(2).amin(2)).all()
    assert 0 < factors.min() < factors.max() < 1
    torch.testing.assert_close(excitation(low, high), high * factors)
    assert not torch.allclose(excitation(low.flip(0), torch.ones_like(high)), factors)


def test_an_excitation_reaches_the_image() -> None:
    torch.manual_seed(0)
    generator = Generator(GeneratorConfig(width=4, latent_size=8), 8, 32)
    latents = torch.randn(2, 8)
    before = generator(latents)
    nn.init.constant_(generator.skips["32"].excitation[3].bias, -20.0)  # type: ignore[index, union-attr]
    after = generator(latents)
    assert (before - after).abs().mean() > 1e-3
    assert after.std(dim=(2, 3)).max() < 1e-3  # channels weighed with nothing: the last convolution's bias is left


def test_the_three_pairs_are_spectrally_normalised() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=4), 32)
    for _ in range(60):  # one power iteration each
        discriminator(images(1, 32))
    convolutions = [layer for layer in discriminator.trunk if isinstance(layer, nn.Conv2d)]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 4, 3, 4, 3, 4]
    for layer in convolutions:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        assert largest.item() == pytest.approx(1, abs=0.02)
    plain = Discriminator(DiscriminatorConfig(width=4, spectral_norm=False), 32)
    assert not any("original" in name for name, _ in plain.named_parameters())


def test_a_logit_is_of_one_image_and_so_is_an_image_in_evaluation() -> None:
    torch.manual_seed(0)
    discriminator = Discriminator(DiscriminatorConfig(width=4), 32).eval()
    generator = Generator(GeneratorConfig(width=4, latent_size=8), 8, 32).eval()
    some, latents = images(4, 32), torch.randn(4, 8)
    torch.testing.assert_close(discriminator(some)[1:2], discriminator(some[1:2]))
    torch.testing.assert_close(generator(latents)[1:2], generator(latents[1:2]))


@pytest.mark.parametrize("size", [16, 48, 100])
def test_other_sizes_are_refused(size: int) -> None:
    for build in (
        lambda: Generator(GeneratorConfig(), 8, size),
        lambda: Encoder(EncoderConfig(), size),
        lambda: Discriminator(DiscriminatorConfig(), size),
    ):
        with pytest.raises(ModelError, match=f"{size} x {size} pixels .* power of two of at least 32"):
            build()


def test_widths_that_cannot_be_are_refused() -> None:
    with pytest.raises(ModelError, match=r"generator\.width=1"):
        GeneratorConfig(width=1)
    with pytest.raises(ModelError, match=r"encoder\.feature_size=0"):
        EncoderConfig(feature_size=0)
    with pytest.raises(ModelError, match=r"discriminator\.width=0"):
        DiscriminatorConfig(width=0)
