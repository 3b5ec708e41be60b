"""A sweep's statistics: means, intervals over seeds and images, paired differences, costs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from torch import nn

from data_pipeline.errors import UserError
from models.classifiers.build import build_classifier
from tests.sweep_folder import TINY, TYPES, add_answers, add_log, add_trial, answers, write_sweep
from trainer.experiments.results import (
    Answers,
    arm_scores,
    difference,
    over_seeds,
    read_answers,
    read_trials,
)
from trainer.experiments.summary import summarize
from trainer.metrics.bootstrap import all_right_lower_bound
from trainer.runs.network_size import multiply_accumulates

Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def read_arm(sweep: Path, arm: str) -> Answers:
    return read_answers([trial for trial in read_trials(sweep) if trial.arm == arm])


def correlated(groups: int, per_group: int) -> tuple[Numbers, list[str]]:
    """Labels and groups: every type in each group."""
    labels = np.tile(np.arange(per_group, dtype=np.int64) % len(TYPES), groups)
    return labels, [f"lab/{group}" for group in range(groups) for _ in range(per_group)]


def test_means_and_paired_differences_by_hand(tmp_path: Path) -> None:
    """Six images, two arms, two seeds: few enough to be counted on paper."""
    labels = np.array([0, 0, 1, 1, 2, 2])
    groups = ["lab/a", "lab/b", "lab/c", "lab/d", "lab/e", "lab/f"]
    given = {
        ("full", 0): [0, 0, 1, 1, 2, 2],  # all right
        ("full", 1): [0, 1, 1, 1, 2, 2],  # a basophil taken for a platelet
        ("without_ge", 0): [0, 1, 1, 1, 2, 0],
        ("without_ge", 1): [1, 1, 1, 1, 2, 2],
    }
    write_sweep(tmp_path)
    for (arm, seed), predicted in given.items():
        add_answers(add_trial(tmp_path, arm, seed), labels, np.array(predicted), groups)
    full, without = read_arm(tmp_path, "full"), read_arm(tmp_path, "without_ge")
    scores = arm_scores(full)
    overall, basophil, platelet = scores.overall, scores.per_type["basophil"], scores.per_type["platelet"]
    assert overall["accuracy"].value == pytest.approx((1 + 5 / 6) / 2)
    assert overall["balanced_accuracy"].value == pytest.approx((1 + 2.5 / 3) / 2)
    assert overall["specificity"].value == pytest.approx((1 + (1 + 3 / 4 + 1) / 3) / 2)
    assert scores.images["basophil"] == 2
    assert basophil["sensitivity"].value == pytest.approx((1 + 1 / 2) / 2)
    assert basophil["precision"].value == 1
    assert platelet["precision"].value == pytest.approx((1 + 2 / 3) / 2)
    assert platelet["f1"].value == pytest.approx((1 + 4 / 5) / 2)
    assert platelet["accuracy"].value == pytest.approx((1 + 5 / 6) / 2)
    apart = difference(without, full)
    assert apart.paired_seeds == [0, 1]
    assert apart.overall["accuracy"].value == pytest.approx((-2 / 6 - 1 / 6) / 2)
    assert apart.per_type["basophil"]["sensitivity"].value == pytest.approx((-1 / 2 - 1 / 2) / 2)
    assert apart.per_type["smudge cell"]["sensitivity"].value == pytest.approx((-1 / 2 - 0) / 2)


def plain_bootstrap(right: dict[str, Floats], kind: Numbers, groups: list[str]) -> dict[str, Floats]:
    """The same statistics by one resample after the other, from which images each seed [S, n] got right."""
    generator = np.random.default_rng(99)
    of_group = {name: np.flatnonzero(np.array(groups) == name) for name in dict.fromkeys(groups)}
    names, seeds = list(of_group), len(right["full"])
    found: dict[str, list[float]] = {"accuracy": [], "basophil": [], "difference": []}
    for _ in range(3000):
        chosen = np.concatenate([of_group[names[number]] for number in generator.integers(len(names), size=len(names))])
        drawn = generator.integers(seeds, size=seeds)
        apart = (right["without_ge"] - right["full"])[:, chosen].mean(axis=1)
        basophils = chosen[kind[chosen] == 0]
        each = {
            "accuracy": right["full"][:, chosen].mean(axis=1),
            "basophil": right["full"][:, basophils].mean(axis=1),
            "difference": apart,
        }
        for name, values in each.items():
            found[name].append(values.mean() + np.sqrt(seeds / (seeds - 1)) * (values[drawn].mean() - values.mean()))
    return {name: np.percentile(values, [2.5, 97.5]) for name, values in found.items()}


def test_intervals_equal_a_plain_bootstrap(tmp_path: Path) -> None:
    """Intervals that leave out the seeds or the groups would call noise a finding."""
    labels, groups = correlated(30, 6)
    write_sweep(tmp_path)
    right = {}
    for arm, share in (("full", 0.85), ("without_ge", 0.75)):
        given = [answers(labels, share - 0.06 * seed, 10 * seed + len(arm)) for seed in range(3)]
        for seed, predicted in enumerate(given):
            add_answers(add_trial(tmp_path, arm, seed), labels, predicted, groups)
        right[arm] = np.array([predicted == labels for predicted in given]).astype(float)
    expected = plain_bootstrap(right, labels, groups)
    scores = arm_scores(read_arm(tmp_path, "full"))
    apart = difference(read_arm(tmp_path, "without_ge"), read_arm(tmp_path, "full"))
    found = {
        "accuracy": scores.overall["accuracy"],
        "basophil": scores.per_type["basophil"]["sensitivity"],
        "difference": apart.overall["accuracy"],
    }
    for name, (low, high) in expected.items():
        assert found[name].low == pytest.approx(low, abs=0.012), name
        assert found[name].high == pytest.approx(min(high, 1.0), abs=0.012), name


def test_spread_over_seeds_is_that_of_their_mean() -> None:
    """A plain bootstrap of two seeds would show half of their variance."""
    for values in ([0.9, 0.96], [0.8, 0.9, 0.85, 0.97, 0.7]):
        draws = over_seeds(np.tile(np.array(values), (40_000, 1)), [(None, seed) for seed in range(len(values))])
        assert draws.mean() == pytest.approx(np.mean(values), abs=1e-3)
        assert draws.std() == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)), rel=0.02)


def test_more_seeds_of_equal_answers_add_nothing_and_unlike_ones_widen(tmp_path: Path) -> None:
    """With one seed the interval is of images alone; seeds that differ must show in it."""
    labels, groups = correlated(40, 3)
    same = answers(labels, 0.8, 1)
    write_sweep(tmp_path)
    widths = {}
    cases = {"one": [same], "equal": [same, same], "unlike": [answers(labels, 0.95, 2), answers(labels, 0.65, 3)]}
    for arm, given in cases.items():
        for seed, predicted in enumerate(given):
            add_answers(add_trial(tmp_path, arm, seed), labels, predicted, groups)
        accuracy = arm_scores(read_arm(tmp_path, arm)).overall["accuracy"]
        widths[arm] = accuracy.high - accuracy.low
    assert widths["one"] == pytest.approx(widths["equal"])
    assert widths["unlike"] > 1.5 * widths["one"]


def test_pairing_takes_out_what_both_arms_find_hard(tmp_path: Path) -> None:
    """Two arms that fail on the same patients differ by little, and surely."""
    labels, groups = correlated(40, 3)
    hard = np.repeat(np.random.default_rng(0).random(40) < 0.4, 3)
    base = np.where(hard, (labels + 1) % 3, labels)
    worse = base.copy()
    once = np.flatnonzero(~hard)[::3][:12]  # one image of each of twelve patients
    worse[once] = (worse[once] + 1) % 3
    write_sweep(tmp_path)
    for arm, predicted in (("full", base), ("without_ge", worse)):
        add_answers(add_trial(tmp_path, arm, 0), labels, predicted, groups)
    full, without = read_arm(tmp_path, "full"), read_arm(tmp_path, "without_ge")
    apart, alone = difference(without, full).overall["accuracy"], arm_scores(full).overall["accuracy"]
    assert apart.value == pytest.approx(-12 / 120)
    assert apart.high - apart.low < (alone.high - alone.low) / 2
    assert apart.high < 0


def test_all_right_has_the_exact_bound(tmp_path: Path) -> None:
    """Eight images that were all right do not prove a sensitivity of 100 %."""
    labels, groups = correlated(8, 3)
    write_sweep(tmp_path)
    for seed in (0, 1):
        add_answers(add_trial(tmp_path, "full", seed), labels, labels, groups)
    scores = arm_scores(read_arm(tmp_path, "full"))
    sensitivity = scores.per_type["platelet"]["sensitivity"]
    assert (sensitivity.value, sensitivity.high) == (1.0, 1.0)
    assert sensitivity.low == pytest.approx(0.025 ** (1 / 8))
    assert scores.overall["sensitivity"].low == pytest.approx(all_right_lower_bound(np.array([8, 8, 8])))


def test_normalised_images_are_paired_with_their_raw_ones(tmp_path: Path) -> None:
    """An arm without normalisation answers to the same cells under other ids."""
    labels, groups = correlated(12, 3)
    write_sweep(tmp_path)
    for arm, normalized in (("full", True), ("without_normalization", False)):
        for seed in (0, 1):
            run = add_trial(tmp_path, arm, seed)
            add_answers(run, labels, answers(labels, 0.8, seed + len(arm)), groups, normalized=normalized)
    full, without = read_arm(tmp_path, "full"), read_arm(tmp_path, "without_normalization")
    assert full.images == without.images
    assert difference(without, full).paired_seeds == [0, 1]


def test_arms_of_other_test_images_are_not_paired(tmp_path: Path) -> None:
    """A difference between other images would say something of the images."""
    labels, groups = correlated(12, 3)
    write_sweep(tmp_path)
    add_answers(add_trial(tmp_path, "full", 0), labels, labels, groups)
    add_answers(add_trial(tmp_path, "original", 0), labels[:-1], labels[:-1], groups[:-1])
    add_answers(add_trial(tmp_path, "without_ge", 0), labels, labels, groups, normalized=True, parents=False)
    relabelled = labels.copy()
    relabelled[0] = 2
    add_answers(add_trial(tmp_path, "few_shot_only", 0), relabelled, labels, groups)
    full = read_arm(tmp_path, "full")
    for arm, count in (("original", 1), ("without_ge", 72), ("few_shot_only", 2)):
        with pytest.raises(ValueError, match=f"not paired: {count} test images"):
            difference(read_arm(tmp_path, arm), full)
    arms = {arm.arm: arm for arm in summarize(tmp_path).arms}
    assert next(iter(arms)) == "full"
    assert arms["original"].difference is None
    assert "not paired: 1 test images" in (arms["original"].not_paired or "")


def test_seeds_that_do_not_match_are_not_paired_but_compared(tmp_path: Path) -> None:
    """An arm may have trained with other seeds; where some match, only those count."""
    labels, groups = correlated(30, 3)
    write_sweep(tmp_path)
    seeds = {"full": (0, 1, 2), "without_ge": (1, 2, 3), "original": (7, 8)}
    given = {}
    for arm, numbers in seeds.items():
        for seed in numbers:
            given[arm, seed] = answers(labels, 0.8, seed + len(arm))
            add_answers(add_trial(tmp_path, arm, seed), labels, given[arm, seed], groups)
    right = {key: float((predicted == labels).mean()) for key, predicted in given.items()}
    full = read_arm(tmp_path, "full")
    some = difference(read_arm(tmp_path, "without_ge"), full)
    assert some.paired_seeds == [1, 2]
    expected = np.mean([right["without_ge", seed] - right["full", seed] for seed in (1, 2)])
    assert some.overall["accuracy"].value == pytest.approx(expected)
    none = difference(read_arm(tmp_path, "original"), full)
    assert none.paired_seeds == []
    apart = np.mean([right["original", seed] for seed in (7, 8)]) - np.mean([right["full", seed] for seed in (0, 1, 2)])
    assert none.overall["accuracy"].value == pytest.approx(apart)
    assert none.overall["accuracy"].low < apart < none.overall["accuracy"].high


def test_trials_are_read_as_they_ended(tmp_path: Path) -> None:
    """The report of a running sweep must neither fail nor count what is not done."""
    labels, groups = correlated(4, 3)
    write_sweep(tmp_path)
    assert read_trials(tmp_path) == []
    add_trial(tmp_path, "full", 0, status="failed", seconds=None, epochs=None)
    line = (tmp_path / "trials.jsonl").read_text()
    again = json.dumps(json.loads(line) | {"status": "finished"})
    (tmp_path / "trials.jsonl").write_text(f"{line}{again}\n")
    add_answers(tmp_path / "trials/full-seed0", labels, labels, groups)
    add_trial(tmp_path, "without_ge", 0)  # said to be finished, and has no answers
    (tmp_path / "trials/original-seed1").mkdir()
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"trial": "original-se')  # just being written
    trials = read_trials(tmp_path)
    assert [(trial.trial, trial.counts) for trial in trials] == [("full-seed0", True), ("without_ge-seed0", False)]
    assert summarize(tmp_path).unfinished == ["original-seed1"]


def test_folders_that_are_no_sweep_are_one_line(tmp_path: Path) -> None:
    """The line says which file is wrong, and what to do."""
    with pytest.raises(UserError, match=r"no sweep\.json there, so no sweep: give the folder"):
        read_trials(tmp_path)
    write_sweep(tmp_path)
    for line, why in (("{", "damaged"), ('{"trial": "x"}', "damaged"), ("[]", "damaged")):
        (tmp_path / "trials.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=rf"trials\.jsonl, line 1: {why}") as caught:
            read_trials(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "sweep.json").write_text('{"name": "x"}')
    with pytest.raises(UserError, match=r"sweep\.json: damaged \(written by an older version\): remove it"):
        read_trials(tmp_path)


def test_trials_of_an_arm_must_fit_together(tmp_path: Path) -> None:
    """A mean over seeds of other images, or of one seed twice, is none."""
    labels, groups = correlated(4, 3)
    write_sweep(tmp_path)
    add_answers(add_trial(tmp_path, "full", 0), labels, labels, groups)
    add_answers(add_trial(tmp_path, "full", 1), labels[1:], labels[1:], groups[1:])
    with pytest.raises(UserError, match="full-seed1: scored on other test images than"):
        read_arm(tmp_path, "full")
    add_answers(add_trial(tmp_path, "original", 0), labels, labels, groups)
    add_answers(add_trial(tmp_path, "original", 0, trial="again"), labels, labels, groups)
    with pytest.raises(UserError, match="two trials of the same seeds"):
        read_arm(tmp_path, "original")
    path = tmp_path / "trials/original-seed0/evaluation/metrics.parquet"
    frame = pd.read_parquet(path)
    frame.drop(columns="parent").to_parquet(path)
    with pytest.raises(UserError, match="no column parent"):
        read_answers([trial for trial in read_trials(tmp_path) if trial.trial == "original-seed0"])


def test_operations_of_a_network_counted_by_hand() -> None:
    """A convolution's multiplications are outputs times its kernel, a linear layer's its weights."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 5))
    assert multiply_accumulates(network, 8) == 8 * 8 * 4 * (3 * 3 * 3) + 4 * 8 * 8 * 5
    grouped = nn.Conv2d(3, 6, 1, groups=3)
    assert multiply_accumulates(grouped, 4) == 4 * 4 * 6 * 1


