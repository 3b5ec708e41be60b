"""How the weights of stain networks begin."""

from torch import nn


def initialise(network: nn.Module) -> None:
    """Normal weights of deviation 0.02, as pix2pix and CycleGAN start (Isola et al. 2017, section 6.2)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, nn.InstanceNorm2d | nn.BatchNorm2d):
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
