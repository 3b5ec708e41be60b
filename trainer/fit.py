"""The loop: step after step, an epoch's end now and then, and a checkpoint to go on from."""

import itertools
import json
import math
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import distributed

from data_pipeline.errors import UserError
from data_pipeline.randomness import derive_key
from data_pipeline.stream import MicroBatch, Stream, Topology
from trainer.checkpoint import CheckpointStore
from trainer.loss_watch import LossWatch
from trainer.player import Player
from trainer.progress import RunLog
from trainer.step_clock import StepClock
from trainer.topology import Precision, PrecisionChoice

# A scale this small multiplies losses by less than one: no gradient of any use overflows there.
_SMALLEST_LOSS_SCALE = 1e-3


@dataclass(frozen=True)
class FitConfig:
    """How long and in what portions to train.

    epochs: passes over the data, or portions of `iterations_per_epoch` global batches (the thesis: 200
    of 256). global_batch: images per optimiser step over all processes. micro_batch: most images a
    device holds at once; null takes a process's whole slice. precision: see resolve_precision.
    select_by: the validation score that chooses the best checkpoint. patience: epochs without a better
    one after which training stops; null never stops early. checkpoint_every, log_every: in steps.
    synchronize_batch_norm: one set of batch statistics over all GPUs.
    """

    epochs: int = 200
    iterations_per_epoch: int | None = None
    global_batch: int = 64
    micro_batch: int | None = None
    precision: PrecisionChoice = "auto"
    label_smoothing: float = 0.1
    select_by: Literal["balanced_accuracy", "accuracy", "loss"] = "balanced_accuracy"
    patience: int | None = None
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    log_every: int = 10
    synchronize_batch_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "global_batch", "checkpoint_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1")
        for name in ("iterations_per_epoch", "micro_batch", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"train.{name}={getattr(self, name)}: must be at least 1, or null")


class Game(Protocol):
    """An algorithm (contract C9): its players, and one iteration on one global batch."""

    players: dict[str, Player]

    def step(self, batch: Iterable[MicroBatch]) -> dict[str, torch.Tensor]:
        """One iteration; returns `loss` and `correct` summed over this process's images, `gradient_norm`."""


@dataclass
class Progress:
    """Where a run stands: what a checkpoint holds beside the players.

    loss, correct, images: sums over the images of the epoch so far, all processes together.
    """

    step: int = 0
    best_score: float = float("-inf")
    best_epoch: int = -1
    loss: float = 0.0
    correct: float = 0.0
    images: int = 0


def fit(
    game: Game,
    stream: Stream,
    validate: Callable[[], dict[str, float]],
    config: FitConfig,
    *,
    run: Path,
    seed: int,
    topology: Topology,
    precision: Precision,
    fingerprint: dict[str, Any],
    progress: Progress,
) -> None:
    """Train from where `progress` (see `resume`) stands to the end.

    validate: scores the players on validation: `loss`, `accuracy`, `balanced_accuracy`, the same
    numbers on every process. fingerprint: what a checkpoint of this run must have been made with.
    Raises UserError for a loss that is not finite.
    """
    epoch_steps = config.iterations_per_epoch or stream.batches_per_epoch
    total_steps = config.epochs * epoch_steps
    store = CheckpointStore(run / "checkpoints", config.keep_checkpoints)
    log = RunLog(run, step=progress.step, total_steps=total_steps, enabled=topology.rank == 0, description="training")
    watch = LossWatch(topology.device, gradients_may_overflow=precision == "fp16")
    clock = StepClock()
    micro_batches = stream.read(first_batch=progress.step)
    # Sums so far of this epoch, all processes together, go on in the first one.
    so_far = [progress.loss, progress.correct] if topology.rank == 0 else [0.0, 0.0]
    sums = torch.tensor(so_far, dtype=torch.float64, device=topology.device)
    with closing(log):  # the bar is off the screen before an error is printed
        while progress.step < total_steps and not _out_of_patience(progress, config, epoch_steps):
            # Dropout and the like are keyed by step and process, so resuming needs no generator's state.
            torch.manual_seed(derive_key(seed, "step", progress.step, topology.rank))
            learning_rates = [player.learning_rate for player in game.players.values()]
            result = game.step(itertools.islice(clock.waiting(micro_batches), stream.parts))
            progress.step += 1
            progress.images += stream.global_batch
            sums += torch.stack([result["loss"], result["correct"]])
            clock.images += stream.global_batch
            at_epoch_end = progress.step % epoch_steps == 0
            saving = at_epoch_end or progress.step % config.checkpoint_every == 0
            bad_step = watch.see(progress.step, result["loss"], result["gradient_norm"])
            if saving and bad_step is None:
                bad_step = watch.finish()
            if bad_step is not None:
                raise _not_finite(bad_step, stream, run, topology)
            if progress.step % config.log_every == 0:
                loss = _sum_over_processes(result["loss"].double()).item() / stream.global_batch
                gradient_norm = result["gradient_norm"].item()
                log.record(
                    "step",
                    progress.step,
                    epoch=(progress.step - 1) // epoch_steps,
                    images=progress.step * stream.global_batch,
                    loss=loss,
                    learning_rate=learning_rates[0],
                    # Infinite where fp16 overflowed and the step was left out; JSON has no word for it.
                    gradient_norm=gradient_norm if math.isfinite(gradient_norm) else None,
                    **clock.lap(),
                )
                _refuse_lost_scale(game, progress.step)
            log.advance()
            better = False
            if at_epoch_end:
                better = _end_epoch(progress, sums, validate, config, log, clock, epoch_steps)
                sums.zero_()
            if saving:
                progress.loss, progress.correct = _sum_over_processes(sums.clone()).tolist()
                _save(store, game, progress, fingerprint, topology, best=better)
            if at_epoch_end:
                clock.restart()


