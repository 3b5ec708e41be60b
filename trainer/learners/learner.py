"""A learner: one network with its optimizer, schedule, engine and running average."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from torch import distributed, nn

from data_pipeline.stream.stream import Topology
from trainer.learners.average import RunningAverage
from trainer.learners.choices import EngineName, NetworkChoices, Precision
from trainer.learners.engine import make_engine
from trainer.learners.network_choices import checkpoint_activations, require_compiler, resting_statistics
from trainer.learners.optimizer import group_rates, make_optimizer
from trainer.learners.optimizer_config import OptimizerConfig

Part = TypeVar("Part")
Part_co = TypeVar("Part_co", covariant=True)
# What a learner minimises over the images of a micro-batch: name -> (weight, tensor of any shape, summed). A term of
# weight 0 is logged only.
Terms = dict[str, tuple[float, torch.Tensor]]


class Parts(Protocol[Part_co]):
    """The micro-batches of a global batch."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Part_co]: ...


@dataclass(frozen=True)
class Setting:
    """Settings that all learners of a run share.

    total_steps: steps of the run, for schedules. global_batch: images of one batch over all ranks. engine: `alone`
    for rehearsals.
    """

    precision: Precision
    total_steps: int
    global_batch: int
    seed: int = 0
    engine: EngineName = "ddp"
    topology: Topology = field(default_factory=Topology)

    @property
    def rehearsal(self) -> bool:
        """Whether steps are run on fake tensors, for their memory alone."""
        return self.engine == "alone"

    @property
    def image_weight(self) -> float:
        """Weight of one image's loss.

        Engines average gradients over ranks, whose slices may differ in size; with this weight the average is the
        mean over the global batch.
        """
        return self.topology.world_size / self.global_batch


class Learner:
    """A network, its optimizer, schedule, loss scale, data-parallel engine and running average.

    module: the bare network; it computes in the learner's precision inside `autocast()` only. engine: the same
    network, data-parallel; losses go through it. average: the network to score with: the running average, or the bare
    network without one.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: OptimizerConfig,
        setting: Setting,
        *,
        moves: int = 1,
        frozen_steps: int = 0,
        choices: NetworkChoices = NetworkChoices(channels_last=False),
    ) -> None:
        """moves: optimizer steps for each step of the run. choices: how the network computes.

        frozen_steps: steps at the start in which only the last layer's weights change; running statistics change too.
        UserError where layers shall learn at different rates and the network has no order of layers.
        """
        self.name, self.config, self.setting = name, config, setting
        self.steps = 0
        self.device = PartialState().device
        self._total_steps, self._frozen_steps = setting.total_steps * moves, frozen_steps
        if choices.checkpoint_activations:
            checkpoint_activations(module)
        if choices.compile:
            require_compiler(self.device)
        self.module = on_device(module, self.device)
        channels_last = choices.channels_last
        if channels_last is None:
            channels_last = self.device.type == "cpu" and setting.engine == "ddp"
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)
        self._recomputes = choices.checkpoint_activations
        by_layer = config.layer_decay < 1 or frozen_steps > 0
        optimizer = make_optimizer(self.module, config, self.device, by_layer=by_layer, rehearsal=setting.rehearsal)
        self._depths = [group["depth"] for group in optimizer.param_groups]
        self._engine = make_engine(setting.engine, self.module, optimizer, setting.precision, config.clip_norm)
        # Training only; evaluation and checkpoints use the uncompiled module.
        self._compiled: Any = torch.compile(self._engine.network) if choices.compile else None
        self._average = None
        if config.average_decay > 0:
            self._average = RunningAverage(self.module, config.average_decay)

    @property
    def engine(self) -> nn.Module:
        """The data-parallel network, for losses."""
        network: nn.Module = self._engine.network if self._compiled is None else self._compiled
        return network

    @property
    def average(self) -> nn.Module:
        return self.module if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """Learning rate of the last layer in the next step."""
        return self._rates([0])[0]

    def _rates(self, depths: Sequence[int]) -> list[float]:
        return group_rates(self.config, depths, self.steps, self._total_steps, self._frozen_steps)

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of fp16; None in other precisions. Synchronizes with the device."""
        return self._engine.loss_scale

    def autocast(self) -> Any:
        """Context for forward passes in the learner's precision."""
        return self._engine.autocast()

    def move(
        self, parts: Parts[Part], terms_of: Callable[[Part], Terms]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """One optimizer step on a global batch, micro-batch after micro-batch.

        Returns each term's sum over this rank's images, unweighted, and the gradient's L2 norm before clipping.
        """
        sums: dict[str, torch.Tensor] = {}
        for number, part in enumerate(parts, start=1):
            with self.part_of_step(last=number == len(parts)):
                terms = terms_of(part)
                weighted = [weight * values.sum() for weight, values in terms.values() if weight]
                self.backward(sum(weighted[1:], weighted[0]) * self.setting.image_weight)
            add(sums, {name: values.detach().sum() for name, (_, values) in terms.items()})
        return sums, self.step()

    def part_of_step(self, last: bool) -> Any:
        """Context for the passes of one micro-batch; gradients are reduced over ranks in the `last` one only."""
        return self._engine.part_of_step(last)

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate a loss's gradient; averaged over ranks."""
        with resting_statistics(self.module) if self._recomputes else nullcontext():
            self._engine.backward(loss)

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Set the gradient, by parameter name; averaged over ranks. For gradients that no loss gives."""
        self._engine.set_gradient(gradients)

    def step(self) -> torch.Tensor:
        """One optimizer step on the accumulated gradient, which is then cleared.

        Returns the gradient's L2 norm before clipping (scalar on the device). A gradient that overflowed the loss scale
        is skipped and lowers this learner's scale alone.
        """
        norm = self._engine.step(self._rates(self._depths))
        self.steps += 1
        if self._average is not None:
            self._average.update(self.module, self.steps)
        return norm

    def share_buffers(self) -> None:
        """Broadcast rank 0's buffers, so that all ranks score with the same network."""
        if distributed.is_initialized():
            for buffer in self.average.buffers():
                distributed.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """The complete state; a collective call, on all ranks."""
        return {
            "module": self.module.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            **self._engine.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state. RuntimeError or KeyError for another network's."""
        self.module.load_state_dict(state["module"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"] or state["module"])
        self._engine.load_state_dict(state)
        self.steps = state["steps"]


@contextmanager
def frozen(learners: Iterable[Learner]) -> Iterator[None]:
    """Context for another learner's step: gradients flow through these networks, but not to their weights."""
    with ExitStack() as stack:
        for learner in learners:
            stack.enter_context(frozen_weights(learner.module))
        yield


@contextmanager
def frozen_weights(network: nn.Module) -> Iterator[None]:
    """Context in which the network's weights do not require gradients."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def add(sums: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor], share: float = 1.0) -> None:
    """Add `share` of the values to the sums of their names."""
    for name, value in values.items():
        part = value if share == 1 else share * value
        sums[name] = sums[name] + part if name in sums else part


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device. No-op for fake tensors, which cannot be moved."""
    there = all(weights.device == device for weights in (*module.parameters(), *module.buffers()))
    return module if there else module.to(device)
