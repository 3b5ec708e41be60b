"""A watch for losses that are not finite."""

import torch


class LossWatch:
    """Notices the first loss that is not finite, without making the host wait for the device each step.

    The step number is noted on the device and copied to the host in passing; it is read a step or
    two later, when the copy has arrived anyway. Under fp16 an overflowing gradient is the loss
    scale's business, so only the loss counts there.
    """

    def __init__(self, device: torch.device, *, gradients_may_overflow: bool) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._on_cuda = device.type == "cuda"
        self._arrived = torch.full((), -1, dtype=torch.int64, pin_memory=self._on_cuda)
        self._copied = torch.cuda.Event() if self._on_cuda else None
        self._loss_only = gradients_may_overflow

    def see(self, step: int, loss: torch.Tensor, gradient_norm: torch.Tensor) -> int | None:
        """Note one step's loss; returns the first bad step once known."""
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
        """Wait for the device; returns the first bad step, or None."""
        bad = int(self._first_bad)
        return bad if bad >= 0 else None
