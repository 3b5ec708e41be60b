"""Reptile, the outer loop of meta-training (thesis section 3.6, eq. 43; Nichol et al. 2018)."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np
import torch
from accelerate.utils import reduce
from torch import nn

from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch
from trainer.learners.learner import Learner, Setting, add
from trainer.loop.algorithm import Algorithm, Batches, Stateless, StepResult
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episode import Episode, Shown


class Reptile(Stateless):
    """Meta-training: an episode changes copies of the meta weights, and the meta weights follow (eq. 43).

    Each step runs the episodes of one global batch, each whole on one rank. The gradient of a meta learner is
    theta - W, the mean over all episodes, W being what the fast weights came to (Nichol et al. 2018). Buffers, the
    batch norms' running statistics among them, have no learning rate: they become the mean of the episodes'. (Spectral
    norm's singular vectors too, whose length does not matter: the next power iteration normalises them.)
    """

    def __init__(
        self, episode: type[Episode], config: FewShotRunConfig, networks: Mapping[str, nn.Module], setting: Setting
    ) -> None:
        """networks: by name, all that the episodes learn from."""
        self._model, self._shots, self._seed = config.model, config.shots, setting.seed
        self._episode, self._precision, self._rehearsal = episode, setting.precision, setting.rehearsal
        optimizer = config.model.scaled_optimizer(setting.total_steps)
        # The outer loop's gradient is a difference of weights; half precision is the inner loop's.
        full = dataclasses.replace(setting, precision="fp32")
        self.learners = {name: Learner(name, network, optimizer, full) for name, network in networks.items()}
        self.takes = {"train": 1}

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One step of the outer loop; sums of the terms of an episode's last round."""
        sums: dict[str, torch.Tensor] = {}
        gradients: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.learners}
        buffers: dict[str, dict[str, torch.Tensor]] = {name: {} for name in self.learners}
        episodes = _episodes(list(next(batches["train"])), self._shots)
        for images, positions in episodes:
            meta = {name: learner.module for name, learner in self.learners.items()}
            episode = self._episode(meta, self._model, self._precision, rehearsal=self._rehearsal)
            add(sums, self._run(episode, (images, positions)), len(images))
            for name, learner in self.learners.items():
                fast, share = episode.networks[name], 1 / len(episodes)
                learned = dict(fast.named_parameters())
                distance = {
                    key: theta.detach() - learned[key].detach() for key, theta in learner.module.named_parameters()
                }
                add(gradients[name], distance, share)
                add(buffers[name], {key: buffer.double() for key, buffer in fast.named_buffers()}, share)
        norms = {}
        for name, learner in self.learners.items():
            means = reduce(buffers[name], "mean")
            for key, buffer in learner.module.named_buffers():
                buffer.copy_(means[key])
            learner.set_gradient(gradients[name])
            norms[f"gradient_norm/{name}"] = learner.step()
        return StepResult(sums, norms)

    def _run(self, episode: Episode, shown: Shown) -> dict[str, torch.Tensor]:
        key = derive_key(self._seed, "episode")
        terms: dict[str, torch.Tensor] = {}
        for number in range(self._model.inner.rounds):
            terms = episode.run_round(itertools.repeat(shown), key, number, self._model.inner.rounds)
        return terms


def _episodes(parts: list[MicroBatch], shots: int) -> list[Shown]:
    """This process's episodes of a global batch."""
    images = torch.cat([part.images for part in parts]).split(shots)
    positions = np.concatenate([part.positions for part in parts]).reshape(-1, shots)
    return list(zip(images, positions, strict=True))


class MetaTrained(Episode):
    """An episode that Reptile trains the meta weights of."""

    meta_trained = True

    @classmethod
    def training_on_rich(
        cls, config: FewShotRunConfig, networks: Mapping[str, nn.Module], setting: Setting
    ) -> Algorithm:
        return Reptile(cls, config, networks, setting)
