"""MineGAN's miner (Wang et al. 2020, section 4.1)."""

from torch import Tensor, nn
from torch.nn import functional

_SLOPE = 0.1


class Miner(nn.Module):
    """MineGAN's miner: noise float [n, latent_size] -> where in a trained generator's latent space to look, the same.

    A small multilayer perceptron.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(latent_size, latent_size)
        self.last = nn.Linear(latent_size, latent_size)

    def forward(self, noise: Tensor) -> Tensor:
        mined: Tensor = self.last(functional.leaky_relu(self.first(noise), _SLOPE))
        return mined
