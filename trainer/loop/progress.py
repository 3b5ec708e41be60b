"""Where a run stands, and how it resumes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from trainer.loop.algorithm import Algorithm
from trainer.loop.checkpoint import CheckpointStore, require_the_same_everywhere


@dataclass
class Progress:
    """Position of a run, saved in its checkpoints."""

    step: int = 0
    best_score: float = float("-inf")
    best_epoch: int = -1
    sums: dict[str, float] = field(default_factory=dict)  # StepResult.sums of this epoch so far, over all ranks


def checkpoint_state(
    learners: Mapping[str, Any], algorithm: Mapping[str, Any], progress: Progress, fingerprint: Mapping[str, Any]
) -> dict[str, Any]:
    """What every checkpoint holds."""
    return {
        "learners": dict(learners),
        "algorithm": dict(algorithm),
        "progress": vars(progress),
        "fingerprint": dict(fingerprint),
    }


def resume(algorithm: Algorithm, state: Mapping[str, Any] | None) -> Progress:
    """Restore a checkpoint's state (see `saved_state`); without one, the start of a run."""
    if state is None:
        return Progress()
    for name, learner in algorithm.learners.items():
        learner.load_state_dict(state["learners"][name])
    algorithm.load_state_dict(state["algorithm"])
    return Progress(**state["progress"])


def saved_state(run: Path, fingerprint: Mapping[str, Any], remedy: str) -> dict[str, Any] | None:
    """State of the run's newest checkpoint; None before the first.

    fingerprint: the settings and facts that the checkpoint must have been made with. remedy: what else the user can do
    if they differ, the end of that message. UserError if they differ, for a damaged checkpoint, and for different ones
    on different machines.
    """
    store = CheckpointStore(run / "checkpoints")
    checkpoint = store.latest()
    require_the_same_everywhere(checkpoint, store.directory)
    if checkpoint is None:
        return None
    state = checkpoint.load()
    before = state["fingerprint"]
    changed = sorted(key for key in before.keys() | fingerprint.keys() if before.get(key) != fingerprint.get(key))
    if changed:
        was, now = before.get(changed[0]), fingerprint.get(changed[0])
        if set(changed) <= {"data set", "train.epochs"} and "model.weights" in fingerprint:
            # Not simply longer: the learning rate of every step depends on the number of epochs.
            remedy = f"run=NEW model.weights={run} to train on from its weights"
        raise UserError(
            f"{checkpoint.path}: checkpoint of another run ({changed[0]} was {was}, is now {now}): "
            f"give the old settings to go on, or {remedy}"
        )
    return state
