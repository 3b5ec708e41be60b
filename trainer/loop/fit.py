"""The loop: step after step, an epoch's end now and then, and a checkpoint to go on from."""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from trainer.learners.choices import Precision
from trainer.learners.learner import Learner
from trainer.loop.checkpoint import CheckpointStore, require_the_same_everywhere
from trainer.loop.clock import StepClock
from trainer.loop.fit_config import FitConfig
from trainer.loop.forecast import Expectation, Forecast
from trainer.loop.log import RunLog
from trainer.loop.loss_watch import LossWatch

# A scale this small multiplies losses by less than one: no gradient of any use overflows there.
_SMALLEST_LOSS_SCALE = 1e-3
# Numbers under such a name come at logged steps only, so they have no sum over an epoch.
DETAIL = "detail/"


# What a training is to call after each epoch, on every process; told whether it was the last.
AfterEpoch = Callable[[bool], None]


@dataclass(frozen=True)
class Selection:
    """Which score of an epoch's end chooses the best checkpoint, and when to give up.

    score: among those that `score_epoch` returns. higher_is_better: whether the highest is the best.
    patience: epochs without a better one after which training stops; None never stops early.
    """

    score: str
    patience: int | None = None
    higher_is_better: bool = True

    def rank(self, scores: Mapping[str, float]) -> float:
        """The score, so that higher is better."""
        return scores[self.score] if self.higher_is_better else -scores[self.score]


@dataclass
class StepResult:
    """What one step tells: scalars on the device.

    sums: over this process's images of one global batch (a loss, a count of right answers).
    norms: the same on every process (a gradient norm). `detailed` numbers of either kind
    come at the steps that are logged only.
    """

    sums: dict[str, torch.Tensor]
    norms: dict[str, torch.Tensor]


# The global batches of each stream still to come, each as its micro-batches of this process, all to be taken.
Batches = Mapping[str, Iterator[Iterable[MicroBatch]]]


