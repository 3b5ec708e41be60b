"""Adaptation to one rare type: an episode of many rounds, as an algorithm on one rank.

After the training on rich types ranks share nothing: each adapts copies of its own, for types and seeds of its own.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.choices import Precision
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Batches, StepResult
from trainer.loop.fit import Plan, fit
from trainer.loop.progress import resume, saved_state
from trainer.metrics.feature_space import RandomFeatures
from trainer.metrics.generation import extract_features, kernel_distance
from trainer.runs.validation_distance import ValidationDistance
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.data import FewShotData
from trainer.tasks.few_shot.episode import Episode, Shown, episode_class
from trainer.tasks.few_shot.load import adapted_folder, evaluating, latents, make_images
from trainer.tasks.few_shot.sheets import FewShotSheets

_BATCH = 64


class EpisodeOfRounds:
    """An episode as an algorithm: a step is one of its rounds."""

    held_images = 0

    def __init__(
        self, episode: Episode, images: torch.Tensor, ids: Sequence[str], moves: int, rounds: int, key: int
    ) -> None:
        """images: the type's training images, float32 [k, 3, S, S], of these ids. key: of all that is drawn."""
        self.episode, self.learners = episode, episode.learners
        self.takes = {"train": moves}
        self._images, self._ids, self._rounds, self._key = images, list(ids), rounds, key
        self._round = 0

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One round; sums of its terms over one batch of images."""
        taken = itertools.islice(batches["train"], self.takes["train"])
        shown: Iterator[Shown] = ((part.images, part.positions) for batch in taken for part in batch)
        counted = _Counted(shown)
        terms = self.episode.run_round(counted, self._key, self._round, self._rounds)
        self._round += 1
        return StepResult({name: term * counted.images for name, term in terms.items()}, {})

    def state_dict(self) -> dict[str, Any]:
        """Rounds done, and what samplers need of the training images: ids, and features if there is an encoder."""
        return {"round": self._round, "rounds": self._rounds, "features": self.features(), "ids": self._ids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._round = state["round"]

    @torch.no_grad()
    def features(self) -> torch.Tensor | None:
        """Feature vectors of the training images, float32 [k, feature_size], on the CPU; None without an encoder."""
        if "encoder" not in self.episode.averages:
            return None
        with evaluating(self.episode.averages) as networks:
            features: torch.Tensor = networks["encoder"](self._images).cpu()
        return features


class _Counted(Iterator[Shown]):
    """Batches of images; images: in the last one taken."""

    def __init__(self, shown: Iterator[Shown]) -> None:
        self._shown, self.images = shown, 0

    def __next__(self) -> Shown:
        batch = next(self._shown)
        self.images = len(batch[0])
        return batch


class Adaptation:
    """The training images of one rare type, and networks that learn from them."""

    def __init__(
        self,
        cell_type: str,
        number: int,
        config: FewShotRunConfig,
        dataset: Dataset,
        data: FewShotData,
        device: torch.device,
    ) -> None:
        """number: which of the adaptations to the type, from 0; each draws by a seed of its own."""
        self.cell_type, self._number = cell_type, number
        self._seed = derive_key(config.seed, "adaptation seed", number) if number else config.seed
        self._config, self._topology = config, Topology(device=device)
        self._dataset, self._ids = dataset, data.rare_ids
        self._episode_class = episode_class(config.model)
        plain = self._stream(training=False, batch=config.shots)
        self.images = torch.cat([part.images.clone() for part in plain.read()])
        self._image_ids = plain.samples["id"].tolist()
        self._batch = min(config.shots, len(self.images))
        self.rounds = config.adaptation.rounds(config.model.inner.moves, self._batch)

    @property
    def _folder(self) -> Path:
        return adapted_folder(Path(str(self._config.run)), self.cell_type, self._number)

    def preview(self, networks: Mapping[str, nn.Module], precision: Precision) -> Episode:
        """An episode as in meta-training, on the first of the type's images; these networks stay as they are."""
        model = self._config.model
        episode = self._episode_class(networks, model, precision)
        key = derive_key(self._config.seed, "preview", self.cell_type)
        shown = itertools.repeat((self.images[: self._batch], np.arange(self._batch)))
        for number in range(model.inner.rounds):
            episode.run_round(shown, key, number, model.inner.rounds)
        return episode

    def distance(self, episode: Episode) -> list[float]:
        """Kernel distance of as many images of an episode's from the type's training images; none of a single image.

        The episode has seen the first of these alone; its networks have learned from no other image of the type.
        """
        if len(self.images) < 2:
            return []
        made = self._make(episode, derive_key(self._seed, "distance", self.cell_type), len(self.images))
        space = RandomFeatures().to(self.images.device)
        real, drawn = (extract_features(space, images.split(_BATCH)).features for images in (self.images, made))
        return [kernel_distance(real, drawn)[0]]

    @torch.no_grad()
    def _make(self, episode: Episode, key: int, count: int) -> torch.Tensor:
        """Images float32 [count, 3, S, S] by what the episode's networks have come to."""
        indices, model = np.arange(count), self._config.model
        with evaluating(episode.averages) as networks:
            features = networks["encoder"](self.images).cpu() if "encoder" in networks else None
            numbers = latents(model, features, key, indices).to(self.images.device)
            return make_images(model, networks, numbers, indices)

    def saved(self, fingerprint: Mapping[str, Any]) -> dict[str, Any] | None:
        """The newest checkpoint's state; None before the first. UserError for one of other settings."""
        folder = self._folder
        return saved_state(folder, fingerprint, f"delete {folder} to adapt anew")

    def run(
        self,
        networks: Mapping[str, nn.Module],
        precision: Precision,
        fingerprint: Mapping[str, Any],
        sheets: FewShotSheets,
    ) -> None:
        """Adapt to the end, from the type's newest checkpoint. UserError for a non-finite loss."""
        config, model = self._config, self._config.model
        episode = self._episode_class(networks, model, precision, config.adaptation.average_decay)
        key = derive_key(self._seed, "adaptation", self.cell_type)
        prefix = f"seed{self._number}-" if self._number else ""
        algorithm = EpisodeOfRounds(episode, self.images, self._image_ids, model.inner.moves, self.rounds, key)
        distance = ValidationDistance(self._dataset, config.data, [self.cell_type], config.features, self._topology)

        def draw_sheet(round: int) -> dict[str, float]:
            sheets.draw(self.cell_type, self.images, episode.averages, f"{prefix}round-{round:09d}")
            return distance.scores(make)

        def make(cell_type: str, count: int) -> torch.Tensor:
            return self._make(episode, key, count)

        plan = Plan(
            run=self._folder,
            config=config.train,
            setting=Setting(precision, self.rounds, self._batch, self._seed, topology=self._topology),
            epoch_steps=min(config.train.checkpoint_every, self.rounds),
            fingerprint=fingerprint,
            score_epoch=draw_sheet,
            selection=distance.selection,
            description=f"adapting to {self.cell_type}",
        )
        progress = resume(algorithm, self.saved(fingerprint))
        if progress.step == 0:
            sheets.draw(self.cell_type, self.images, episode.averages, f"{prefix}round-{0:09d}")
        fit(algorithm, {"train": self._stream(training=True, batch=self._batch)}, plan, progress)

    def _stream(self, *, training: bool, batch: int) -> Stream:
        """This type's images alone, all of each batch on this rank."""
        return Stream(
            self._dataset,
            dataclasses.replace(self._config.data, cell_types=None, sampling="uniform"),
            splits=["train"],
            cell_types=[self.cell_type],
            ids=self._ids,
            global_batch=batch,
            seed=self._seed,
            training=training,
            topology=self._topology,
        )
