"""The thesis's equations, each under its number. Every function returns one number per image, float32 [n].

Algorithms weigh and sum them: an image's weight does not depend on which process or micro-batch it came in.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from trainer.learners.choices import PenaltyMetric
from trainer.learners.slope import SlopePasses

Critic = Callable[[torch.Tensor], torch.Tensor]


def score(patch_map: torch.Tensor) -> torch.Tensor:
    """A critic's score of each image, [n]: the mean of its patch map [n, 1, h, w], or its single score [n]."""
    return patch_map.float().reshape(len(patch_map), -1).mean(dim=1)


def wasserstein_critic(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """What a critic minimises without its penalty, from scores [n]: D(generated) - D(real) (eq. 24, 26)."""
    return generated - real


def wasserstein_generator(generated: torch.Tensor) -> torch.Tensor:
    """What a generator minimises, from its critic's scores [n]: -D(G(x)) (eq. 25, 27)."""
    return -generated


def gradient_penalty(
    critic: Critic,
    real: torch.Tensor,
    generated: torch.Tensor,
    points: torch.Tensor,
    metric: PenaltyMetric = "euclidean",
) -> torch.Tensor:
    """(|D'(x)| - 1)^2 at points between real and generated images (eq. 26, 28; Gulrajani et al. 2017).

    critic: the bare network, images -> patch map; real, generated: [n, 3, H, W]; points [n] in [0, 1],
    the share of the real image. Computed in fp32 with one score per image, the map averaged first:
    differentiating the map's sum would shrink the usable slope by the number of patches.

    metric: how far apart two images are, which is what a critic's slope is measured against.
    `euclidean` is the thesis's: |D(x) - D(y)| <= |x - y|, whose pull on a single pixel does not fall as
    images grow, while that of a mean L1 loss does. `root_mean_square` measures the distance per pixel,
    |x - y| / sqrt(3HW), so that critic and mean L1 losses keep their balance at every resolution.
    """
    share = points.float().view(-1, 1, 1, 1)
    between = (share * real.detach().float() + (1 - share) * generated.detach().float()).requires_grad_(True)
    with torch.autocast(between.device.type, enabled=False), SlopePasses():
        (slope,) = torch.autograd.grad(score(critic(between)).sum(), between, create_graph=True)
    squares = slope.flatten(1).square()
    total = squares.sum(dim=1)
    if metric == "root_mean_square":
        total = total * squares.shape[1]
    # The root's derivative at zero is infinite; a critic starts with slopes that small.
    return (torch.sqrt(total + 1e-12) - 1).square()


def cycle_consistency(image: torch.Tensor, reconstructed: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of an image and its reconstruction after both translations (eq. 20-22)."""
    return _mean_absolute(image, reconstructed)


def identity(image: torch.Tensor, mapped: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference between an image of the target domain and what its generator makes of it (eq. 23)."""
    return _mean_absolute(image, mapped)


def least_squares(patch_map: torch.Tensor, target: float) -> torch.Tensor:
    """CycleGAN's adversarial loss: squared distance of each patch's answer from `target` (Zhu et al. 2017, 2.1)."""
    return (patch_map.float() - target).square().flatten(1).mean(dim=1)


def cross_entropy_of_patches(patch_map: torch.Tensor, target: float) -> torch.Tensor:
    """pix2pix's adversarial loss: binary cross entropy of each patch's logit (Isola et al. 2017, eq. 1)."""
    logits = patch_map.float()
    targets = torch.full_like(logits, target)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(dim=1)


def cross_entropy_of_source(logits: torch.Tensor, target: float) -> torch.Tensor:
    """Binary cross entropy of "is real", logits [n], with `target` 1 or 0 (Goodfellow et al. 2014, eq. 1)."""
    targets = torch.full_like(logits, target, dtype=torch.float32)
    return functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")


def classification(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits [n, classes] against int64 [n]: -log C(class | image) (thesis section 3.5).

    AC-GAN's class loss (Odena et al. 2017, eq. 3) and, of the code that an image was made from, InfoGAN's
    bound on the information that the image keeps of it (Chen et al. 2016, eq. 5).
    """
    return functional.cross_entropy(logits.float(), classes, reduction="none")


def reconstruction(image: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference to a known target: pix2pix's L1 (Isola et al. 2017, eq. 3); a student to its teacher.

    Also the few-shot encoder's loss: the input image against one of its two reconstructions (eq. 41, 42).
    """
    return _mean_absolute(image, generated)


def relativistic_average(preferred: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Relativistic average GAN loss of logits [n] each: `preferred` should look more real than `other` on average.

    preferred: real images for the discriminator (eq. 35, 36), generated ones for the generator (eq. 38, 39). As
    printed, those equations have a term log(1 - D(real)) for the generator, which has no gradient with an ordinary D.
    D is therefore relativistic (Jolicoeur-Martineau 2018, eq. 7).
    """
    preferred, other = preferred.float(), other.float()
    return functional.softplus(other.mean() - preferred) + functional.softplus(other - preferred.mean())


# Below the reciprocal of the mode-seeking ratio (Mao et al. 2019's own code).
_MODE_SEEKING_FLOOR = 1e-5


def mode_seeking(
    first: torch.Tensor, second: torch.Tensor, first_noise: torch.Tensor, second_noise: torch.Tensor
) -> torch.Tensor:
    """The reciprocal of (distance of two images / distance of their noise) (eq. 44; Mao et al. 2019, eq. 4).

    Images [n, 3, H, W], noise [n, z]; distances are mean absolute differences. Minimising the ratio
    itself would reward mode collapse: one image for all noise.
    """
    ratio = _mean_absolute(first, second) / _mean_absolute(first_noise, second_noise)
    return 1 / (ratio + _MODE_SEEKING_FLOOR)


def hinge_discriminator(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
    """FastGAN's discriminator wants logits [n] above 1 for real and below -1 for generated images (Lim and Ye 2017)."""
    return functional.relu(1 - real.float()) + functional.relu(1 + generated.float())


def _mean_absolute(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return (first.float() - second.float()).abs().flatten(1).mean(dim=1)
