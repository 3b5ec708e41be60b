"""Faster derivatives of a network's slope, for gradient penalties: the same numbers in four passes, not six.

PyTorch takes the second derivative of a convolution by its weights as a convolution with a kernel of the image's size,
and sends the second derivatives of LeakyReLU and of pooling, which are zero, back through the whole network. Here both
are left out (the first as in Karras et al. 2020, `conv2d_gradfix`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_convolution_backward = torch.ops.aten.convolution_backward
_Map = Callable[[Tensor], Tensor]


class SlopePasses(TorchFunctionMode):
    """Context of a network's forward pass and of the backward pass to its input, whose result is differentiated again.

    Within it backward passes give no gradient by weights; later ones, by the weights, are complete. Covers 2D
    convolutions, LeakyReLU and average pooling; PyTorch does the rest, as ever.
    """

    within = False

    def __enter__(self) -> "SlopePasses":
        super().__enter__()
        self.within = True
        return self

    def __exit__(self, *error: Any) -> None:
        self.within = False
        super().__exit__(*error)

    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        replaced = {torch.conv2d: self._convolve, functional.leaky_relu: _bend, functional.avg_pool2d: _pool}
        return replaced.get(function, function)(*given, **(named or {}))

    def _convolve(
        self,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        if isinstance(padding, str):
            return torch.conv2d(images, weight, bias, stride, padding, dilation, groups)
        geometry = (*(_pair(number) for number in (stride, padding, dilation)), groups)
        return _Convolution.apply(images, weight, bias, geometry, self)  # type: ignore[no-untyped-call]


def _bend(images: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    at = images.detach()

    def scale(values: Tensor) -> Tensor:
        return torch.ops.aten.leaky_relu_backward(values, at, negative_slope, False)

    return _Linear.apply(images, scale, scale)  # type: ignore[no-untyped-call]


def _pool(
    images: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    windows = (_pair(kernel_size), _pair(kernel_size if stride is None else stride), _pair(padding))
    settings, at = (*windows, ceil_mode, count_include_pad, divisor_override), images.detach()

    def mean(values: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d(values, *settings)

    def spread(values: Tensor) -> Tensor:
        return torch.ops.aten.avg_pool2d_backward(values, at, *settings)

    return _Linear.apply(images, mean, spread)  # type: ignore[no-untyped-call]


def _pair(number: Any) -> list[int]:
    return [number, number] if isinstance(number, int) else list(number)


class _Linear(Function):
    """A linear map of the input without weights, and its transpose: each is the other's derivative."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, forward: _Map, transposed: _Map) -> Tensor:
        ctx.maps = transposed, forward
        ctx.set_materialize_grads(False)
        return forward(images)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:  # type: ignore[override]
        if gradient is None:
            return None, None, None
        return _Linear.apply(gradient, *ctx.maps), None, None  # type: ignore[no-untyped-call]


class _Convolution(Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any, passes: SlopePasses
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.bias, ctx.geometry, ctx.passes = bias is not None, geometry, passes
        ctx.set_materialize_grads(False)
        return torch.conv2d(images, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Any:  # type: ignore[override]
        if gradient is None:
            return (None,) * 5
        images, weight = ctx.saved_tensors
        if ctx.passes.within:
            by_images = _InputGradient.apply(gradient, weight, images.detach(), ctx.geometry)  # type: ignore[no-untyped-call]
            return (by_images, *(None,) * 4)
        biases = [len(weight)] if ctx.bias else None
        gradients = _backward(gradient, images, weight, ctx.geometry, ctx.needs_input_grad[:3], biases)
        return (*gradients, None, None)


class _InputGradient(Function):
    """A convolution's gradient by its input, as a function of the output's gradient and of the weights."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, weight: Tensor, images: Tensor, geometry: Any) -> Tensor:
        ctx.save_for_backward(gradient, weight)
        ctx.geometry = geometry
        ctx.set_materialize_grads(False)
        # Of the images the shape alone counts.
        by_images: Tensor = _backward(gradient, images, weight, geometry, (True, False, False))[0]
        return by_images

    @staticmethod
    def backward(ctx: Any, direction: Tensor | None) -> Any:  # type: ignore[override]
        if direction is None:
            return (None,) * 4
        gradient, weight = ctx.saved_tensors
        with torch.autocast(direction.device.type, enabled=False):
            by_gradient = torch.conv2d(direction, weight, None, *ctx.geometry)
        _, by_weight, _ = _backward(gradient, direction, weight, ctx.geometry, (False, ctx.needs_input_grad[1], False))
        return by_gradient, by_weight, None, None


def _backward(
    gradient: Tensor, images: Tensor, weight: Tensor, geometry: Any, wanted: Any, biases: Any = None
) -> tuple[Any, Any, Any]:
    """Gradients by images, weight and bias; None for what is not wanted."""
    *numbers, groups = geometry
    return _convolution_backward(gradient, images, weight, biases, *numbers, False, [0, 0], groups, list(wanted))  # type: ignore[no-any-return]
