"""A sweep's page and tables: the numbers of the trials, the thesis beside them, and nothing silently left out."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.conftest import TINY_TYPES
from tests.sweep_folder import ARMS, TYPES, add_answers, add_log, add_trial, answers, write_sweep
from tests.trainer.experiments.test_ablation_arms import arms_of
from tests.trainer.test_report import Page
from trainer.experiments.ablation import AblationConfig
from trainer.experiments.sweep_report import write_sweep_report
from trainer.experiments.sweep_sections import duration
from trainer.metrics.evaluation import ClassifierEvaluation
from trainer.reports.thesis_tables import sweep_number

LABELS = np.tile(np.arange(3), 20)
GROUPS = [f"lab/{group}" for group in range(20) for _ in range(3)]

GE = "senet154_ge_thesis"
# A sweep of the thesis's own models.
THESIS = {
    "fixed": [f"model={GE}"],
    "ablation": {
        "stain": ["model=w_cyclegan_gp_thesis"],
        "conditional": ["model=c_wgan_gp_thesis"],
        "few_shot": ["model=few_shot_meta_thesis"],
    },
}


def finished(sweep: Path, arm: str, seed: int, share: float, **values: object) -> ClassifierEvaluation:
    """A finished trial with a share of right answers; its evaluation's record."""
    run = add_trial(sweep, arm, seed, **values)
    add_log(run, [share - 0.1, share])
    return add_answers(run, LABELS, answers(LABELS, share, seed + len(arm)), GROUPS)


def table(page: Page, first: str, second: str) -> list[list[str]]:
    """The one table whose head begins with these words."""
    (found,) = [each for each in page.tables if each[0][:2] == [first, second]]
    return found


def test_ablation_with_an_arm_missing(tmp_path: Path) -> None:
    """Arms that are not there yet, and trials that failed, stand in the page by name."""
    write_sweep(tmp_path, **THESIS)
    records = {(arm, seed): finished(tmp_path, arm, seed, share)
               for arm, share in (("full", 0.9), ("without_ge", 0.7)) for seed in (0, 1)}  # fmt: skip
    add_trial(tmp_path, "original", 0, status="failed", seconds=None, epochs=None)
    finished(tmp_path, "without_normalization", 0, 0.8)
    add_trial(tmp_path, "without_normalization", 1, status="stopped")
    (tmp_path / "trials/few_shot_only-seed1").mkdir()
    path = write_sweep_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    page.assert_self_contained()
    for words in (
        "Arm original has no finished trial yet: original-seed0 failed",
        "Arm few_shot_only has no finished trial yet: none has ended",
        "Arm conditional_only has no finished trial yet",
        "Trial without_normalization-seed1 does not count: stopped",
        "Under way or interrupted: few_shot_only-seed1",
        "Not begun: few_shot_only-seed0, conditional_only-seed0, conditional_only-seed1, original-seed1",
        "run=again seed=1",
        "interval of images only",
        "Each generator was trained once",
        "compare figure 60",
        "compare figure 59",
    ):
        assert words in page.text, words
    assert "compare figure 61" not in page.text
    scores = table(page, "arm", "seeds")
    assert [row[0] for row in scores[1:]] == ["Full", "Without ge", "Without normalization"]
    accuracies = [records["full", seed].scores["accuracy"].value for seed in (0, 1)]
    assert scores[1][2].startswith(f"{100 * np.mean(accuracies):.1f} ")
    assert scores[1][-3:] == ["98.4", "98.58", "98.21"]
    assert scores[2][-3:] == ["96.9", "-", "-"]
    apart = table(page, "arm", "paired seeds")
    ours = [[records[arm, seed].scores["accuracy"].value for seed in (0, 1)]
            for arm in ("without_ge", "full")]  # fmt: skip
    assert apart[1][2].startswith(f"{100 * (np.mean(ours[0]) - np.mean(ours[1])):+.1f} ")
    assert apart[1][-1] == "-1.5"
    assert apart[2][1].startswith("0 interval of images only")
    # Bars, differences, and two arms type by type.
    assert page.tags.count("svg") == 4
    assert not list(tmp_path.glob(".*"))


def test_tables_hold_the_numbers_of_the_page(tmp_path: Path) -> None:
    """What a person computes with must be what was shown; no number of the thesis stands beside other models."""
    write_sweep(tmp_path, arms=["full", "without_ge"])
    for arm, share in (("without_ge", 0.7), ("full", 0.9)):
        for seed in (0, 1):
            finished(tmp_path, arm, seed, share)
    page = Page(write_sweep_report(tmp_path))
    assert "thesis" not in " ".join(table(page, "arm", "seeds")[0])
    assert "98.4" not in page.text
    results = json.loads((tmp_path / "results.json").read_text())
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert [(line["arm"], line["cell_type"]) for line in lines] == [
        (arm, name) for arm in ("full", "without_ge") for name in ("all", *TYPES)
    ]
    assert results["without_result"] == {}
    assert results["unfinished"] == results["not_begun"] == []
    without = results["arms"][1]
    row = lines[4]
    assert float(row["accuracy_low"]) == without["scores"]["overall"]["accuracy"]["low"]
    assert float(row["balanced_accuracy_difference"]) == without["difference"]["overall"]["balanced_accuracy"]["value"]
    assert row["paired_seeds"] == "0 1"
    assert int(row["parameters"]) == without["cost"]["parameters"]
    assert float(lines[5]["sensitivity"]) == without["scores"]["per_type"]["basophil"]["sensitivity"]["value"]
    assert lines[0]["accuracy_difference"] == lines[5]["balanced_accuracy"] == lines[5]["parameters"] == ""
    first = [(tmp_path / name).read_bytes() for name in ("report.html", "results.json", "table.csv")]
    write_sweep_report(tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("report.html", "results.json", "table.csv")] == first


