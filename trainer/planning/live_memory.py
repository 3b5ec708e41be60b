"""Counts the bytes of all live tensors while operations run; works on real tensors and inside FakeTensorMode."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACTIVATIONS = "activations"  # the kind of every storage until it is named


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
