"""How fast the loop goes, and how long it waits for data."""

import time
from collections.abc import Iterable

from data_pipeline.stream.stream import MicroBatch


class StepClock:
    """Measures images per second, and the share of time that the loop waits for data."""

    def __init__(self) -> None:
        self.images = 0
        self._lap_images = 0
        self.restart()

    def restart(self) -> None:
        self.images = self._lap_images = 0
        self._start = self._lap_start = time.perf_counter()
        self._waited = self._lap_waited = 0.0

    def waiting(self, batches: Iterable[MicroBatch]) -> Iterable[MicroBatch]:
        """Yield the batches; measure the time that the loop waits for each."""
        iterator = iter(batches)
        while True:
            before = time.perf_counter()
            batch = next(iterator, None)
            self._waited += time.perf_counter() - before
            if batch is None:
                return
            yield batch

    def lap(self) -> dict[str, float]:
        """Speed since the last lap."""
        now = time.perf_counter()
        seconds, images = now - self._lap_start, self.images - self._lap_images
        waited = self._waited - self._lap_waited
        self._lap_start, self._lap_images, self._lap_waited = now, self.images, self._waited
        return {"images_per_second": images / seconds, "data_wait": waited / seconds}

    def epoch(self) -> dict[str, float]:
        """Speed since the last restart."""
        seconds = time.perf_counter() - self._start
        return {
            "seconds": seconds,
            "images_per_second": self.images / seconds,
            "data_wait": self._waited / seconds,
        }
