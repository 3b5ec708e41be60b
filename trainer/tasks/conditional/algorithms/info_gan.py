"""InfoGAN: a code of as many values as there are types, found without labels (Chen et al. 2016)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key, uniform
from data_pipeline.stream.stream import MicroBatch
from trainer.learners import losses
from trainer.learners.learner import Setting, Terms
from trainer.loop.algorithm import Batches, StepResult
from trainer.runs.registry import registered
from trainer.tasks.conditional.algorithm import Generated, Judged
from trainer.tasks.conditional.algorithms.cgan import ConditionalGan
from trainer.tasks.conditional.config import ConditionalRunConfig

# What a code stands for may change while the networks learn: about the last hundred steps tell.
_MEMORY = 0.99


@registered
class InfoGan(ConditionalGan):
    """Generator and discriminator also maximise a bound on the information of code and image: eq. 6, lambda 1.

    Q is the discriminator's class outputs. The training uses no labels. Labels of real images only show which code
    stands for which type: Q's answers on them are counted in a table, which is the algorithm's state.
    """

    critic_sees_types = False
    critic_names_types = True

    def __init__(self, config: ConditionalRunConfig, types: int, setting: Setting) -> None:
        super().__init__(config, types, setting)
        # float64 [types, codes]: how often Q gave a code to real images of a type, lately.
        self._answers = torch.zeros(self._types, self._types, dtype=torch.float64, device=self.setting.topology.device)
        self._new_answers = torch.zeros_like(self._answers)

    @classmethod
    def conditions_of(cls, state: Mapping[str, Any], types: int) -> list[int]:
        return codes_of_types(state["answers"].tolist())

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        self._new_answers.zero_()
        result = super().step(batches, detailed=detailed)
        if distributed.is_initialized():
            distributed.all_reduce(self._new_answers)
        self._answers = _MEMORY * self._answers + self._new_answers
        return result

    def _conditions_for(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        """A code for each image, every one equally likely."""
        draws = uniform(derive_key(self.setting.seed, "code", purpose), part.positions, 1)[:, 0]
        return to_device((draws * self._types).astype(np.int64), part.images.device)

    def _critic_terms(self, judged: Judged) -> Terms:
        codes = judged.on_real.detach()[:, 1:].argmax(dim=1)
        pairs = judged.real.labels * self._types + codes
        # Counting by torch.bincount would wait for the device.
        self._new_answers.view(-1).index_add_(0, pairs, torch.ones_like(pairs, dtype=torch.float64))
        found = losses.classification(judged.on_generated[:, 1:], judged.conditions)
        return super()._critic_terms(judged) | {"critic_code": (1.0, found)}

    def _generator_terms(self, made: Generated) -> Terms:
        found = losses.classification(made.answers[:, 1:], made.conditions)
        return super()._generator_terms(made) | {"code": (1.0, found)}

    def state_dict(self) -> dict[str, Any]:
        """The table of answers."""
        return {"answers": self._answers.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._answers = state["answers"].to(self.setting.topology.device)


def codes_of_types(answers: Sequence[Sequence[float]]) -> list[int]:
    """The code that stands for each type: every code for one, and as many answers right as can be.

    answers: [types, codes], how often each type's images were given each code.
    """
    from scipy.optimize import linear_sum_assignment  # here: no other algorithm needs it

    _, codes = linear_sum_assignment(np.asarray(answers), maximize=True)
    return [int(code) for code in codes]
