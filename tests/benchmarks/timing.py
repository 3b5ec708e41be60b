"""How fast a loader hands over images, once it runs steadily."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from data_pipeline.stream.config import StreamConfig
from tests.benchmarks.gpu_share import GpuShare

# Rounds that are let go before the clock starts: one to get going, one to fill what is held ready.
_WARM_UP_ROUNDS = 2
OUR_PREFETCH = StreamConfig().prefetch


@dataclass(frozen=True)
class Setting:
    """batch: images. workers: processes of a rival (0: the main process), threads of SPDL's and ours."""

    batch: int
    workers: int
    decoder: str = "dali"

    @property
    def round(self) -> int:
        """Batches under way at a time: one for each worker process; DALI's threads share those prefetched."""
        return OUR_PREFETCH if self.decoder == "dali" else max(1, self.workers)


@dataclass(frozen=True)
class Contender:
    """A way to load images. `open` starts it: an endless iterator over the sizes of finished batches."""

    name: str
    open: Callable[[Setting], Iterator[int]]


@dataclass(frozen=True)
class Measurement:
    """images_per_second by the clock; cpu_ms is what an image cost, all threads and processes together.

    gpu_share: of the time, in which the GPU computed; None without one.
    """

    images_per_second: float
    cpu_ms: float
    gpu_share: float | None = None


def measure(contender: Contender, setting: Setting, seconds: float) -> Measurement:
    """Time one run of a contender over at least `seconds`, its start and warm-up left out.

    Whole rounds of its workers are timed: they tend to finish together, so a part of a round would
    count work that was done before the clock started.
    """
    # What lives already is not searched for garbage again and again, neither here nor in forked workers.
    gc.freeze()
    threads = torch.get_num_threads()
    # A single image is too small to share among torch's threads; loaders share images among processes.
    torch.set_num_threads(1)
    batches = contender.open(setting)
    try:
        for _ in itertools.islice(batches, _WARM_UP_ROUNDS * setting.round):
            pass
        _wait_for_device()
        with GpuShare() as gpu:
            images, cpu, start = 0, cpu_seconds(), time.perf_counter()
            while True:
                images += sum(itertools.islice(batches, setting.round))
                if time.perf_counter() - start >= seconds:
                    break
            _wait_for_device()
            elapsed, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    finally:
        torch.set_num_threads(threads)
        del batches
        gc.collect()  # ends worker processes and frees pipelines before the next contender starts
        gc.unfreeze()
    return Measurement(images / elapsed, 1000 * cpu / images, gpu.share)


def find_setting(
    contender: Contender, batches: Sequence[int], workers: Sequence[int], decoders: Sequence[str], seconds: float
) -> tuple[Setting, list[dict[str, Any]]]:
    """A contender's fastest setting and all that were tried: decoder first, then workers, then batch size."""
    trials: dict[Setting, float] = {}

    def fastest(settings: Sequence[Setting]) -> Setting:
        for setting in settings:
            if setting not in trials:
                trials[setting] = measure(contender, setting, seconds).images_per_second
        return max(settings, key=lambda setting: trials[setting])

    middle = batches[len(batches) // 2]
    if len(batches) == len(workers) == len(decoders) == 1:
        return Setting(middle, workers[0], decoders[0]), []
    best = fastest([Setting(middle, workers[-2:][0], decoder) for decoder in decoders])
    best = fastest([Setting(middle, count, best.decoder) for count in workers])
    best = fastest([Setting(batch, best.workers, best.decoder) for batch in batches])
    return best, [{**asdict(setting), "images_per_second": round(speed, 1)} for setting, speed in trials.items()]


def summary(values: Sequence[float], digits: int) -> dict[str, Any]:
    """Median, lowest and highest of the repeats, and the repeats."""
    rounded = [round(value, digits) for value in values]
    return {
        "median": round(statistics.median(values), digits),
        "low": min(rounded),
        "high": max(rounded),
        "repeats": rounded,
    }


def paired_ratio(values: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Ratio within each repeat: what slowed the machine for a while slowed both of a pair."""
    return summary([value / other for value, other in zip(values, others, strict=True)], 3)


def cpu_seconds() -> float:
    """Processor time of this process, its threads, and its running children."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
