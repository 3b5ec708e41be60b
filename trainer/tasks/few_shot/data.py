"""Images of few-shot learning: which cell types are learned from, and which type and images one episode shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key, permute, uniform
from trainer.tasks.few_shot.config import FewShotRunConfig

# A type with fewer training images is rare (thesis, section 3.6).
FEWEST_OF_RICH = 100


class EpisodeOrder:
    """Runs of `shots` positions, each one episode: images of one cell type, drawn anew for each episode.

    Each run of as many episodes as there are types holds one of each. An episode shows no image twice, unless
    its type has fewer than `shots`. All of it follows from (seed, number of the episode), as the epochs go on.
    """

    def __init__(self, labels: npt.ArrayLike, seed: int, shots: int, global_batch: int) -> None:
        """`labels`: the type of each row. An epoch is as many whole global batches as the rows fill, at least one."""
        labels = np.asarray(labels)
        self._rows_by_type = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._seed = seed
        self._shots = shots
        self.epoch_size = max(1, len(labels) // global_batch) * global_batch

    def rows(self, epoch: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows that stand at these positions of an epoch: int64, same shape."""
        episodes, places = np.divmod(epoch * self.epoch_size + positions, self._shots)
        turns, within = np.divmod(episodes, len(self._rows_by_type))
        shuffled = uniform(derive_key(self._seed, "episode types"), turns, len(self._rows_by_type)).argsort(axis=1)
        types = shuffled[np.arange(len(turns)), within]
        result = np.empty_like(episodes)
        for episode in np.unique(episodes):
            inside = episodes == episode
            members = self._rows_by_type[types[inside][0]]
            key = derive_key(self._seed, "episode images", int(episode))
            result[inside] = members[permute(key, places[inside] % len(members), len(members))]
        return result


@dataclass(frozen=True)
class FewShotData:
    """The training images of a few-shot run, by what they are for.

    rich, rare: cell types, in the order of CELL_TYPES; rich ones are learned from before, rare ones adapted to.
    rich_ids, rare_ids: ids of their images. rare_domain: the stain of most images of the rare types.
    """

    rich: tuple[str, ...]
    rare: tuple[str, ...]
    rich_ids: tuple[str, ...]
    rare_ids: tuple[str, ...]
    rare_domain: str


def data_of_run(config: FewShotRunConfig, dataset: Dataset, *, learns_from_rich: bool) -> FewShotData:
    """The images that a run learns from, see `choose_data`; without rich types where the algorithm takes none."""
    return choose_data(
        dataset,
        domains=config.data.domains,
        cell_types=config.data.cell_types,
        rich=config.rich_types if learns_from_rich else [],
        rare=config.rare_types,
        origins=config.origins,
    )


def choose_data(
    dataset: Dataset,
    *,
    domains: Sequence[str] | None,
    cell_types: Sequence[str] | None,
    rich: Sequence[str] | None,
    rare: Sequence[str] | None,
    origins: Sequence[str],
) -> FewShotData:
    """Which training images a run learns from; None takes types by their number of images.

    Rare types are those with 1 to 99 training images, rich ones all others, in `cell_types` and `domains`.
    origins: of rich types' images; rare ones are adapted to on images that are not synthetic.
    Raises UserError where no rare type is left, a named type has no image, or one is named as both.
    """
    samples = dataset.samples(
        splits=["train"], domains=domains, cell_types=cell_types, columns=["id", "domain", "cell_type", "origin"]
    )
    taken = samples[samples["origin"] != "synthetic"]
    counts = {name: int((taken["cell_type"] == name).sum()) for name in CELL_TYPES}
    if rare is None:
        rare = [name for name in CELL_TYPES if 0 < counts[name] < FEWEST_OF_RICH and name not in (rich or ())]
        if not rare:
            raise UserError(
                f"{dataset.root}: no cell type has fewer than {FEWEST_OF_RICH} training images: name those to adapt "
                "to, rare_types=[...]"
            )
    shown = samples[samples["origin"].isin(list(origins))]
    if rich is None:
        rich = [name for name in CELL_TYPES if name not in rare and (shown["cell_type"] == name).any()]
    _check_named(dataset, "rare_types", rare, taken)
    _check_named(dataset, "rich_types", rich, shown)
    both = [name for name in rare if name in rich]
    if both:
        raise UserError(f"{both[0]} is among rich_types and rare_types: a type to adapt to must be new; leave it out")
    rare_samples = taken[taken["cell_type"].isin(list(rare))]
    return FewShotData(
        tuple(name for name in CELL_TYPES if name in rich),
        tuple(name for name in CELL_TYPES if name in rare),
        tuple(shown["id"][shown["cell_type"].isin(list(rich))]),
        tuple(rare_samples["id"]),
        str(rare_samples["domain"].value_counts().index[0]),
    )


def _check_named(dataset: Dataset, field: str, names: Sequence[str], samples: pd.DataFrame) -> None:
    for name in names:
        if name not in CELL_TYPES:
            raise UserError(f"{field}: no cell type {name!r}; use some of {', '.join(CELL_TYPES)}")
        if not (samples["cell_type"] == name).any():
            raise UserError(f"{dataset.root}: {field} names {name}, which has no training image there: leave it out")
