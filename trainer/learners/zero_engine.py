"""DeepSpeed's ZeRO: each process keeps and moves its part of the optimiser's state (Rajbhandari et al. 2020).

Stage 1 parts the state, stage 2 also what is kept of the gradients. The weights stay whole and in fp32 on every
process, so that gradient penalties are exact; precision and loss scale are applied here and not by DeepSpeed, whose
fp16 keeps weights in half precision and whose autocast clips gradients that are still scaled.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from types import ModuleType
from typing import Any

import torch
from torch import distributed, nn
from torch._C._distributed_c10d import HashStore

from data_pipeline.errors import UserError
from trainer.learners.choices import Precision
from trainer.learners.topology import autocast

# Elements of a gradient that are joined in one exchange, at most: 100 MB in fp32; DeepSpeed's own choice takes 2 GB.
_BUCKET = 25_000_000


class ZeroEngine:
    """A DeepSpeed engine of one learner."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        clip_norm: float | None,
        *,
        stage: int,
    ) -> None:
        """stage: 1 or 2. UserError where DeepSpeed does not run."""
        self.network, self._precision = module, precision
        self._device = next(module.parameters()).device
        deepspeed = _import_deepspeed(self._device)
        self._scale = _LossScale() if precision == "fp16" else None
        # DeepSpeed puts flat partitions in their place.
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        bucket = min(_BUCKET, sum(parameter.numel() for group in self._groups for parameter in group))
        settings = {
            "train_micro_batch_size_per_gpu": 1,  # of its own log only
            "steps_per_print": None,
            "gradient_clipping": clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,  # SGD is all that this lets in
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": bucket,
                "allgather_bucket_size": _BUCKET,
            },
        }
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=_Anchor(module), optimizer=optimizer, config=settings
        )

    @property
    def loss_scale(self) -> float | None:
        return None if self._scale is None else self._scale.value

    def autocast(self) -> torch.autocast:
        return autocast(self._precision, self._device)

    @contextmanager
    def part_of_step(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        if self._scale is not None:
            self._optimizer.override_loss_scale(self._scale.value)
        self._engine.backward(loss + self._engine())

    def set_gradient(self, gradients: Mapping[str, torch.Tensor]) -> None:
        # Gradients come from a backward pass here: that of this sum gives just these.
        self.backward(
            torch.stack([(weight * gradients[name]).sum() for name, weight in self.network.named_parameters()]).sum()
        )

    def step(self, learning_rates: Sequence[float]) -> torch.Tensor:
        for group, rate in zip(self._optimizer.param_groups, learning_rates, strict=True):
            group["lr"] = rate
        self._engine.step()
        if self._scale is not None:
            self._scale.update(overflowed=self._optimizer.overflow)
        return torch.as_tensor(self._engine.get_global_grad_norm(), device=self._device).detach()

    def state_dict(self) -> dict[str, Any]:
        state: dict[int, dict[str, Any]] = {}
        described: list[dict[str, Any]] = []
        first = 0
        for group, parameters in zip(self._optimizer.param_groups, self._groups, strict=True):
            (part,) = group["params"]
            numbers = range(first, first + len(parameters))
            first = numbers.stop
            described.append({**group, "params": list(numbers)})
            for key, value in self._optimizer.state.get(part, {}).items():  # empty before the first step
                # A count of its own for each: optimisers count in place.
                moment = _is_moment(key, value)
                values = _join(value, parameters) if moment else [deepcopy(value) for _ in parameters]
                for number, of_parameter in zip(numbers, values, strict=True):
                    state.setdefault(number, {})[key] = of_parameter
        return {
            "optimizer": {"state": state, "param_groups": described},
            "scaler": None if self._scale is None else self._scale.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimizer.refresh_fp32_params()  # its copies, from the network's weights
        saved, first = state["optimizer"]["state"], 0
        for group, parameters in zip(self._optimizer.param_groups, self._groups, strict=True):
            (part,) = group["params"]
            entries = [saved[number] for number in range(first, first + len(parameters))] if saved else []
            first += len(parameters)
            for key, value in entries[0].items() if entries else ():
                of_part = _cut([entry[key] for entry in entries], part) if _is_moment(key, value) else value
                self._optimizer.state[part][key] = of_part
        if self._scale is not None and state["scaler"] is not None:
            self._scale.load_state_dict(state["scaler"])


def _is_moment(key: str, value: Any) -> bool:
    """Whether an entry of an optimiser's state has one number for each weight; else it is a count of steps, or None."""
    return key != "step" and torch.is_tensor(value)


def _join(part: torch.Tensor, parameters: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """From this process's part of the flattened weights' numbers, and the others', those of each weight."""
    parts = [torch.empty_like(part) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, part)
    sizes = [parameter.numel() for parameter in parameters]
    pieces = torch.cat(parts)[: sum(sizes)].split(sizes)  # padding is at the end
    return [piece.reshape(parameter.shape) for piece, parameter in zip(pieces, parameters, strict=True)]


def _cut(values: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """This process's part of the numbers of each weight, flattened and padded as `like` is."""
    flat = torch.cat([value.flatten().to(like.device) for value in values])
    whole = like.new_zeros(like.numel() * distributed.get_world_size())
    whole[: len(flat)] = flat
    return whole.chunk(distributed.get_world_size())[distributed.get_rank()].clone()


class _Anchor(nn.Module):
    """What DeepSpeed takes for the network: nought, from one of its weights.

    DeepSpeed gets ready for a backward pass when that comes by what its module returned. Were that the network's own
    answers, no gradient could be taken at them apart, and autocast would be off. Added to a loss, this is passed first.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        # In a list, so that it is not one more weight.
        self._weight = [next(weight for weight in module.parameters() if weight.requires_grad)]

    def forward(self) -> torch.Tensor:
        return self._weight[0].flatten()[0].float() * 0.0


class _LossScale:
    """The scale of fp16 losses, by the rule and in the form of torch.amp.GradScaler."""

    def __init__(self) -> None:
        self._growth, self._backoff, self._interval = 2.0, 0.5, 2000
        self.value, self._steps_since_change = 2.0**16, 0

    def update(self, *, overflowed: bool) -> None:
        self._steps_since_change += 1
        if overflowed:
            self.value, self._steps_since_change = self.value * self._backoff, 0
        elif self._steps_since_change == self._interval:
            self.value, self._steps_since_change = self.value * self._growth, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": self.value,
            "growth_factor": self._growth,
            "backoff_factor": self._backoff,
            "growth_interval": self._interval,
            "_growth_tracker": self._steps_since_change,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value, self._steps_since_change = float(state["scale"]), int(state["_growth_tracker"])


def _import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, told of the device before it looks for one, and silent but for errors."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        import deepspeed
        from deepspeed.ops import __compatible_ops__
    except Exception as error:  # it looks at compilers and drivers as it is loaded
        raise UserError(f"DeepSpeed does not load here ({error}): leave train.engine and the launch at ddp") from error
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # Its exchange through shared memory would be compiled first, and sums in another order than gloo does.
    __compatible_ops__["deepspeed_shm_comm"] = False
    if "RANK" not in os.environ:  # this process is alone
        os.environ.setdefault("LOCAL_RANK", "0")
    if not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    return deepspeed