def test_comparison_stands_beside_table_24(tmp_path: Path) -> None:
    """Figure 52 and table 24, with the thesis's numbers for the models that it names."""
    write_sweep(tmp_path, kind="comparison", reference=GE, models=["vgg19", GE, "timm"])
    for arm, share in (("vgg19", 0.7), (GE, 0.9), ("timm", 0.8)):
        finished(tmp_path, arm, 0, share, seconds=3 * 3600.0 + 5 * 60)
    page = Page(write_sweep_report(tmp_path))
    page.assert_self_contained()
    costs = table(page, "arm", "accuracy")
    assert costs[0][-1] == "thesis: training time"
    assert [(row[0], row[-1]) for row in costs[1:]] == [
        ("Senet154 ge thesis", "8 h 3 min"),
        ("Vgg19", "16 h 22 min"),
        ("Timm", "-"),
    ]
    assert costs[1][4] == "3 h 5 min"
    assert "compare figure 52" in page.text
    assert "1 h 20 min by the text beside figure 51" in page.text
    assert table(page, "arm", "paired seeds")[1][-1] == "-14.8"


def test_arms_of_other_images_are_said_to_be_unpaired(tmp_path: Path) -> None:
    """No difference is shown where there is none to be had."""
    write_sweep(tmp_path, arms=["full", "original"])
    finished(tmp_path, "full", 0, 0.9)
    run = add_trial(tmp_path, "original", 0)
    add_answers(run, LABELS[3:], LABELS[3:], GROUPS[3:])
    page = Page(write_sweep_report(tmp_path))
    page.assert_self_contained()
    assert "Original against the reference: not paired: " in page.text
    assert not [each for each in page.tables if each[0][:2] == ["arm", "paired seeds"]]


def test_search_shows_the_winner_and_no_other_test_score(tmp_path: Path) -> None:
    """Test scores of all points beside each other would invite to choose by them."""
    space = {"optimizer.learning_rate": {"loguniform": [1e-4, 1.0]}}
    write_sweep(tmp_path, kind="search", reference=None, space=space, trials=4, seeds=[0])
    scores = {}
    for number, (rate, share) in enumerate(((1e-4, 0.55), (1e-2, 0.95), (1e-3, 0.75))):
        parameters = {"optimizer.learning_rate": rate, "data.sampling": ("uniform", "class_balanced")[number % 2]}
        record = finished(tmp_path, f"point{number}", 0, share, parameters=parameters)
        scores[rate] = record.scores["accuracy"].value
    assert len(set(scores.values())) == 3
    stopped = add_trial(tmp_path, "point3", 0, status="stopped", parameters={"optimizer.learning_rate": 1.0})
    add_log(stopped, [0.2])
    page = Page(write_sweep_report(tmp_path))
    page.assert_self_contained()
    points = table(page, "place", "validation balanced accuracy")
    assert [row[2] for row in points[1:]] == ["0.01", "0.001", "0.0001", "1"]
    assert "one look at the test split" in page.text
    assert "1 finished, 0" not in page.text
    (best,) = [each for each in page.tables if each[0][1] == "seeds"]
    assert best[1][2].startswith(f"{100 * scores[1e-2]:.1f} ")
    shown = " ".join(cell for each in page.tables for row in each for cell in row)
    assert f"{100 * scores[1e-3]:.1f} " not in shown
    assert "3 finished, 1 stopped" in page.text
    assert page.tags.count("svg") == 2


def test_a_search_whose_trials_were_all_stopped_has_no_test_score(tmp_path: Path) -> None:
    write_sweep(tmp_path, kind="search", reference=None, space={"train.epochs": {"grid_search": [1]}}, seeds=[0])
    add_log(add_trial(tmp_path, "point0", 0, status="stopped", parameters={"train.epochs": 1}), [0.2])
    assert "No point has a finished trial yet" in Page(write_sweep_report(tmp_path)).text


def test_report_before_anything_has_ended(tmp_path: Path) -> None:
    """The report can be asked for at any time."""
    plans: dict[str, dict[str, object]] = {
        "ablation": {},
        "comparison": {"models": ["vgg19"]},
        "search": {"space": {"train.epochs": {"grid_search": [1, 2]}}},
    }
    for kind, plan in plans.items():
        write_sweep(tmp_path / kind, kind=kind, **plan)
        page = Page(write_sweep_report(tmp_path / kind))
        page.assert_self_contained()
        assert "none; 0 under way or interrupted" in page.text
        assert {"ablation": "full-seed0", "comparison": "vgg19-seed1", "search": "point1-seed1"}[kind] in page.text
    with pytest.raises(UserError, match="no sweep"):
        write_sweep_report(tmp_path)


def test_the_thesis_knows_its_own_arms(two_stains: Dataset) -> None:
    """A renamed arm would silently lose the number that it is compared with."""
    arms = arms_of(AblationConfig(per_type=1000, rare_types=list(TINY_TYPES[:1])), two_stains.root)
    assert tuple(arms) == (*ARMS, "class_balanced")
    assert all(sweep_number("ablation", arm, "accuracy") for arm in ARMS)
    assert sweep_number("ablation", "few_shot_only", "accuracy") == "95.0"
    assert sweep_number("comparison", "seresnext50_32x4d", "accuracy") == "95.9"
    assert sweep_number("comparison", "senet154", "accuracy") == ""
    assert [duration(seconds) for seconds in (None, 44.6, 750, 28_980)] == ["-", "45 s", "12 min 30 s", "8 h 3 min"]