def test_cost_of_an_arm(tmp_path: Path) -> None:
    """Images per second are images over seconds, not the mean of each epoch's speed."""
    labels, groups = correlated(4, 3)
    write_sweep(tmp_path)
    for seed in (0, 1):
        run = add_trial(tmp_path, "full", seed)
        add_log(run, [0.5, 0.7])
        add_answers(run, labels, labels, groups)
    (arm,) = summarize(tmp_path).arms
    assert arm.cost.seconds == 110.0
    assert arm.cost.images_per_second == pytest.approx((10 * 100 + 20 * 200) / 30)
    assert arm.cost.epochs == 2
    network = build_classifier(TINY, len(TYPES))
    assert arm.cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert arm.cost.multiply_accumulates == multiply_accumulates(network, 16)


def test_the_luck_of_generators_is_in_the_interval(tmp_path: Path) -> None:
    """Two generators of which one is worse: classifiers of one of them alone would hide how much that is."""
    labels, groups = correlated(40, 3)
    write_sweep(tmp_path)
    shares = {(0, 0): 0.9, (0, 1): 0.91, (4, 0): 0.7, (4, 1): 0.71}
    for (generator, seed), share in shares.items():
        run = add_trial(tmp_path, "full", seed, generator_seed=generator, trial=f"full-generator{generator}-seed{seed}")
        add_answers(run, labels, answers(labels, share, generator + seed), groups)
    for seed in (0, 1):
        add_answers(add_trial(tmp_path, "original", seed), labels, answers(labels, 0.8, 9 + seed), groups)
    both, original = read_arm(tmp_path, "full"), read_arm(tmp_path, "original")
    assert both.seeds == ((0, 0), (0, 1), (4, 0), (4, 1))
    first = arm_scores(both.of_seeds(both.seeds[:2])).overall["accuracy"]
    alone = dataclasses.replace(both.of_seeds(both.seeds[:2]), seeds=((None, 0), (None, 1)))
    assert arm_scores(alone).overall["accuracy"] == first, "one generator seed gives other numbers than none"
    found = arm_scores(both).overall["accuracy"]
    assert found.low < 0.71 < 0.9 < found.high
    assert found.high - found.low > 1.3 * (first.high - first.low)
    apart = difference(original, both)
    assert apart.paired_seeds == [0, 1]
    right = [float((images.predicted == images.labels).mean()) for arm in (original, both) for images in arm.scored]
    assert apart.overall["accuracy"].value == pytest.approx(np.mean(right[:2]) - np.mean(right[2:]))
    assert apart.overall["accuracy"].low < -0.05 < 0.05 < apart.overall["accuracy"].high
    (arm, _) = summarize(tmp_path).arms
    assert (arm.seeds, arm.generator_seeds) == ([0, 1], [0, 4])