class Algorithm(Protocol):
    """An algorithm (contract C9): its learners, and one iteration.

    takes: how many global batches one step takes from each stream, all of the same size.
    """

    learners: dict[str, Learner]
    takes: dict[str, int]

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One iteration. `detailed`: also what costs time to know."""

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on beside the learners; the same on every process."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""


class Stateless:
    """An algorithm that keeps nothing beside its learners."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside the algorithm.

    sums: StepResult.sums over the epoch so far, all processes together.
    """

    step: int = 0
    best_score: float = float("-inf")
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)


def fit(
    algorithm: Algorithm,
    streams: Mapping[str, Stream],
    score_epoch: Callable[[int], dict[str, float]],
    config: FitConfig,
    *,
    epoch_steps: int,
    run: Path,
    seed: int,
    topology: Topology,
    precision: Precision,
    fingerprint: dict[str, Any],
    progress: Progress,
    selection: Selection | None = None,
    after_epoch: AfterEpoch | None = None,
    expectation: Expectation = Expectation(),
) -> None:
    """Train from where `progress` (see `resume`) stands to the end.

    streams: what the algorithm takes from. score_epoch: called with the step at an epoch's end; its scores
    are the same numbers on every process. fingerprint: what a checkpoint of this run must have been
    made with. Without a selection there is no best checkpoint. after_epoch: called on every process when an epoch's
    record and checkpoint are written. expectation: what is told of the time that it will take.
    Raises UserError for a loss that is not finite.
    """
    total_steps = config.epochs * epoch_steps
    images_per_step = config.global_batch * sum(algorithm.takes.values())
    store = CheckpointStore(run / "checkpoints", config.keep_checkpoints)
    if topology.rank == 0:
        store.drop_old()  # a process killed at its last checkpoint has not come to that
    log = RunLog(run, step=progress.step, total_steps=total_steps, enabled=topology.rank == 0, description="training")
    watch = LossWatch(topology.device, gradients_may_overflow=precision == "fp16")
    clock = StepClock()
    forecast = Forecast(
        expectation,
        step=progress.step,
        total_steps=total_steps,
        epoch_steps=epoch_steps,
        may_end_early=selection is not None and selection.patience is not None,
        say=log.say,
    )
    batches = {
        name: _global_batches(clock.waiting(stream.read(progress.step * algorithm.takes[name])), stream.parts)
        for name, stream in streams.items()
    }
    sums = _Sums(progress.sums if topology.rank == 0 else {}, topology.device)

    def ended() -> bool:
        return progress.step >= total_steps or _out_of_patience(progress, selection, epoch_steps)

    with closing(log):  # the bar is off the screen before an error is printed
        while not ended():
            # Dropout and the like are keyed by step and process, so resuming needs no generator's state.
            torch.manual_seed(derive_key(seed, "step", progress.step, topology.rank))
            learning_rates = {name: learner.learning_rate for name, learner in algorithm.learners.items()}
            logging = (progress.step + 1) % config.log_every == 0
            result = algorithm.step(batches, detailed=logging)
            progress.step += 1
            sums.add(result.sums)
            clock.images += images_per_step
            at_epoch_end = progress.step % epoch_steps == 0
            saving = at_epoch_end or progress.step % config.checkpoint_every == 0
            bad_step = watch.see(progress.step, _total(result.sums), _total(result.norms))
            if saving and bad_step is None:
                bad_step = watch.finish()
            if bad_step is not None:
                raise _not_finite(bad_step, algorithm, streams, run, topology)
            if logging:
                log.record(
                    "step",
                    progress.step,
                    epoch=(progress.step - 1) // epoch_steps,
                    images=progress.step * images_per_step,
                    **{name: value / config.global_batch for name, value in _over_processes(result.sums).items()},
                    **_named("learning_rate", learning_rates),
                    # Infinite where fp16 overflowed and the step was left out; JSON has no word for it.
                    **{name: _finite(norm.item()) for name, norm in result.norms.items()},
                    **clock.lap(),
                )
                _refuse_lost_scale(algorithm, progress.step)
            log.advance()
            forecast.step_done()
            better = False
            if at_epoch_end:
                means = {
                    f"train_{name}": value / (config.global_batch * epoch_steps)
                    for name, value in sums.over_processes().items()
                }
                better = _end_epoch(progress, means, score_epoch, selection, config.epochs, log, clock, epoch_steps)
                sums = _Sums({}, topology.device)
            if saving:
                progress.sums = sums.over_processes()
                _save(store, algorithm, progress, fingerprint, topology, best=better)
            if at_epoch_end:
                if after_epoch is not None:
                    after_epoch(ended())
                forecast.epoch_done()
                clock.restart()


def _global_batches(micro_batches: Iterable[MicroBatch], parts: int) -> Iterator[Iterable[MicroBatch]]:
    iterator = iter(micro_batches)
    while True:
        yield itertools.islice(iterator, parts)


class _Sums:
    """Running totals of named scalars, on the device: adding to them makes no process wait."""

    def __init__(self, start: Mapping[str, float], device: torch.device) -> None:
        self._device = device
        self._totals = {name: self._scalar(value) for name, value in start.items()}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            if not name.startswith(DETAIL):
                self._totals[name] = self._totals.get(name, self._scalar(0.0)) + value.double()

    def over_processes(self) -> dict[str, float]:
        return _over_processes(self._totals)

    def _scalar(self, value: float) -> torch.Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)


def _over_processes(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Totals over all processes, in one exchange."""
    if not values:
        return {}
    joined = torch.stack([value.double() for value in values.values()])
    if distributed.is_initialized():
        distributed.all_reduce(joined)
    return dict(zip(values, joined.tolist(), strict=True))


