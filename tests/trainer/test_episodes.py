"""If these fail, an episode mixes cell types, or some types are learned from more often than others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.tasks.few_shot.data import EpisodeOrder


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    shots=st.integers(1, 8),
    episodes=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_an_episode_is_one_type_and_types_come_round_evenly(
    counts: list[int], shots: int, episodes: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = EpisodeOrder(labels, seed, shots, episodes * shots)
    assert order.epoch_size % (episodes * shots) == 0
    rows = np.concatenate([order.rows(epoch, np.arange(order.epoch_size)) for epoch in range(3)]).reshape(-1, shots)
    types = labels[rows]
    assert (types == types[:, :1]).all()
    for episode, cell_type in zip(rows, types[:, 0], strict=True):
        assert len(set(episode)) == min(shots, counts[cell_type])
    whole = len(rows) // len(counts) * len(counts)
    for turn in types[:whole, 0].reshape(-1, len(counts)):
        assert sorted(turn) == list(range(len(counts)))
    late = order.rows(2, np.arange(order.epoch_size)[-shots:])
    assert (late == rows[-1]).all()
