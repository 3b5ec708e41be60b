"""If these fail, DiffAugment makes other changes than the paper's, or hides them from the generator."""

from typing import Any

import numpy as np
import torch

from trainer.learners.differentiable_augmentation import NUMBERS, augment


def images(seed: int, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def numbers(seed: int, count: int = 3) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).random((count, NUMBERS))


def test_an_augmentation_is_of_each_image_by_its_own_numbers() -> None:
    drawn, changes = numbers(0), ("colour", "translation", "cutout")
    whole = augment(images(0), drawn, changes)  # type: ignore[arg-type]
    alone = augment(images(0)[1:2], drawn[1:2], changes)  # type: ignore[arg-type]
    torch.testing.assert_close(whole[1:2], alone)
    assert not torch.allclose(augment(images(0)[1:2], drawn[2:3], changes), alone)  # type: ignore[arg-type]


def test_gradients_pass_through_every_change() -> None:
    small = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    drawn = numbers(3, 2)
    assert torch.autograd.gradcheck(lambda x: augment(x, drawn, ("colour", "translation", "cutout")), (small,))


def test_changes_are_those_of_the_paper() -> None:
    some = images(0, 1)
    shift = np.full((1, NUMBERS), 0.999)  # as far right and down as it goes: an eighth of the side
    moved = augment(some, shift, ("translation",))
    torch.testing.assert_close(moved[..., 4:, 4:], some[..., :-4, :-4])
    assert moved[..., :4, :].abs().max() == 0
    middle = np.full((1, NUMBERS), 0.5)
    cut = augment(some, middle, ("cutout",))
    assert (cut == 0).all(dim=1).sum() == 16 * 16
    assert cut[..., 8:24, 8:24].abs().max() == 0
    torch.testing.assert_close(augment(some, middle, ("colour",)), some)  # no brightness, saturation and contrast of 1
    colour = np.zeros((1, NUMBERS))
    colour[0, :3] = 0.9, 0.0, 0.5
    grey = (some + 0.4).mean(dim=1, keepdim=True).expand_as(some)
    torch.testing.assert_close(augment(some, colour, ("colour",)), grey)
