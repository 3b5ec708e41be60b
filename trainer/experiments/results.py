"""What the trials of a sweep scored on the test images: mean and interval of each arm, and against another."""

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from trainer.metrics.bootstrap import Estimate, Floats, group_weights, interval, measures_of_confusion
from trainer.metrics.evaluation import Evaluation, load_evaluations

SWEEP_FILE, TRIALS_FILE, TRIALS_FOLDER = "sweep.json", "trials.jsonl", "trials"
MEASURES = ("accuracy", "sensitivity", "specificity", "precision", "f1")
RESAMPLES = 1000
METHOD = (
    "95 % percentile bootstrap: seeds, and groups of test images, drawn with replacement, every seed on the same "
    "groups; the spread over S seeds is widened by sqrt(S / (S - 1)), which resampling them lacks; with one seed over "
    "the groups alone; where every answer was right (or none), the exact binomial bound with one trial per group"
)
_PLAN_KEYS = {"name", "kind", "reference", "metric", "mode", "sweep", "fingerprint", "arms", "trials"}
_BOOTSTRAP_SEED = 0
# The measures that are proportions: when all images are right, they have an exact bound.
_PROPORTIONS = ("accuracy", "sensitivity", "specificity", "precision")


@dataclass(frozen=True)
class Trial:
    """One trial that ended, as its line of trials.jsonl has it.

    status: "finished", "stopped" (given up by the search) or "failed". run: its run directory.
    seconds: wall time of its training.
    """

    trial: str
    arm: str
    title: str
    seed: int
    parameters: dict[str, Any]
    command: str
    run: Path
    dataset_hash: str
    status: str
    seconds: float | None
    epochs: int | None

    @functools.cached_property
    def evaluation(self) -> Evaluation | None:
        """The score of the run's own test split, with the answers to each image; None where there is none yet."""
        own = [evaluation for evaluation in load_evaluations(self.run) if evaluation.is_own_test]
        return own[0] if own and own[0].predictions is not None else None

    @property
    def counts(self) -> bool:
        """Whether it was trained to its end and scored, so that it counts for its arm."""
        return self.status == "finished" and self.evaluation is not None


_TRIAL_FIELDS = tuple(field.name for field in fields(Trial))


@dataclass(frozen=True)
class Answers:
    """The answers of an arm's trials, one of each seed, to the same test images.

    images: (raw image's id, type, group) of each, sorted; a normalised image goes under the id of the raw one.
    confusions: float64 [seeds, groups, C, C], counts of true type (rows) and answer, groups sorted by name.
    """

    seeds: tuple[int, ...]
    cell_types: tuple[str, ...]
    images: tuple[tuple[str, str, str], ...]
    confusions: Floats


def read_plan(sweep: Path) -> dict[str, Any]:
    """What a sweep is and trains, its sweep.json. UserError where the folder is no sweep, or the file is damaged."""
    path = sweep / SWEEP_FILE
    if not path.is_file():
        raise UserError(f"{sweep}: no {SWEEP_FILE} there, so no sweep: give the folder that ablate.py wrote (out=DIR)")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = _PLAN_KEYS - content.keys()
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error}): run ablate.py again to have it written anew") from error
    if missing:
        raise UserError(f"{path}: no {sorted(missing)[0]} in it: run ablate.py again to have it written anew")
    return dict(content)


def read_trials(sweep: Path) -> list[Trial]:
    """The trials that ended, as trials.jsonl has them; of one that stands there twice the last.

    UserError where the folder is no sweep or a line is damaged; a last line that is just being written is left out.
    """
    read_plan(sweep)
    path = sweep / TRIALS_FILE
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    trials: dict[str, Trial] = {}
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") or not line.strip():
            continue
        try:
            values = json.loads(line)
            trial = Trial(**{name: values[name] for name in _TRIAL_FIELDS} | {"run": sweep / values["run"]})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path}, line {number}: damaged ({error!r}): run ablate.py again to have it written anew"
            ) from error
        trials.pop(trial.trial, None)
        trials[trial.trial] = trial
    return list(trials.values())


