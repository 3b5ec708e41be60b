"""Test-time views: a network's answers to an image, its mirror images and its quarter turns, averaged."""

import math

import torch
from torch import Tensor, nn

from trainer.learners.choices import VIEWS


def views_of(images: Tensor, count: int) -> list[Tensor]:
    """Square images [n, 3, S, S] in `count` ways: 1, as they are; 2, mirrored too; 4, upside down too; 8, turned too.

    Each list is the beginning of the longer ones. A mirrored image gives the same list in another order, with 8 views a
    turned one too.
    """
    views = [images]
    if count >= 2:
        views += [view.flip(3) for view in views]
    if count >= 4:
        views += [view.flip(2) for view in views]
    if count == VIEWS[-1]:
        views += [view.transpose(2, 3) for view in views]
    return views


def mean_log_probabilities(each: Tensor) -> Tensor:
    """The logarithm of the mean probability: log probabilities [n, answers, types] -> [n, types]."""
    return each.logsumexp(dim=1) - math.log(each.shape[1])


class EachView(nn.Module):
    """A network's answers to every view: images [n, 3, S, S] -> log probabilities float32 [n, views, types].

    One view at a time, so that as many images fit into memory as without views.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self._count = count

    def forward(self, images: Tensor) -> Tensor:
        each = [self.network(view).float().log_softmax(dim=1) for view in views_of(images, self._count)]
        return torch.stack(each, dim=1)


class Views(nn.Module):
    """A network whose answer is the mean over views: images [n, 3, S, S] -> log probabilities float32 [n, types].

    All views are one batch of n times `count` images, so that an exported graph holds the network once.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self._count = count

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.cat(views_of(images, self._count)))
        each = logits.float().log_softmax(dim=1).unflatten(0, (self._count, images.shape[0]))
        return mean_log_probabilities(each.transpose(0, 1))
