"""Reptile, the outer loop of meta-training (thesis section 3.6, eq. 43; Nichol et al. 2018)."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn

from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch
from trainer.learners.learner import Learner
from trainer.loop.fit import Batches, Stateless, StepResult
from trainer.tasks.few_shot.episode import Episode, Shown


class Reptile(Stateless):
    """Meta-training: an episode changes copies of the meta weights, and the meta weights follow (eq. 43).

    Each step plays the episodes of one global batch, each whole in one process. The gradient of a meta learner is
    theta - W, the mean over all episodes, W being what the fast weights came to (Nichol et al. 2018). Buffers, the
    batch norms' running statistics among them, have no learning rate: they become the mean of the episodes'. (Spectral
    norm's singular vectors too, whose length does not matter: the next power iteration normalises them.)
    """

    def __init__(
        self,
        learners: Mapping[str, Learner],
        begin: Callable[[Mapping[str, nn.Module]], Episode],
        *,
        rounds: int,
        shots: int,
        seed: int,
    ) -> None:
        """learners: one for each network, of full precision. begin: an episode on copies of the given networks."""
        self.learners = dict(learners)
        self.takes = {"train": 1}
        self._begin, self._rounds, self._shots, self._seed = begin, rounds, shots, seed

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One step of the outer loop; sums of the terms of an episode's last round."""
        sums: dict[str, torch.Tensor] = {}
        gradients: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.learners}
        buffers: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.learners}
        episodes = _episodes(list(next(batches["train"])), self._shots)
        for images, positions in episodes:
            episode = self._begin({name: learner.module for name, learner in self.learners.items()})
            terms = self._play(episode, (images, positions))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term * len(images)
            for name, learner in self.learners.items():
                fast, share = episode.networks[name], 1 / len(episodes)
                learned = dict(fast.named_parameters())
                distance = {
                    key: theta.detach() - learned[key].detach() for key, theta in learner.module.named_parameters()
                }
                _add(gradients[name], distance, share)
                _add(buffers[name], {key: buffer.double() for key, buffer in fast.named_buffers()}, share)
        norms = {}
        for name, learner in self.learners.items():
            means = reduce(buffers[name], "mean")
            for key, buffer in learner.module.named_buffers():
                buffer.copy_(means[key])
            learner.set_gradient(gradients[name])
            norms[f"gradient_norm/{name}"] = learner.step()
        return StepResult(sums, norms)

    def _play(self, episode: Episode, shown: Shown) -> dict[str, torch.Tensor]:
        key = derive_key(self._seed, "episode")
        terms: dict[str, torch.Tensor] = {}
        for number in range(self._rounds):
            terms = episode.play_round(itertools.repeat(shown), key, number, self._rounds)
        return terms


def _episodes(parts: list[MicroBatch], shots: int) -> list[Shown]:
    """This process's episodes of a global batch."""
    images = torch.cat([part.images for part in parts]).split(shots)
    positions = np.concatenate([part.positions for part in parts]).reshape(-1, shots)
    return list(zip(images, positions, strict=True))


def _add(sums: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor], share: float) -> None:
    for name, value in values.items():
        sums[name] = sums[name] + value * share if name in sums else value * share
