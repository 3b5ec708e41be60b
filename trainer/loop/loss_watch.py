"""A watch for losses that are not finite."""

import torch


class LossWatch:
    """Detects the first non-finite loss or gradient norm, without a device synchronization in each step.

    The step number is recorded on the device and copied to the host asynchronously; it is read a step or
    two later. Under fp16 only the loss is checked, because the loss scaler handles gradients that overflow.
    """

    def __init__(self, device: torch.device, *, gradients_may_overflow: bool) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._on_cuda = device.type == "cuda"
        self._arrived = torch.full((), -1, dtype=torch.int64, pin_memory=self._on_cuda)
        self._copied = torch.cuda.Event() if self._on_cuda else None
        self._loss_only = gradients_may_overflow

    def see(self, step: int, loss: torch.Tensor, gradient_norm: torch.Tensor) -> int | None:
        """Record one step; returns the first non-finite step as soon as it is known, else None."""
        bad = ~torch.isfinite(loss)
        if not self._loss_only:
            bad = bad | ~torch.isfinite(gradient_norm)
        # Filled on the device: a number that torch.where brings there itself is waited for.
        now = torch.full_like(self._first_bad, step)
        self._first_bad = torch.where(bad & (self._first_bad < 0), now, self._first_bad)
        if self._copied is None:
            return self.finish()
        known = int(self._arrived) if self._copied.query() else -1
        if self._copied.query():
            self._arrived.copy_(self._first_bad, non_blocking=True)
            self._copied.record()
        return known if known >= 0 else None

    def finish(self) -> int | None:
        """Synchronize with the device; returns the first non-finite step, or None."""
        bad = int(self._first_bad)
        return bad if bad >= 0 else None