def _total(values: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Not finite as soon as one of them is not."""
    return torch.stack([value for name, value in values.items() if not name.startswith(DETAIL)]).sum()


def _named(name: str, by_learner: Mapping[str, float]) -> dict[str, float]:
    """`name` alone where one learner plays, `name/learner` where there are several."""
    if len(by_learner) == 1:
        return {name: next(iter(by_learner.values()))}
    return {f"{name}/{learner}": value for learner, value in by_learner.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _end_epoch(
    progress: Progress,
    means: dict[str, float],
    score_epoch: Callable[[int], dict[str, float]],
    selection: Selection | None,
    epochs: int,
    log: RunLog,
    clock: StepClock,
    epoch_steps: int,
) -> bool:
    """Score, log the epoch, decide whether it is the best so far."""
    epoch = progress.step // epoch_steps - 1
    speed = clock.epoch()
    scores = score_epoch(progress.step)
    numbers = means | {f"validation_{name}": value for name, value in scores.items()}
    log.record("epoch", progress.step, epoch=epoch, **numbers, **speed)
    told = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in numbers.items())
    log.say(f"epoch {epoch + 1}/{epochs}: {told}")
    if selection is None:
        return False
    score = selection.rank(scores)
    better = score > progress.best_score
    if better:
        progress.best_score, progress.best_epoch = score, epoch
    return better


def _out_of_patience(progress: Progress, selection: Selection | None, epoch_steps: int) -> bool:
    if selection is None or selection.patience is None:
        return False
    return progress.step // epoch_steps - 1 - progress.best_epoch >= selection.patience


def resume(run: Path, algorithm: Algorithm, fingerprint: dict[str, Any]) -> Progress:
    """Put the learners where the run's newest checkpoint left them; a fresh run starts at step 0.

    Raises UserError for a damaged checkpoint, one made with another fingerprint, or another one on each machine.
    """
    state = saved_state(run, fingerprint)
    if state is None:
        return Progress()
    for name, learner in algorithm.learners.items():
        learner.load_state_dict(state["learners"][name])
    algorithm.load_state_dict(state["algorithm"])
    return Progress(**state["progress"])


def saved_state(run: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """What the run's newest checkpoint holds; None before the first. Raises UserError as `resume` does."""
    store = CheckpointStore(run / "checkpoints")
    checkpoint = store.latest()
    require_the_same_everywhere(checkpoint, store.directory)
    if checkpoint is None:
        return None
    state = checkpoint.load()
    if state["fingerprint"] != fingerprint:
        changed = sorted(
            key
            for key in state["fingerprint"].keys() | fingerprint.keys()
            if state["fingerprint"].get(key) != fingerprint.get(key)
        )
        was, now = state["fingerprint"].get(changed[0]), fingerprint.get(changed[0])
        anew = "another run=DIR to begin anew"
        if changed in (["data set"], ["train.epochs"]) and "model.weights" in fingerprint:
            # Not simply longer: the learning rates of all its steps follow from their number.
            anew = f"run=NEW model.weights={run} to train on from its weights"
        raise UserError(
            f"{checkpoint.path}: checkpoint of another run ({changed[0]} was {was}, is now {now}): "
            f"give the old settings to go on, or {anew}"
        )
    return state


def _save(
    store: CheckpointStore,
    algorithm: Algorithm,
    progress: Progress,
    fingerprint: dict[str, Any],
    topology: Topology,
    *,
    best: bool,
) -> None:
    # On every process: some engines put together there what each of them holds a part of.
    learners = {name: learner.state_dict() for name, learner in algorithm.learners.items()}
    if topology.rank == 0:
        state = {
            "learners": learners,
            "algorithm": algorithm.state_dict(),
            "progress": vars(progress),
            "fingerprint": fingerprint,
        }
        store.save(progress.step, state, best=best)
    if distributed.is_initialized():
        distributed.barrier()


def _refuse_lost_scale(algorithm: Algorithm, step: int) -> None:
    for name, learner in algorithm.learners.items():
        scale = learner.loss_scale
        if scale is not None and scale < _SMALLEST_LOSS_SCALE:
            raise UserError(
                f"at step {step} the loss scale of the {name} is down to {scale:g}, its gradients overflow fp16 at "
                "every step: lower its learning rate, or set train.precision=fp32"
            )


def _not_finite(
    step: int, algorithm: Algorithm, streams: Mapping[str, Stream], run: Path, topology: Topology
) -> UserError:
    # Any process may be the one that notices; all of them can say which images it was.
    ids = []
    for name, stream in streams.items():
        for batch in range((step - 1) * algorithm.takes[name], step * algorithm.takes[name]):
            ids += stream.ids(batch)
    listing = run / "non_finite_batch.json"
    aside = listing.with_suffix(f".{topology.rank}")
    aside.write_text(json.dumps({"step": step, "ids": ids}, indent=1))
    aside.replace(listing)
    return UserError(
        f"the loss is not finite since step {step}, batch of ids {', '.join(ids[:4])}, ... (all {len(ids)} in "
        f"{listing}): lower the learning rate, or look at these images"
    )