def read_answers(trials: Sequence[Trial]) -> Answers:
    """The answers of one arm's trials that count (at least one). UserError where they cannot be put together."""
    trials = sorted(trials, key=lambda trial: trial.seed)
    seeds = tuple(trial.seed for trial in trials)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"{trials[0].run.parent}: arm {trials[0].arm} has two trials of one seed: {seeds}")
    parts = [_answers_of(trial) for trial in trials]
    for part, trial in zip(parts, trials, strict=True):
        if (part.images, part.cell_types) != (parts[0].images, parts[0].cell_types):
            raise UserError(
                f"{trial.run}: scored on other test images than {trials[0].run}, of the same arm: remove the one "
                "whose data set changed; ablate.py does it again"
            )
    return replace(parts[0], seeds=seeds, confusions=np.concatenate([part.confusions for part in parts]))


def _answers_of(trial: Trial) -> Answers:
    evaluation = trial.evaluation
    assert evaluation is not None, "a trial that does not count"
    assert evaluation.predictions is not None
    frame, cell_types = evaluation.predictions, tuple(evaluation.record["cell_types"])
    if "parent" not in frame:
        raise UserError(f"{trial.run}/evaluation/metrics.parquet: no column parent: score the run again (evaluate.py)")
    if len(frame) != evaluation.record["dataset"]["count"]:
        raise UserError(f"{trial.run}/evaluation: metrics.parquet and metrics.json disagree: score the run again")
    raw = frame["parent"].where(frame["parent"] != "", frame["id"])
    groups = frame["group"].where(frame["group"] != "", raw)
    names, group = np.unique(groups.to_numpy(str), return_inverse=True)
    numbers = {name: number for number, name in enumerate(cell_types)}
    confusions = np.zeros((1, len(names), len(cell_types), len(cell_types)))
    np.add.at(confusions[0], (group, frame["cell_type"].map(numbers), frame["predicted"].map(numbers)), 1.0)
    images = tuple(sorted(zip(raw, frame["cell_type"], groups, strict=True)))
    return Answers((trial.seed,), cell_types, images, confusions)


def measures(confusions: Floats) -> Floats:
    """Confusion counts [..., C, C] -> [..., 5, 1 + C]: MEASURES over all types, and of each type against the rest.

    Over all, accuracy is the share of right answers, the others are the mean over the types that are present.
    NaN for a type without an image.
    """
    found = measures_of_confusion(confusions)
    rows = []
    for name in MEASURES:
        of_types = found["type_accuracy" if name == "accuracy" else name]
        there = ~np.isnan(of_types)
        with np.errstate(invalid="ignore"):
            mean = np.where(there, of_types, 0.0).sum(axis=-1) / there.sum(axis=-1)
        overall = found["accuracy"] if name == "accuracy" else mean
        rows.append(np.concatenate([overall[..., None], of_types], axis=-1))
    return np.stack(rows, axis=-2)


def resampled(answers: Answers) -> Floats:
    """`measures` [B, S, 5, 1 + C] of each seed on groups drawn with replacement.

    Two arms that answered to the same images see the same groups in each resample.
    """
    seeds, groups, types, _ = answers.confusions.shape
    flat = answers.confusions.transpose(1, 0, 2, 3).reshape(groups, -1)
    draws = group_weights(groups, RESAMPLES, _BOOTSTRAP_SEED)
    return np.concatenate([measures((weights.T @ flat).reshape(-1, seeds, types, types)) for weights in draws])


def over_seeds(draws: Floats, purpose: int = 1) -> Floats:
    """The mean [B, ...] over seeds drawn with replacement from draws [B, S, ...].

    A resample of S seeds varies by (S - 1) / S of what S fresh ones would: its distance from the mean of all
    is widened to make up for it. purpose: other numbers draw other seeds.
    """
    count, seeds = draws.shape[:2]
    mean = draws.mean(axis=1)
    if seeds == 1:
        return np.asarray(mean)
    drawn = np.random.default_rng([_BOOTSTRAP_SEED, purpose]).integers(seeds, size=(count, seeds))
    of_drawn = np.take_along_axis(draws, drawn.reshape(count, seeds, *[1] * (draws.ndim - 2)), axis=1).mean(axis=1)
    return np.asarray(mean + math.sqrt(seeds / (seeds - 1)) * (of_drawn - mean))


