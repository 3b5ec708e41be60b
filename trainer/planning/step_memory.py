"""Memory of one training step at any micro-batch, from steps of the real algorithm on fake tensors."""

import gc
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_pipeline.stream.stream import MicroBatch
from trainer.loop.algorithm import Algorithm, GlobalBatch

WEIGHTS, AVERAGES, OPTIMIZER_STATE, GRADIENTS = "weights", "averages", "optimizer state", "gradients"
ACTIVATIONS = "activations"  # the kind of every storage until it is named
KINDS = (WEIGHTS, GRADIENTS, OPTIMIZER_STATE, AVERAGES, ACTIVATIONS)


@dataclass(frozen=True)
class Rehearsal:
    """A training step that can be run with any micro-batch."""

    make_algorithm: Callable[[], Algorithm]  # its learners under the engine `alone`
    types: int  # cell types among the labels
    image_size: int  # pixels
    episode: int | None = None  # images of an episode, which no micro-batch divides; None: micro-batches

    def batches(self, images: int, parts: int, takes: Mapping[str, int], device: torch.device) -> dict[str, Any]:
        """The argument of Algorithm.step: noise, in global batches of `parts` micro-batches of `images` each."""

        def micro_batch(number: int) -> MicroBatch:
            rows = np.arange(images) + number * images
            labels = torch.arange(images, device=device) % self.types
            pixels = torch.randn(images, 3, self.image_size, self.image_size, device=device)
            return MicroBatch(pixels, labels, rows, rows, number // parts, parts)

        def stream(count: int) -> Iterator[GlobalBatch]:
            micro_batches = map(micro_batch, range(count * parts))
            for _ in range(count):
                yield GlobalBatch(micro_batches, parts)

        return {name: stream(count) for name, count in takes.items()}


class StepMemory:
    """Live bytes of a step by kind, as a function of the micro-batch.

    Each image adds the same bytes to an operation's outputs, so live memory after each operation is linear in the
    micro-batch and two steps give the line; the peak is the highest of all lines at the micro-batch asked for.
    """

    def __init__(self, sizes: Sequence[int], traces: Sequence[Sequence[dict[str, int]]]) -> None:
        """traces: of a step at each of one or two micro-batch `sizes`. With one size no other is known."""
        first, second = (
            np.array([[moment.get(kind, 0) for kind in KINDS] for moment in trace], dtype=np.float64)
            for trace in (traces[0], traces[-1])
        )
        assert first.shape == second.shape, "the step's operations depend on the micro-batch"
        self._slope: npt.NDArray[np.float64] = (second - first) / max(sizes[-1] - sizes[0], 1)
        self._start: npt.NDArray[np.float64] = first - sizes[0] * self._slope

    def at(self, images: int) -> dict[str, int]:
        """Bytes by kind at the step's peak."""
        moments = self._start + images * self._slope
        peak = moments[moments.sum(axis=1).argmax()]
        return {kind: round(value) for kind, value in zip(KINDS, peak, strict=True)}

    def peak(self, images: int) -> int:
        """Most bytes live at once."""
        return sum(self.at(images).values())


@dataclass(frozen=True)
class RehearsedStep:
    """Memory of one training step, measured on fake tensors."""

    by_parts: dict[int, StepMemory]  # of a step of one micro-batch, and of several (2)
    takes: Mapping[str, int]  # of the algorithm: global batches of a step, by stream
    held_images: int  # of the algorithm

    def memory(self, parts: int) -> StepMemory:
        """Memory of a step that is accumulated over `parts` micro-batches."""
        return self.by_parts[min(parts, 2)]


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Collections would come at other operations in each step; without them, reference cycles stay in both."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def rehearse(rehearsal: Rehearsal, parts: Sequence[int] = (1, 2)) -> RehearsedStep:
    """Run the algorithm's step on fake CPU tensors: nothing is allocated or computed.

    In half precision this is CPU autocast, whose lists of operations differ from CUDA's in some that these networks
    have few of (CUDA computes layer and group norm, sums and powers in fp32). parts: keys of RehearsedStep.by_parts.
    """
    sizes = [2 * rehearsal.types, 3 * rehearsal.types] if rehearsal.episode is None else [rehearsal.episode]
    device = torch.device("cpu")
    fake = FakeTensorMode(allow_non_fake_inputs=True, allow_fallback_kernels=False)
    with fake, _FakeMemory() as memory, _FakeCounts(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deepcopy of a fake tensor warns
        algorithm = rehearsal.make_algorithm()
        memory.building = False
        for learner in algorithm.learners.values():
            memory.name(_tensors(learner.module), WEIGHTS)
            if learner.average is not learner.module:
                memory.name(_tensors(learner.average), AVERAGES)
            memory.name_gradients(learner.module.parameters(), GRADIENTS)

        def trace(images: int, count: int) -> list[dict[str, int]]:
            def step() -> None:
                algorithm.step(rehearsal.batches(images, count, algorithm.takes, device), detailed=True)

            with _without_garbage_collection():
                return memory.trace_step(step)

        trace(sizes[0], 1)  # optimisers allocate their state in the first step
        gc.collect()
        memory.name_rest(OPTIMIZER_STATE)
        by_parts = {count: StepMemory(sizes, [trace(images, count) for images in sizes]) for count in parts}
    return RehearsedStep(by_parts, dict(algorithm.takes), algorithm.held_images)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


class LiveMemory(TorchDispatchMode):
    """Bytes of all live storages by kind, after each operation. A storage is counted once, when it is first seen.

    Workspace that a kernel allocates and frees within one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[str] = Counter()  # bytes by kind, now
        self.trace: list[dict[str, int]] = []  # the same after each operation of the last step
        self._kinds: dict[int, str] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.run(function, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        self.trace.append(dict(self.live))
        return result

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation."""
        return function(*args, **kwargs)

    def name(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count these tensors' storages under `kind` from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._see(storage)
            self.live[self._kinds[storage._cdata]] -= storage.nbytes()
            self.live[kind] += storage.nbytes()
            self._kinds[storage._cdata] = kind

    def name_gradients(self, parameters: Iterable[torch.nn.Parameter], kind: str) -> None:
        """Count the gradients that backward passes will accumulate in these parameters under `kind`."""

        def name_gradient(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.name([parameter.grad], kind)

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(name_gradient)

    def name_rest(self, kind: str) -> None:
        """Count every live storage without a name under `kind` from now on."""
        self.live[kind] += self.live.pop(ACTIVATIONS)
        self._kinds = {key: kind if now == ACTIVATIONS else now for key, now in self._kinds.items()}

    def trace_step(self, step: Callable[[], Any]) -> list[dict[str, int]]:
        """Live bytes by kind after each operation of `step`."""
        self.trace = []
        step()
        return self.trace

    @property
    def peak(self) -> int:
        """Most bytes live at once since the last step began."""
        return max((sum(moment.values()) for moment in self.trace), default=0)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._kinds:
            self._kinds[key] = ACTIVATIONS
            self.live[ACTIVATIONS] += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.live[self._kinds.pop(key)] -= size


class _FakeMemory(LiveMemory):
    """LiveMemory inside FakeTensorMode."""

    building = True  # networks are being built

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        if self.building and function in (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift_fresh_copy.default):
            # A fake tensor would keep the real one, and a module with such a buffer could not be copied.
            return super().run(torch.ops.aten.zeros.default, (list(args[0].shape),), {"dtype": args[0].dtype})
        return super().run(function, args, kwargs)


class _FakeCounts(TorchFunctionMode):
    """bincount of fake labels, which have no values: zeros of the same shape."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.bincount:
            return torch.zeros((kwargs or {})["minlength"], dtype=torch.int64)
        return function(*args, **(kwargs or {}))
