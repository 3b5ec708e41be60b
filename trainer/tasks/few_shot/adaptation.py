"""Adaptation to one rare type: an episode of many rounds, in one process, resumable by itself.

The loop of `fit` moves learners that all processes share. Here each process adapts copies of its own to types of its
own and exchanges nothing, and what is kept is a set of weights for each type: so the loop is this file's.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from trainer.learners.choices import Precision
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.loop.clock import StepClock
from trainer.loop.log import RunLog
from trainer.loop.loss_watch import LossWatch
from trainer.tasks.few_shot.algorithms.diff_augment import DiffAugment
from trainer.tasks.few_shot.algorithms.fast_gan import FastGan
from trainer.tasks.few_shot.algorithms.few_shot_meta import FewShotMeta
from trainer.tasks.few_shot.algorithms.figr import Figr
from trainer.tasks.few_shot.algorithms.mine_gan import MineGan
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig
from trainer.tasks.few_shot.episode import Episode, Shown
from trainer.tasks.few_shot.episodes import FewShotData
from trainer.tasks.few_shot.load import adapted_folder, evaluating
from trainer.tasks.few_shot.sheets import FewShotSheets

EPISODES: dict[str, type[Episode]] = {
    "few_shot_meta": FewShotMeta,
    "figr": Figr,
    "fast_gan": FastGan,
    "diff_augment": DiffAugment,
    "mine_gan": MineGan,
}


def begin_episode(
    model: FewShotModelConfig, networks: Mapping[str, nn.Module], precision: Precision, average_decay: float = 0.0
) -> Episode:
    """An episode of the model's algorithm on copies of these networks."""
    return EPISODES[model.algorithm](
        networks, model.inner, model.weights, precision=precision, average_decay=average_decay
    )


def saved_adaptation(run: Path, cell_type: str, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
    """How far the adaptation to a type has come; None before its first checkpoint.

    Raises UserError for a damaged checkpoint, or one that was made with another fingerprint.
    """
    checkpoint: Checkpoint | None = CheckpointStore(adapted_folder(run, cell_type) / "checkpoints").latest()
    if checkpoint is None:
        return None
    state = checkpoint.load()
    was = state["fingerprint"]
    changed = sorted(key for key in was.keys() | fingerprint.keys() if was.get(key) != fingerprint.get(key))
    if changed:
        raise UserError(
            f"{checkpoint.path}: adapted with other settings ({changed[0]} was {was.get(changed[0])}, is now "
            f"{fingerprint.get(changed[0])}): give the old settings, or delete {adapted_folder(run, cell_type)} to "
            "adapt anew"
        )
    return state


class Adaptation:
    """The training images of one rare type, and networks that learn from them."""

    def __init__(
        self, cell_type: str, config: FewShotRunConfig, dataset: Dataset, data: FewShotData, device: torch.device
    ) -> None:
        self.cell_type = cell_type
        self._config, self._device = config, device
        self._dataset, self._ids = dataset, data.rare_ids
        plain = self._stream(training=False, batch=config.shots)
        self.images = torch.cat([part.images.clone() for part in plain.read()])
        self._batch = min(config.shots, len(self.images))
        self.rounds = config.adaptation.rounds(config.model.inner.moves, self._batch)

    def preview(self, networks: Mapping[str, nn.Module], precision: Precision) -> Episode:
        """An episode as in meta-training, on the first of the type's images; these networks stay as they are."""
        model = self._config.model
        episode = begin_episode(model, networks, precision)
        key = derive_key(self._config.seed, "preview", self.cell_type)
        shown = itertools.repeat((self.images[: self._batch], np.arange(self._batch)))
        for number in range(model.inner.rounds):
            episode.play_round(shown, key, number, model.inner.rounds)
        return episode

    def play(
        self,
        networks: Mapping[str, nn.Module],
        precision: Precision,
        run: Path,
        fingerprint: Mapping[str, Any],
        sheets: FewShotSheets,
    ) -> None:
        """Adapt to the end, or go on where the type's newest checkpoint stands. UserError for a loss not finite."""
        config = self._config
        saved = saved_adaptation(run, self.cell_type, fingerprint)
        if saved is not None and saved["finished"]:
            return
        episode = begin_episode(config.model, networks, precision, config.adaptation.average_decay)
        first = 0
        if saved is not None:
            first = saved["round"]
            episode.load_state_dict(saved["episode"])
        folder = adapted_folder(run, self.cell_type)
        store = CheckpointStore(folder / "checkpoints", config.train.keep_checkpoints)
        log = RunLog(
            folder, step=first, total_steps=self.rounds, enabled=True, description=f"adapting to {self.cell_type}"
        )
        with closing(log):
            for done in self._rounds(episode, first, log, precision):
                finished = done == self.rounds
                if not self._saves(done):
                    continue
                sheets.draw(self.cell_type, self.images, episode.averages, f"round-{done:09d}")
                state = {
                    "round": done,
                    "finished": finished,
                    "episode": episode.state_dict(),
                    "features": self._features(episode) if finished else None,
                    "fingerprint": dict(fingerprint),
                }
                store.save(done, state)

    def _saves(self, done: int) -> bool:
        """Whether there is a checkpoint after so many rounds."""
        return done == self.rounds or done % self._config.train.checkpoint_every == 0

    def _rounds(self, episode: Episode, first: int, log: RunLog, precision: Precision) -> Iterator[int]:
        """Play and log the rounds from `first` on; yields how many are done."""
        config = self._config
        moves = config.model.inner.moves
        key = derive_key(config.seed, "adaptation", self.cell_type)
        clock = StepClock()
        watch = LossWatch(self._device, gradients_may_overflow=precision == "fp16")
        stream = self._stream(training=True, batch=self._batch)
        shown = _shown(clock.waiting(stream.read(first * moves)))
        for number in range(first, self.rounds):
            terms = episode.play_round(shown, key, number, self.rounds)
            clock.images += moves * self._batch
            loss = torch.stack(list(terms.values())).sum()
            bad = watch.see(number + 1, loss, loss)
            if bad is None and self._saves(number + 1):
                bad = watch.finish()
            if bad is not None:
                raise UserError(
                    f"adapting to {self.cell_type}, the loss is not finite since round {bad}: in another run=DIR, "
                    "lower model.inner.learning_rate or set train.precision=fp32"
                )
            if (number + 1) % config.train.log_every == 0:
                values = {name: term.item() for name, term in terms.items()}
                log.record("step", number + 1, images=(number + 1) * moves * self._batch, **values, **clock.lap())
            log.advance()
            yield number + 1

    def _stream(self, *, training: bool, batch: int) -> Stream:
        """This type's images alone, all of each batch in this process."""
        return Stream(
            self._dataset,
            dataclasses.replace(self._config.data, cell_types=None, sampling="uniform"),
            splits=["train"],
            cell_types=[self.cell_type],
            ids=self._ids,
            global_batch=batch,
            seed=self._config.seed,
            training=training,
            topology=Topology(device=self._device),
        )

    @torch.no_grad()
    def _features(self, episode: Episode) -> torch.Tensor | None:
        """What an encoder makes of each of the type's images, float32 [k, feature_size], on the CPU."""
        if "encoder" not in episode.averages:
            return None
        with evaluating(episode.averages) as networks:
            features: torch.Tensor = networks["encoder"](self.images).cpu()
        return features


def _shown(parts: Iterable[MicroBatch]) -> Iterator[Shown]:
    return ((part.images, part.positions) for part in parts)