def _end_epoch(
    progress: Progress,
    sums: torch.Tensor,
    validate: Callable[[], dict[str, float]],
    config: FitConfig,
    log: RunLog,
    clock: StepClock,
    epoch_steps: int,
) -> bool:
    """Validate, log the epoch, decide whether it is the best so far and whether to stop."""
    epoch = progress.step // epoch_steps - 1
    loss, correct = _sum_over_processes(sums.clone()).tolist()
    speed = clock.epoch()
    scores = validate()
    log.record(
        "epoch",
        progress.step,
        epoch=epoch,
        train_loss=loss / progress.images,
        train_accuracy=correct / progress.images,
        **{f"validation_{name}": value for name, value in scores.items()},
        **speed,
    )
    log.say(
        f"epoch {epoch + 1}/{config.epochs}: train loss {loss / progress.images:.3f}, validation loss "
        f"{scores['loss']:.3f}, accuracy {scores['accuracy']:.1%}, balanced {scores['balanced_accuracy']:.1%}"
    )
    score = -scores["loss"] if config.select_by == "loss" else scores[config.select_by]
    better = score > progress.best_score
    if better:
        progress.best_score, progress.best_epoch = score, epoch
    progress.images = 0
    return better


def _out_of_patience(progress: Progress, config: FitConfig, epoch_steps: int) -> bool:
    last_epoch = progress.step // epoch_steps - 1
    return config.patience is not None and last_epoch - progress.best_epoch >= config.patience


def resume(run: Path, game: Game, fingerprint: dict[str, Any]) -> Progress:
    """Put the players where the run's newest checkpoint left them; a fresh run starts at step 0.

    Raises UserError for a damaged checkpoint, or one made with another fingerprint.
    """
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    if checkpoint is None:
        return Progress()
    state = checkpoint.load()
    if state["fingerprint"] != fingerprint:
        changed = sorted(
            key
            for key in state["fingerprint"].keys() | fingerprint.keys()
            if state["fingerprint"].get(key) != fingerprint.get(key)
        )
        was, now = state["fingerprint"].get(changed[0]), fingerprint.get(changed[0])
        raise UserError(
            f"{checkpoint.path}: checkpoint of another run ({changed[0]} was {was}, is now {now}): "
            "give the old settings to go on, or another run=DIR to begin anew"
        )
    for name, player in game.players.items():
        player.load_state_dict(state["players"][name])
    return Progress(**state["progress"])


def _save(
    store: CheckpointStore,
    game: Game,
    progress: Progress,
    fingerprint: dict[str, Any],
    topology: Topology,
    *,
    best: bool,
) -> None:
    if topology.rank == 0:
        players = {name: player.state_dict() for name, player in game.players.items()}
        state = {"players": players, "progress": vars(progress), "fingerprint": fingerprint}
        store.save(progress.step, state, best=best)
    if distributed.is_initialized():
        distributed.barrier()


def _sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def _refuse_lost_scale(game: Game, step: int) -> None:
    for name, player in game.players.items():
        scale = player.loss_scale
        if scale is not None and scale < _SMALLEST_LOSS_SCALE:
            raise UserError(
                f"at step {step} the loss scale of the {name} is down to {scale:g}, its gradients overflow fp16 at "
                "every step: lower optimizer.learning_rate, or set train.precision=fp32"
            )


def _not_finite(step: int, stream: Stream, run: Path, topology: Topology) -> UserError:
    # Any process may be the one that notices; all of them can say which images it was.
    ids = stream.ids(step - 1)
    listing = run / "non_finite_batch.json"
    aside = listing.with_suffix(f".{topology.rank}")
    aside.write_text(json.dumps({"step": step, "ids": ids}, indent=1))
    aside.replace(listing)
    return UserError(
        f"the loss is not finite since step {step}, batch of ids {', '.join(ids[:4])}, ... (all {len(ids)} in "
        f"{listing}): lower optimizer.learning_rate, or look at these images"
    )
