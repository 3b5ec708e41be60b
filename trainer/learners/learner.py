"""A learner: one network that learns, with everything that is its own (contract C8)."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from torch import distributed, nn

from data_pipeline.errors import UserError
from trainer.learners.average import RunningAverage
from trainer.learners.choices import EngineName, NetworkChoices, Precision
from trainer.learners.engine import make_engine
from trainer.learners.network_choices import checkpoint_activations, require_compiler, resting_statistics
from trainer.learners.optimizer_config import OptimizerConfig


class Learner:
    """A network, its optimiser, schedule, loss scale, data-parallel engine and running average.

    module: the bare network, which computes in the learner's precision inside `autocast()` only. engine: the same
    network, data-parallel; losses go through it.
    average: the network to score with (the running average, or the bare network where none is kept).
    choices: how the network computes.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        config: OptimizerConfig,
        *,
        precision: Precision,
        engine: EngineName = "ddp",
        total_steps: int,
        synchronize_batch_norm: bool = False,
        choices: NetworkChoices = NetworkChoices(),
    ) -> None:
        self.name = name
        self.config = config
        self.steps = 0
        self.device = PartialState().device
        self._total_steps = total_steps
        if synchronize_batch_norm:
            if self.device.type != "cuda":
                raise UserError("train.synchronize_batch_norm=true works on GPUs only: leave it out on the CPU")
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
        if choices.checkpoint_activations:
            checkpoint_activations(module)
        if choices.compile:
            require_compiler(self.device)
        self.module = on_device(module, self.device)
        if choices.channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)
        self._computes_again = choices.checkpoint_activations
        optimizer = _make_optimizer(self.module, config, self.device)
        self._engine = make_engine(engine, self.module, optimizer, precision, config.clip_norm)
        # Beside the bare network, which scores and is saved as ever.
        self._compiled: Any = torch.compile(self._engine.network) if choices.compile else None
        self._average = None
        if config.average_decay > 0:
            self._average = RunningAverage(self.module, config.average_decay)

    @property
    def engine(self) -> nn.Module:
        """The network, data-parallel: losses go through it."""
        network: nn.Module = self._engine.network if self._compiled is None else self._compiled
        return network

    @property
    def average(self) -> nn.Module:
        return self.module if self._average is None else self._average.module

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return self.config.learning_rate * schedule_factor(self.config, self.steps, self._total_steps)

    @property
    def loss_scale(self) -> float | None:
        """What fp16 losses are multiplied by; None in other precisions. Waits for the device."""
        return self._engine.loss_scale

    def autocast(self) -> Any:
        """The context in which the learner's forward passes run in its precision."""
        return self._engine.autocast()

    @contextmanager
    def frozen(self) -> Iterator[nn.Module]:
        """The bare network while another learner moves: gradients pass through it and stay out of its weights."""
        moving = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        for parameter in moving:
            parameter.requires_grad_(False)
        try:
            yield self.module
        finally:
            for parameter in moving:
                parameter.requires_grad_(True)

    def part_of_step(self, last: bool) -> Any:
        """The context for one part's forward and backward pass; only the `last` joins the processes."""
        return self._engine.part_of_step(last)

    def backward(self, loss: torch.Tensor) -> None:
        """Add a loss's gradient to the step's; averaged over the processes."""
        with resting_statistics(self.module) if self._computes_again else nullcontext():
            self._engine.backward(loss)

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Make these, by parameter's name, the step's gradient, which no loss gave; averaged over the processes."""
        self._engine.set_gradient(gradients)

    def step(self) -> torch.Tensor:
        """Move the weights once along the accumulated gradient, which is then cleared.

        Returns the gradient's L2 norm before clipping (scalar on the device). A gradient that
        overflowed the loss scale moves nothing and lowers this learner's scale alone.
        """
        norm = self._engine.step(self.learning_rate)
        self.steps += 1
        if self._average is not None:
            self._average.update(self.module, self.steps)
        return norm

    def share_buffers(self) -> None:
        """Give every process the first one's buffers, so that all score with the same network."""
        if distributed.is_initialized():
            for buffer in self.average.buffers():
                distributed.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; to be called on all processes together."""
        return {
            "module": self.module.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            **self._engine.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state. Raises RuntimeError or KeyError when it is another network's."""
        self.module.load_state_dict(state["module"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"] or state["module"])
        self._engine.load_state_dict(state)
        self.steps = state["steps"]


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its weights on the device; weights of a FakeTensorMode can only stay where they are."""
    there = all(weights.device == device for weights in (*module.parameters(), *module.buffers()))
    return module if there else module.to(device)


def schedule_factor(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The share of the peak learning rate at a step; a function of the step alone, so it needs no state."""
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.schedule == "linear":
        return max(0.0, min(1.0, 2 * (1 - progress)))
    return 1.0


def _make_optimizer(module: nn.Module, config: OptimizerConfig, device: torch.device) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = device.type == "cuda"
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused
        )
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    betas = tuple(config.betas or (0.9, 0.999))
    return kind(groups, lr=config.learning_rate, betas=(betas[0], betas[1]), fused=fused)