def arm_scores(answers: Answers) -> dict[str, Any]:
    """Mean over seeds and 95 % interval of each of MEASURES: {"overall": {...}, "per_type": {type: {...}}}.

    Overall has "balanced_accuracy" too, by definition the mean sensitivity; a type has its "count" of images.
    """
    draws = np.clip(over_seeds(resampled(answers)), 0.0, 1.0)
    values = measures(answers.confusions.sum(axis=1)).mean(axis=0)
    return _tables(answers, values, draws, exact=True)


def difference(arm: Answers, reference: Answers) -> dict[str, Any]:
    """Arm minus reference on the same test images, and the same seeds where both have some, as `arm_scores` has it.

    "paired_seeds": those seeds; empty: the two have none in common, and their seeds are drawn apart.
    Raises ValueError, saying why, where the test images or types of the two differ.
    """
    if arm.images != reference.images:
        apart = len(set(arm.images) ^ set(reference.images))
        raise ValueError(f"not paired: {apart} test images are only in one of the two, or of another type or group")
    if arm.cell_types != reference.cell_types:
        raise ValueError("not paired: the classifiers know other types")
    paired = sorted(set(arm.seeds) & set(reference.seeds))
    draws, points = [], []
    for answers in (arm, reference):
        chosen = [answers.seeds.index(seed) for seed in paired] or list(range(len(answers.seeds)))
        draws.append(resampled(answers)[:, chosen])
        points.append(measures(answers.confusions[chosen].sum(axis=1)).mean(axis=0))
    ours, theirs = draws
    spread = over_seeds(ours - theirs) if paired else over_seeds(ours) - over_seeds(theirs, purpose=2)
    return {"paired_seeds": paired} | _tables(arm, points[0] - points[1], spread, exact=False)


def _tables(answers: Answers, values: Floats, draws: Floats, *, exact: bool) -> dict[str, Any]:
    """values [5, 1 + C] and draws [B, 5, 1 + C] by name; exact: a bound where all answers are right."""
    behind = _groups_behind(answers)
    present = behind["sensitivity"] > 0

    def estimate(measure: str, column: int) -> Estimate:
        row = MEASURES.index(measure)
        value, of_type = float(values[row, column]), behind[measure][max(column - 1, 0)]
        if math.isnan(value):
            return {"value": None, "low": None, "high": None}
        if answers.confusions.shape[1] < 2 or (column > 0 and of_type < 2):
            return {"value": value, "low": None, "high": None}
        bounded = exact and measure in (_PROPORTIONS if column > 0 else ("accuracy", "sensitivity"))
        trials = behind["sensitivity"][present] if column == 0 and measure == "sensitivity" else np.array([of_type])
        return interval(value, draws[:, row, column], trials if bounded else None)

    overall = {measure: estimate(measure, 0) for measure in MEASURES}
    counts = answers.confusions[0].sum(axis=(0, 2))
    return {
        "overall": overall | {"balanced_accuracy": overall["sensitivity"]},
        "per_type": {
            cell_type: {"count": int(counts[column - 1])} | {name: estimate(name, column) for name in MEASURES}
            for column, cell_type in enumerate(answers.cell_types, start=1)
        },
    }


def _groups_behind(answers: Answers) -> dict[str, Floats]:
    """How many groups each measure of a type rests on, [C]: an interval needs two."""
    of_group = answers.confusions.sum(axis=0)
    has, said, groups = of_group.sum(axis=2), of_group.sum(axis=1), float(len(of_group))
    of_type, answered = (has > 0).sum(axis=0).astype(float), (said > 0).sum(axis=0).astype(float)
    return {
        "accuracy": np.full(len(of_type), groups),
        "sensitivity": of_type,
        "specificity": (has.sum(axis=1, keepdims=True) > has).sum(axis=0).astype(float),
        "precision": np.where(answered > 0, answered, of_type),
        "f1": of_type,
    }
