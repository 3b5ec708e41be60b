"""The memory of one training step at any micro-batch, from steps of the real algorithm on tensors without memory."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from data_pipeline.stream.stream import MicroBatch
from trainer.loop.fit import Algorithm
from trainer.planning.living_memory import PASSING, LivingMemory

WEIGHTS, AVERAGES, MOMENTS, GRADIENTS = "weights", "averages", "optimiser state", "gradients"
KINDS = (WEIGHTS, GRADIENTS, MOMENTS, AVERAGES, PASSING)


@dataclass(frozen=True)
class Rehearsal:
    """A step that can be tried with any micro-batch.

    make_algorithm: the algorithm, its learners under the engine `alone`. types: that labels name. image_size: pixels.
    episode: images that are shown together whatever the micro-batch; None where that decides.
    """

    make_algorithm: Callable[[], Algorithm]
    types: int
    image_size: int
    episode: int | None = None

    def batches(self, images: int, parts: int, takes: dict[str, int], device: torch.device) -> dict[str, Any]:
        """What Algorithm.step takes: global batches of so many parts, with so many images in each; pixels are noise."""

        def part(number: int) -> MicroBatch:
            rows = np.arange(images) + number * images
            labels = torch.arange(images, device=device) % self.types
            pixels = torch.randn(images, 3, self.image_size, self.image_size, device=device)
            return MicroBatch(pixels, labels, rows, rows, number // parts, parts)

        def stream(count: int) -> Iterator[Iterator[MicroBatch]]:
            for batch in range(count):
                yield (part(batch * parts + number) for number in range(parts))

        return {name: stream(count) for name, count in takes.items()}


class StepMemory:
    """The bytes that live in a step, by kind, as a function of the micro-batch.

    An operation's outputs grow by the same bytes with each image, so what lives after it is a line over the
    micro-batch, known from two steps; the peak is the highest of all these lines, at any micro-batch.
    """

    def __init__(self, sizes: Sequence[int], traces: Sequence[Sequence[dict[str, int]]]) -> None:
        """traces: what lived after each operation of a step with a micro-batch of each of the one or two `sizes`.

        One size tells of itself alone.
        """
        first, second = (
            np.array([[moment.get(kind, 0) for kind in KINDS] for moment in trace], dtype=np.float64)
            for trace in (traces[0], traces[-1])
        )
        assert first.shape == second.shape, "the step's operations depend on the micro-batch"
        self._slope: npt.NDArray[np.float64] = (second - first) / max(sizes[-1] - sizes[0], 1)
        self._start: npt.NDArray[np.float64] = first - sizes[0] * self._slope

    def at(self, images: int) -> dict[str, int]:
        """Bytes by kind at the moment of the step's peak."""
        moments = np.multiply(self._slope, images)
        moments += self._start
        peak = moments[moments.sum(axis=1).argmax()]
        return {kind: round(value) for kind, value in zip(KINDS, peak, strict=True)}

    def peak(self, images: int) -> int:
        """The most bytes that live at once."""
        return sum(self.at(images).values())


@dataclass(frozen=True)
class RehearsedStep:
    """What steps on fake tensors have told.

    by_parts: the memory of a step in one part, and of one in several (2). multiply_accumulates: of a training step,
    per image that it shows. shown: images of a step for each of a global batch's, all streams together.
    """

    by_parts: dict[int, StepMemory]
    multiply_accumulates: float
    shown: int

    def memory(self, parts: int) -> StepMemory:
        """Of a step in so many parts."""
        return self.by_parts[min(parts, 2)]


@contextmanager
def _without_collector() -> Iterator[None]:
    """When cycles are collected would differ from step to step; here everything that is not free by itself stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def rehearse(rehearsal: Rehearsal, parts: Sequence[int] = (1, 2)) -> RehearsedStep:
    """Run the algorithm's step on fake tensors of the CPU: no memory is taken, nothing is computed.

    In half precision autocast is the CPU's, whose lists of operations differ from CUDA's in some that these networks
    have little of (CUDA computes layer and group norm, sums and powers in fp32). parts: which of RehearsedStep.by_parts
    to know.
    """
    sizes = [2 * rehearsal.types, 3 * rehearsal.types] if rehearsal.episode is None else [rehearsal.episode]
    device = torch.device("cpu")
    fakes = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    with fakes, _FakeMemory() as memory, _NoCounts(), _moments_alone(), warnings.catch_warnings():
        # Copying a fake tensor warns of what it looks at.
        warnings.simplefilter("ignore")
        algorithm = rehearsal.make_algorithm()
        memory.building = False
        for learner in algorithm.learners.values():
            memory.name(_tensors(learner.module), WEIGHTS)
            if learner.average is not learner.module:
                memory.name(_tensors(learner.average), AVERAGES)
            memory.name_gradients(learner.module.parameters(), GRADIENTS)

        def trace(images: int, count: int) -> list[dict[str, int]]:
            with _without_collector():
                return memory.step(
                    lambda: algorithm.step(rehearsal.batches(images, count, algorithm.takes, device), detailed=True)
                )

        trace(sizes[0], 1)
        shown = sum(algorithm.takes.values())
        operations = memory.multiply_accumulates / (sizes[0] * shown)
        gc.collect()
        memory.name_rest(MOMENTS)
        by_parts = {count: StepMemory(sizes, [trace(images, count) for images in sizes]) for count in parts}
    return RehearsedStep(by_parts, operations, shown)


@contextmanager
def _moments_alone() -> Iterator[None]:
    """Optimisers make what they keep of each weight, and move nothing: fused, as on a GPU, they take no more.

    On fake tensors torch 2.15's own steps write past what they may.
    """

    def step_of(names: Sequence[str]) -> Callable[[torch.optim.Optimizer], None]:
        def step(self: torch.optim.Optimizer) -> None:
            for group in self.param_groups:
                kept = names if group.get("momentum", 1) else ()  # SGD without momentum keeps nothing
                for parameter in group["params"]:
                    if parameter.grad is not None and not self.state[parameter]:
                        self.state[parameter].update({name: torch.zeros_like(parameter) for name in kept})

        return step

    with (
        mock.patch.object(torch.optim.Adam, "step", step_of(("exp_avg", "exp_avg_sq"))),
        mock.patch.object(torch.optim.AdamW, "step", step_of(("exp_avg", "exp_avg_sq"))),
        mock.patch.object(torch.optim.SGD, "step", step_of(("momentum_buffer",))),
    ):
        yield


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


class _FakeMemory(LivingMemory):
    """LivingMemory inside a FakeTensorMode. building: whether networks are being made."""

    building = True

    def run(self, function: Any, arguments: Any, named: Any) -> Any:
        if self.building and function in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default):
            # Else a fake tensor keeps the real one, and a module with such a buffer could not be copied.
            given = arguments[0]
            return super().run(torch.ops.aten.zeros.default, (list(given.shape),), {"dtype": given.dtype})
        return super().run(function, arguments, named)


class _NoCounts(TorchFunctionMode):
    """Counts of labels, which have no values here, are no numbers either, but as many."""

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), named: Any = None) -> Any:
        if function is torch.bincount:
            return torch.zeros((named or {})["minlength"], dtype=torch.int64)
        return function(*arguments, **(named or {}))
