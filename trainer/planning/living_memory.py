"""Counts the memory that tensors hold while operations run, real tensors' or those of a FakeTensorMode."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# What holds a storage until somebody names it: what a step makes on its way.
PASSING = "activations"


class LivingMemory(TorchDispatchMode):
    """The bytes of all storages that live, by kind, after each operation; a storage is seen where it is made.

    multiply_accumulates: of all convolutions, matrix products and attention so far.

    Memory that a kernel takes and gives back within one operation is not seen. Enter it inside a FakeTensorMode
    to count what fake tensors would hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.living: Counter[str] = Counter()
        self.trace: list[dict[str, int]] = []
        self.multiply_accumulates = 0
        self._kinds: dict[int, str] = {}

    def __torch_dispatch__(self, function: Any, kinds: Any, arguments: Any = (), named: Any = None) -> Any:
        result = self.run(function, arguments, named or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage())
        self.trace.append(dict(self.living))
        self.multiply_accumulates += _multiply_accumulates(function, arguments, named or {}, result)
        return result

    def run(self, function: Any, arguments: Any, named: Any) -> Any:
        """Do an operation."""
        return function(*arguments, **named)

    def name(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Count what these tensors hold under `kind` from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._see(storage)
            self._move(storage._cdata, storage.nbytes(), kind)

    def name_gradients(self, parameters: Iterable[torch.nn.Parameter], kind: str) -> None:
        """Count the gradients that backward passes will give these weights under `kind`."""

        def named(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                self.name([parameter.grad], kind)

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(named)

    def name_rest(self, kind: str) -> None:
        """Count all that lives and has no name under `kind` from now on."""
        self.living[kind] += self.living.pop(PASSING)
        self._kinds = {key: kind if now == PASSING else now for key, now in self._kinds.items()}

    def step(self, play: Callable[[], Any]) -> list[dict[str, int]]:
        """What lived after each operation of `play`."""
        self.trace = []
        play()
        return self.trace

    @property
    def peak(self) -> int:
        """The most bytes that lived at once since the last step began."""
        return max((sum(moment.values()) for moment in self.trace), default=0)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._kinds:
            self._kinds[key] = PASSING
            self.living[PASSING] += storage.nbytes()
            weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _move(self, key: int, size: int, kind: str) -> None:
        self.living[self._kinds[key]] -= size
        self.living[kind] += size
        self._kinds[key] = kind

    def _forget(self, key: int, size: int) -> None:
        self.living[self._kinds.pop(key)] -= size


def _multiply_accumulates(function: Any, arguments: Any, named: Any, result: Any) -> int:
    if function is torch.ops.aten.convolution_backward.default:
        # torch's own count of it is wrong for grouped convolutions. Either gradient costs what the convolution does.
        gradient, inputs, weight = arguments[:3]
        transposed, wanted = arguments[7], arguments[10]
        return int((inputs if transposed else gradient).numel() * weight[0].numel() * sum(wanted[:2]))
    count = flop_registry.get(function._overloadpacket)
    return 0 if count is None else count(*arguments, **named, out_val=result) // 2
