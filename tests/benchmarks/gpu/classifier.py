"""Training speed, share of the peak and memory of classifiers, in this project's loop and in timm's."""

import gc
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from data_pipeline.catalog import Dataset
from data_pipeline.stream.stream import Stream, Topology
from tests.benchmarks.classifier_speed import Classifier, ClassifierSpeed
from tests.benchmarks.gpu.data import CELLS
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.rows import Record, Row, measure_rows
from tests.benchmarks.memory import most_memory
from tests.benchmarks.own_training import OnDevice
from trainer.learners.topology import join_processes

# Beside the timed seconds, warm-up steps among them: a network is built twice, and compiled by torch.compile.
_START_SECONDS, _COMPILE_SECONDS = 5.0, 35.0


def measure(options: Options, record: Record, deadline: float, say: Callable[[str], None]) -> None:
    """Rows of each model: loops and memory layouts, then both loops under a cap of memory, then compiled."""
    topology = join_processes()
    with tempfile.TemporaryDirectory(dir=options.work_folder) as scratch:
        benches = [_Bench(model, options, topology, Path(scratch)) for model in options.models.split(",")]
        rows = [row for bench in benches for row in bench.rows()]
        rows += benches[0].capped_rows()
        if options.compile:
            # The last model first: the first is the largest, and may take longer to compile than is left.
            rows += [row for bench in reversed(benches) for row in bench.compiled_rows()]
        measure_rows(rows, record, deadline, say)


class _Bench:
    """The rows of one model."""

    def __init__(self, model: str, options: Options, topology: Topology, scratch: Path) -> None:
        self._model, self._options, self._topology = model, options, topology
        classifier = Classifier(model, options.image_size, options.batch, options.precision)
        dataset = Dataset.open(Path(options.data) / CELLS)
        self._speed = ClassifierSpeed(classifier, dataset, topology, scratch)

    def rows(self) -> list[Row]:
        return [
            self._row("ours", partial(self._ours, Stream, "plain")),
            self._row("timm", partial(self._timm, False)),
            self._row("ours, channels last", partial(self._ours, Stream, "channels_last")),
            self._row("timm, channels last", partial(self._timm, True)),
            self._row("ours, synthetic batches", partial(self._ours, OnDevice, "plain")),
        ]

    def capped_rows(self) -> list[Row]:
        """Both loops with little memory; timm's has no micro-batches, so its batch is one of ours."""
        micro_batch, cap = self._options.capped_micro_batch, f"{self._options.memory_cap:g} GiB"
        return [
            self._row(f"ours, {cap}", partial(self._capped, partial(self._ours, Stream, "plain", micro_batch))),
            self._row(f"timm, {cap}", partial(self._capped, partial(self._timm, False, batch=micro_batch))),
        ]

    def compiled_rows(self) -> list[Row]:
        return [
            self._row("ours, compiled", partial(self._ours, Stream, "compile"), _COMPILE_SECONDS),
            self._row("timm, compiled", partial(self._timm, False, compiled=True), _COMPILE_SECONDS),
            self._row(
                "ours, compiled, channels last", partial(self._ours, Stream, "compile+channels_last"), _COMPILE_SECONDS
            ),
            self._row("timm, compiled, channels last", partial(self._timm, True, compiled=True), _COMPILE_SECONDS),
        ]

    def _row(self, name: str, run: Callable[[], dict[str, Any]], more: float = 0.0) -> Row:
        return Row(f"{self._model}: {name}", partial(self._measure, run), self._options.seconds + _START_SECONDS + more)

    def _measure(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        lap_steps = self._lap_steps  # tried before memory is counted
        gc.collect()
        if self._topology.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        found = run()
        speed = found["images_per_second"]
        shared = {"precision": self._speed.precision, "lap_steps": lap_steps}
        return found | self._speed.utilization(speed) | most_memory(self._topology) | shared

    @cached_property
    def _lap_steps(self) -> int:
        return self._speed.lap_steps(self._options.seconds)

    def _ours(self, kind: type[Stream], variant: str, micro_batch: int | None = None) -> dict[str, Any]:
        more = [] if micro_batch is None else [f"train.micro_batch={micro_batch}"]
        laps = self._speed.ours(kind, self._speed.config(variant, "flip", *more), self._lap_steps)
        return {"images_per_second": round(laps.images_per_second, 1), "data_wait": laps.data_wait, "variant": variant}

    def _timm(self, channels_last: bool, *, compiled: bool = False, batch: int | None = None) -> dict[str, Any]:
        found = self._speed.timm(channels_last, self._lap_steps, compiled=compiled, batch=batch)
        return {"images_per_second": round(found.images_per_second, 1), "batch": batch or self._options.batch}

    def _capped(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        with memory_cap(self._topology.device, self._options.memory_cap):
            return run() | {"memory_cap_gib": self._options.memory_cap}


@contextmanager
def memory_cap(device: torch.device, gib: float) -> Iterator[None]:
    """Within, torch takes no more of the GPU's memory; what CUDA and DALI take beside it is not capped."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(gib * 2**30 / total, 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
