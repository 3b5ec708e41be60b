"""CycleGAN: least-squares discriminators that see images from a pool (Zhu et al. 2017), the thesis's rival."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.learners import losses
from trainer.learners.learner import Setting, Terms
from trainer.loop.algorithm import Batches
from trainer.runs.registry import registered
from trainer.tasks.stain.algorithm import CycleGanBase, CycleOptions, Pair
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.image_pool import ImagePool


@dataclass(frozen=True)
class PoolOptions(CycleOptions):
    """CycleOptions, and the size of the image pool."""

    pool_size: int = 50  # generated images kept of each domain


@registered
class CycleGan(CycleGanBase):
    """Least-squares GAN: discriminators target 1 for real and 0 for generated patches, generators 1 for their own."""

    Options = PoolOptions

    def __init__(self, config: StainRunConfig, generators: nn.Module, setting: Setting) -> None:
        super().__init__(config, generators, setting)
        self.held_images = 2 * self.options.pool_size
        # None in a rehearsal: its operations depend on the images.
        size = 0 if setting.rehearsal else self.options.pool_size
        self._pools = {name: ImagePool(size, setting.seed, name) for name in ("a", "b")}

    def _adversarial(self, patch_map: torch.Tensor) -> torch.Tensor:
        return losses.least_squares(patch_map, 1.0)

    def _parts(self, batches: Batches) -> list[Pair]:
        """The pools take the generated images of the whole global batch at once, before any critic sees one."""
        pairs = super()._parts(batches)
        made = [self._fakes(pair) for pair in pairs]
        positions = [pair.a.positions for pair in pairs]
        shown = {name: pool.exchange([one[name] for one in made], positions) for name, pool in self._pools.items()}
        return [pair._replace(shown={name: shown[name][at] for name in shown}) for at, pair in enumerate(pairs)]

    def _critic_terms(self, pair: Pair) -> Terms:
        assert pair.shown is not None
        terms = []
        for patch_map in self._judge(pair, pair.shown):
            on_real, on_fake = patch_map.chunk(2)
            terms.append((losses.least_squares(on_real, 1.0) + losses.least_squares(on_fake, 0.0)) / 2)
        return {"critic": (1.0, torch.cat(terms))}

    def state_dict(self) -> dict[str, Any]:
        """State of both image pools, by name."""
        return {name: pool.state_dict() for name, pool in self._pools.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, pool in self._pools.items():
            pool.load_state_dict(state[name])
