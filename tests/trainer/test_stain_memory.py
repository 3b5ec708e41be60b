"""If this fails, the default stain run no longer fits the smallest GPU that it is promised for (8 GB)."""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.stream import MicroBatch, Topology
from launchers.console import read_config
from trainer.games.w_cyclegan_gp import WCycleGanGp
from trainer.player import Player
from trainer.stain_config import StainRunConfig
from trainer.stain_run import build_critics, build_generators

GIB = 2**30


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that live, and the most that ever did; a new one is seen where it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.living = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        self.peak = max(self.peak, self.living)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.living += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.living -= size


def predicted_peak(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> float:
    """GiB of the second step in fp32: weights, averages, moments, gradients, activations, the penalty's graph."""
    config = read_config(StainRunConfig, "train_stain_gan", overrides)
    model, size, batch = config.model, config.data.image_size, config.train.global_batch
    # Fake tensors have no device to go to.
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)

    def part(number: int) -> MicroBatch:
        positions = np.arange(batch) + number * batch
        return MicroBatch(
            torch.zeros(batch, 3, size, size), torch.zeros(batch, dtype=torch.int64), positions, positions, number, 1
        )

    with PeakMemory() as memory, FakeTensorMode(allow_non_fake_inputs=True):
        networks = {
            "generators": (build_generators(model, size), model.generator_optimizer),
            "critics": (build_critics(model, size), model.critic_optimizer),
        }
        players = {
            name: Player(name, network, optimizer, precision="fp32", total_steps=10)
            for name, (network, optimizer) in networks.items()
        }
        game = WCycleGanGp(
            players["generators"],
            players["critics"],
            model.weights,
            critic_steps=model.critic_steps,
            global_batch=batch,
            seed=0,
            topology=Topology(),
        )
        for _ in range(2):
            batches: Mapping[str, Any] = {
                domain: iter([[part(number)] for number in range(model.critic_steps)]) for domain in ("a", "b")
            }
            game.step(batches, detailed=True)
    return memory.peak / GIB


def test_what_is_counted_is_what_lives() -> None:
    with PeakMemory() as memory:
        kept = torch.zeros(1000)
        view = kept[:10]  # no memory of its own
        passing = torch.ones(3000)
        del passing
        learned = torch.ones(500, requires_grad=True)
        total = learned.exp().sum()  # its gradient's graph keeps the exponentials
    assert memory.peak == 4 * 4000
    assert memory.living == 4 * (1000 + 500 + 500 + 1)
    del total
    assert memory.living == 4 * (1000 + 500)
    assert len(view) == 10


@pytest.mark.parametrize("overrides", [[], ["data.image_size=256"]])
def test_the_default_run_fits_a_gpu_of_eight_gigabytes(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA, cuDNN and DALI take beside it has the other two gigabytes."""
    peak = predicted_peak(overrides, monkeypatch)
    print(f"predicted peak {overrides}: {peak:.2f} GiB")
    assert 0.1 < peak <= 6
