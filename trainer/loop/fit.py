"""The training loop: steps, an epoch's end now and then, checkpoints."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_pipeline.disk import replace_through
from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch, Stream
from trainer.learners.learner import Setting
from trainer.loop.algorithm import DETAIL, Algorithm, GlobalBatch, StepResult
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.clock import StepClock
from trainer.loop.fit_config import FitConfig
from trainer.loop.forecast import Expectation, Forecast
from trainer.loop.log import RunLog
from trainer.loop.loss_watch import LossWatch
from trainer.loop.progress import Progress, checkpoint_state
from trainer.loop.selection import Selection

# Below this loss scale no useful gradient overflows: the loss itself is broken.
_SMALLEST_LOSS_SCALE = 1e-3

# Callback after each epoch, on every rank; its argument: is this the last epoch?
AfterEpoch = Callable[[bool], None]


@dataclass(frozen=True)
class Plan:
    """Settings of one training: the run, its length, and the callbacks at the end of each epoch."""

    run: Path
    config: FitConfig
    setting: Setting
    epoch_steps: int
    fingerprint: Mapping[str, Any]  # settings; a checkpoint can only be resumed with equal ones
    score_epoch: Callable[[int], dict[str, float]]  # step -> validation scores, equal on all ranks
    selection: Selection | None = None  # None: no best checkpoint is kept
    after_epoch: AfterEpoch | None = None  # called when an epoch's record and checkpoint are written
    expectation: Expectation = field(default_factory=Expectation)
    description: str = "training"


def fit(algorithm: Algorithm, streams: Mapping[str, Stream], plan: Plan, progress: Progress) -> None:
    """Train from `progress` (see `resume`) to the end. UserError for a non-finite loss."""
    _Loop(algorithm, streams, plan, progress).run()


class _Loop:
    def __init__(self, algorithm: Algorithm, streams: Mapping[str, Stream], plan: Plan, progress: Progress) -> None:
        config, setting = plan.config, plan.setting
        self._algorithm, self._streams, self._plan, self._progress = algorithm, streams, plan, progress
        self._topology = setting.topology
        self._first = self._topology.rank == 0
        self._images_per_step = setting.global_batch * sum(algorithm.takes.values())
        self._store = CheckpointStore(plan.run / "checkpoints", config.keep_checkpoints)
        if self._first:
            self._store.drop_old()  # left over by a process that was killed while it saved
        self._log = RunLog(
            plan.run,
            step=progress.step,
            total_steps=setting.total_steps,
            enabled=self._first,
            description=plan.description,
        )
        self._watch = LossWatch(self._topology.device, gradients_may_overflow=setting.precision == "fp16")
        self._clock = StepClock()
        self._forecast = Forecast(
            plan.expectation,
            step=progress.step,
            total_steps=setting.total_steps,
            epoch_steps=plan.epoch_steps,
            may_end_early=plan.selection is not None and plan.selection.patience is not None,
            say=self._log.say,
        )
        self._batches = {
            name: _global_batches(self._clock.waiting(stream.read(progress.step * algorithm.takes[name])), stream.parts)
            for name, stream in streams.items()
        }
        self._sums = _Sums(progress.sums if self._first else {}, self._topology.device)

    def run(self) -> None:
        with closing(self._log):  # the bar is off the screen before an error is printed
            while not self._ended():
                self._step()

    def _step(self) -> None:
        progress, config, epoch_steps = self._progress, self._plan.config, self._plan.epoch_steps
        # Dropout and the like are keyed by step and rank, so no generator's state is saved.
        torch.manual_seed(derive_key(self._plan.setting.seed, "step", progress.step, self._topology.rank))
        learning_rates = {name: learner.learning_rate for name, learner in self._algorithm.learners.items()}
        logging = (progress.step + 1) % config.log_every == 0
        result = self._algorithm.step(self._batches, detailed=logging)
        progress.step += 1
        self._sums.add(result.sums)
        self._clock.images += self._images_per_step
        at_epoch_end = progress.step % epoch_steps == 0
        at_end = progress.step >= self._plan.setting.total_steps
        saving = at_epoch_end or at_end or progress.step % config.checkpoint_every == 0
        self._require_finite(result, wait=saving)
        if logging:
            self._log_step(result, learning_rates)
        self._log.advance()
        self._forecast.step_done()
        better = (at_epoch_end or at_end) and self._end_epoch()
        if saving:
            self._save(best=better)
        if at_epoch_end or at_end:
            if self._plan.after_epoch is not None:
                self._plan.after_epoch(self._ended())
            self._forecast.epoch_done()
            self._clock.restart()

    def _ended(self) -> bool:
        """Whether all steps are done, or no epoch was better for `patience` epochs."""
        progress, selection = self._progress, self._plan.selection
        if progress.step >= self._plan.setting.total_steps:
            return True
        if selection is None or selection.patience is None:
            return False
        return progress.step // self._plan.epoch_steps - 1 - progress.best_epoch >= selection.patience

    def _log_step(self, result: StepResult, learning_rates: Mapping[str, float]) -> None:
        step, batch = self._progress.step, self._plan.setting.global_batch
        self._log.record(
            "step",
            step,
            epoch=(step - 1) // self._plan.epoch_steps,
            images=step * self._images_per_step,
            **{name: value / batch for name, value in _over_ranks(result.sums).items()},
            **_by_learner("learning_rate", learning_rates),
            # Infinite where fp16 overflowed and the step was skipped; JSON has no word for it.
            **{name: _finite(norm.item()) for name, norm in result.norms.items()},
            **self._clock.lap(),
        )
        for name, learner in self._algorithm.learners.items():
            scale = learner.loss_scale
            if scale is not None and scale < _SMALLEST_LOSS_SCALE:
                raise UserError(
                    f"at step {step} the loss scale of the {name} is down to {scale:g}, its gradients overflow fp16 "
                    "at every step: lower its learning rate, or set train.precision=fp32"
                )

    def _end_epoch(self) -> bool:
        """Score and log the epoch; returns whether it is the best so far."""
        progress, plan = self._progress, self._plan
        steps = (progress.step - 1) % plan.epoch_steps + 1  # fewer in an epoch that the run's end cuts short
        epoch = (progress.step - 1) // plan.epoch_steps
        images = plan.setting.global_batch * steps
        numbers = {f"train_{name}": value / images for name, value in self._sums.over_ranks().items()}
        self._sums = _Sums({}, self._topology.device)
        speed = self._clock.epoch()
        scores = plan.score_epoch(progress.step)
        numbers |= {f"validation_{name}": value for name, value in scores.items()}
        self._log.record("epoch", progress.step, epoch=epoch, **numbers, **speed)
        summary = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
        self._log.say(f"epoch {epoch + 1}/{-(-plan.setting.total_steps // plan.epoch_steps)}: {summary}")
        if plan.selection is None:
            return False
        score = plan.selection.rank(scores)
        better = plan.selection.prefers(score, progress.best_score)
        if better:
            progress.best_score, progress.best_epoch = max(score, progress.best_score), epoch
        return better

    def _save(self, *, best: bool) -> None:
        self._progress.sums = self._sums.over_ranks()
        # On every rank: ZeRO gathers its shards here.
        learners = {name: learner.state_dict() for name, learner in self._algorithm.learners.items()}
        if self._first:
            state = checkpoint_state(learners, self._algorithm.state_dict(), self._progress, self._plan.fingerprint)
            self._store.save(self._progress.step, state, best=best)
        if distributed.is_initialized():
            distributed.barrier()

    def _require_finite(self, result: StepResult, *, wait: bool) -> None:
        """UserError for a non-finite loss; wait: synchronize with the device, so that none is saved."""
        step = self._watch.see(self._progress.step, _total(result.sums), _total(result.norms or result.sums))
        if step is None and wait:
            step = self._watch.finish()
        if step is None:
            return
        # On whichever rank notices first; every rank knows the ids of the whole batch.
        ids = []
        for name, stream in self._streams.items():
            takes = self._algorithm.takes[name]
            for batch in range((step - 1) * takes, step * takes):
                ids += stream.ids(batch)
        listing = self._plan.run / "non_finite_batch.json"
        replace_through(listing, json.dumps({"step": step, "ids": ids}, indent=1).encode())
        raise UserError(
            f"the loss is not finite since step {step}, batch of ids {', '.join(ids[:4])}, ... (all {len(ids)} in "
            f"{listing}): lower the learning rate, or look at these images"
        )


def _global_batches(micro_batches: Iterable[MicroBatch], parts: int) -> Iterator[GlobalBatch]:
    iterator = iter(micro_batches)
    while True:
        yield GlobalBatch(iterator, parts)


class _Sums:
    """Running totals of named scalars on the device, without synchronization."""

    def __init__(self, start: Mapping[str, float], device: torch.device) -> None:
        self._device = device
        self._totals = {name: self._scalar(value) for name, value in start.items()}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            if not name.startswith(DETAIL):
                self._totals[name] = self._totals.get(name, self._scalar(0.0)) + value.double()

    def over_ranks(self) -> dict[str, float]:
        return _over_ranks(self._totals)

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)


def _over_ranks(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Totals over all ranks, in one all-reduce."""
    if not values:
        return {}
    joined = torch.stack([value.double() for value in values.values()])
    if distributed.is_initialized():
        distributed.all_reduce(joined)
    return dict(zip(values, joined.tolist(), strict=True))


def _total(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of all metrics: non-finite if any is."""
    return torch.stack([value for name, value in values.items() if not name.startswith(DETAIL)]).sum()


def _by_learner(name: str, values: Mapping[str, float]) -> dict[str, float]:
    """`name` alone for a single learner, else `name/learner`."""
    if len(values) == 1:
        return {name: next(iter(values.values()))}
    return {f"{name}/{learner}": value for learner, value in values.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
