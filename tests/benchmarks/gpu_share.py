"""What share of a GPU's time is used, by the driver's own counter."""

import threading
from types import TracebackType

import torch

# The driver renews its counter a few times a second.
_EVERY_SECONDS = 0.1


class GpuShare:
    """Within, the GPU's use is sampled in a thread.

    share: of the time in which at least one kernel ran, the mean of the samples; None without a GPU, and where its
    driver does not tell. JPEG decoders in hardware do not count as kernels.
    """

    def __init__(self) -> None:
        self.share: float | None = None
        self._ended = threading.Event()
        self._samples: list[int] = []
        self._thread = threading.Thread(target=self._sample, daemon=True) if torch.cuda.is_available() else None

    def __enter__(self) -> "GpuShare":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        if self._samples:
            self.share = round(sum(self._samples) / len(self._samples) / 100, 3)

    def _sample(self) -> None:
        try:
            while not self._ended.wait(_EVERY_SECONDS):
                self._samples.append(torch.cuda.utilization())
        except Exception:  # no nvidia-ml-py, or a driver that tells nothing: each library has errors of its own
            self._samples.clear()