def test_points_of_a_search_are_ranked_on_validation(tmp_path: Path) -> None:
    """The winner is the best mean over its seeds, not the luckiest trial, and its test score alone is told."""
    labels, groups = correlated(10, 3)
    rates = {0.1: (0.95, 0.55), 0.01: (0.80, 0.84, 0.3), 0.001: (0.99,)}
    space = {"optimizer.learning_rate": {"grid_search": list(rates)}}
    write_sweep(tmp_path, kind="search", reference=None, space=space, seeds=[0, 1, 2])
    for number, (rate, values) in enumerate(rates.items()):
        for seed, value in enumerate(values):
            status = "stopped" if rate == 0.001 or value == 0.3 else "finished"
            parameters = {"optimizer.learning_rate": rate}
            run = add_trial(tmp_path, f"point{number}", seed, status, parameters=parameters)
            add_log(run, [value - 0.3, value, value - 0.1])
            if status == "finished":
                add_answers(run, labels, answers(labels, 0.8, seed), groups)
    summary = summarize(tmp_path)
    places = [point.parameters["optimizer.learning_rate"] for point in summary.points]
    assert places == [0.01, 0.1, 0.001]
    assert summary.points[0].metric.value == pytest.approx(0.82)  # the one that was stopped had no time
    assert summary.points[0].seeds == [0, 1, 2]
    (winner,) = summary.arms
    assert winner.seeds == [0, 1]
    assert winner.arm == "point1"
    assert [trial.metric_epoch for trial in summary.trials] == [1] * 6
    assert summary.not_begun == ["point0-seed2", "point2-seed1", "point2-seed2"]
