"""What makes a learner's network data-parallel: gradient averaging over ranks, precision, loss scaling."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from torch import nn

from trainer.learners.choices import EngineName, Precision
from trainer.learners.topology import autocast


class Engine(Protocol):
    """A data-parallel network and its optimiser; weights are equal on all ranks.

    network: the wrapped network, for losses; it computes in the engine's precision. The bare network computes in that
    precision inside `autocast()` only, so that gradient penalties stay in fp32.
    """

    network: nn.Module

    @property
    def loss_scale(self) -> float | None:
        """Loss scale of fp16; None in other precisions. May synchronize with the device."""

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which forward passes run in the engine's precision."""

    def part_of_step(self, last: bool) -> AbstractContextManager[None]:
        """Context for the passes of one micro-batch; gradients are reduced over ranks in the `last` one only."""

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate a loss's gradient; averaged over ranks."""

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        """Set the gradient, by parameter name; averaged over ranks."""

    def step(self, learning_rates: Sequence[float]) -> torch.Tensor:
        """One optimizer step, then clear the gradient; returns the gradient's L2 norm before clipping (scalar).

        learning_rates: of each of the optimizer's parameter groups.
        """

    def state_dict(self) -> dict[str, Any]:
        """The complete states `optimizer` and `scaler` in torch's format, which every engine can load.

        A collective call, on all ranks.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state, after the network's weights; a collective call, on all ranks."""


def make_engine(
    name: EngineName, module: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, clip_norm: float | None
) -> Engine:
    """Create an engine. module: on this process's device; so are the optimizer's parameters.

    clip_norm: largest L2 norm of the whole gradient; None clips nothing.
    """
    if name == "ddp":
        return AcceleratedEngine(module, optimizer, precision, clip_norm)
    if name == "alone":
        return LoneEngine(module, optimizer, precision, clip_norm)
    # Imported only if needed: DeepSpeed takes seconds to load.
    from trainer.learners.zero_engine import ZeroEngine

    return ZeroEngine(module, optimizer, precision, clip_norm, stage=1 if name == "zero1" else 2)


class AcceleratedEngine:
    """DistributedDataParallel through Accelerate; the bare network where there is one process."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, clip_norm: float | None
    ) -> None:
        # An Accelerator of its own: its gradient scaler then is the learner's own.
        self._accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision, cpu=PartialState().device.type == "cpu"
        )
        self._module, self._clip_norm = module, clip_norm
        self.network, self._optimizer = self._accelerator.prepare(module, optimizer)
        # Accelerate writes its autocast into the module itself: out of the bare one again. (By `unwrap_model`, which
        # does that too, every run would import DeepSpeed.)
        for written in ("forward", "_original_forward"):
            vars(module).pop(written, None)

    @property
    def loss_scale(self) -> float | None:
        scaler = self._accelerator.scaler
        return None if scaler is None else float(scaler.get_scale())

    def autocast(self) -> Any:
        return self._accelerator.autocast()

    def part_of_step(self, last: bool) -> Any:
        return nullcontext() if last else self._accelerator.no_sync(self.network)

    def backward(self, loss: torch.Tensor) -> None:
        self._accelerator.backward(loss)

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        averaged = self._accelerator.reduce(dict(gradients), "mean")
        for name, parameter in self._module.named_parameters():
            parameter.grad = averaged[name]

    def step(self, learning_rates: Sequence[float]) -> torch.Tensor:
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        limit = math.inf if self._clip_norm is None else self._clip_norm
        norm = self._accelerator.clip_grad_norm_(self._module.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm.detach()

    def state_dict(self) -> dict[str, Any]:
        scaler = self._accelerator.scaler
        return {
            "optimizer": self._optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])


class LoneEngine:
    """One process, no loss scaling in half precision: for rehearsal steps, whose results are discarded."""

    loss_scale = None

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, precision: Precision, clip_norm: float | None
    ) -> None:
        self.network, self._optimizer, self._precision, self._clip_norm = module, optimizer, precision, clip_norm
        self._device = next(module.parameters()).device

    def autocast(self) -> torch.autocast:
        return autocast(self._precision, self._device)

    def part_of_step(self, last: bool) -> Any:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        for name, parameter in self.network.named_parameters():
            parameter.grad = gradients[name]

    def step(self, learning_rates: Sequence[float]) -> torch.Tensor:
        limit = math.inf if self._clip_norm is None else self._clip_norm
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "scaler": None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.load_state_dict(state["optimizer"])
