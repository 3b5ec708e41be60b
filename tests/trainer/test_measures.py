"""The table of measures: if these fail, a new measure is missing from a report, or chooses no checkpoint."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.catalog import Dataset
from tests.launching import ROOT
from tests.sweep_folder import add_answers, add_log, add_trial, answers, write_sweep
from tests.trainer.test_report import Page
from trainer.experiments.sweep_report import write_sweep_report
from trainer.metrics import measures as table
from trainer.metrics.bootstrap import Floats, Resamples
from trainer.metrics.measures import Measure, register
from trainer.tasks.classification.config import ClassifierFitConfig

# Chosen by the share of mistakes, the best checkpoint is the worst one: no other measure would choose it.
MISTAKES = '''
"""Share of wrong answers."""

from trainer.metrics.bootstrap import Floats, Resamples
from trainer.metrics.measures import Measure, register


def mistakes(answers: Resamples) -> Floats:
    return answers.mean((answers.images.labels != answers.images.predicted).astype(float))


register(Measure("mistakes", "Share of mistakes", over_all=mistakes, epoch_name="mistakes", proportion=True))
'''


def test_a_measure_is_one_new_file(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Dropped into the folder it is in the help, the log, the evaluation, the card and the report, and selects."""
    for folder in ("data_pipeline", "models", "trainer", "launchers", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "trainer/metrics/measures/mistakes.py").write_text(MISTAKES)

    def train(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(tmp_path / "launchers/train_classifier.py"), *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    assert "accuracy, balanced_accuracy, f1, mistakes, loss" in train("--help").stdout
    refused = train("shards=data", "run=run", "train.select_by=mistake")
    assert refused.returncode == 2
    line = refused.stderr.strip().splitlines()[-1]
    assert "train.select_by=mistake is none of accuracy, balanced_accuracy, f1, mistakes, loss" in line
    assert line.endswith("; the nearest is mistakes")
    done = train(
        f"shards={tiny_dataset.root}", "run=run", "model=senet_tiny_ge", "data.image_size=32", "data.threads=1",
        "train.global_batch=12", "train.epochs=4", "train.select_by=mistakes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if record["kind"] == "epoch"]
    worst = max(epochs, key=lambda record: (record["validation_mistakes"], -record["epoch"]))
    best = max(epochs, key=lambda record: (record["validation_balanced_accuracy"], -record["epoch"]))
    assert worst["step"] != best["step"]
    scores = json.loads((run / "evaluation/metrics.json").read_text())
    assert scores["checkpoint"]["step"] == worst["step"]
    overall = scores["scores"]["overall"]
    assert overall["mistakes"]["value"] == pytest.approx(1 - overall["accuracy"]["value"])
    assert overall["mistakes"]["low"] == pytest.approx(1 - overall["accuracy"]["high"])
    assert f"| Share of mistakes | {100 * overall['mistakes']['value']:.1f} [" in (run / "model_card.md").read_text()
    page = Page(run / "report.html")
    assert "Share of mistakes" in page.text
    (types,) = [each for each in page.tables if each[0][0] == "type"]
    assert "mistakes" not in types[0]  # it is of all types together
    (epoch_table,) = [each for each in page.tables if each[0][0] == "epoch"]
    assert "validation mistakes" in epoch_table[0]
    assert epoch_table[2][:2] == ["best mistakes on validation", str(worst["epoch"])]
    assert "Share of mistakes" in done.stdout + (run / "report.html").read_text()


@pytest.fixture
def mistakes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Measure]:
    """One measure more, in this process for one test."""

    def wrong(answers: Resamples) -> Floats:
        return answers.mean((answers.images.labels != answers.images.predicted).astype(float))

    table.measures()
    monkeypatch.setattr(table, "_REGISTERED", dict(table._REGISTERED))
    measure = register(Measure("mistakes", "Share of mistakes", over_all=wrong, epoch_name="mistakes"))
    table.measures.cache_clear()
    yield measure
    table.measures.cache_clear()


def test_a_new_measure_is_in_the_tables_of_a_sweep(mistakes: Measure, tmp_path: Path) -> None:
    """An ablation that is to be judged by it would not show it."""
    labels = np.tile(np.arange(3), 12)
    groups = [f"lab/{number // 3}" for number in range(36)]
    write_sweep(tmp_path)
    for arm, share in (("full", 0.9), ("without_ge", 0.6)):
        run = add_trial(tmp_path, arm, 0)
        add_log(run, [0.5])
        add_answers(run, labels, answers(labels, share, 1), groups)
    page = Page(write_sweep_report(tmp_path))
    arms = next(each for each in page.tables if each[0][:2] == ["arm", "seeds"])
    apart = next(each for each in page.tables if each[0][:2] == ["arm", "paired seeds"])
    column = arms[0].index(mistakes.label)
    rows = list(csv.DictReader((tmp_path / "table.csv").open()))
    of_arms = {row["arm"]: row for row in rows if row["cell_type"] == "all"}
    for row, arm in zip(arms[1:], ("full", "without_ge"), strict=True):
        assert float(of_arms[arm]["mistakes"]) == pytest.approx(1 - float(of_arms[arm]["accuracy"]))
        assert row[column].startswith(f"{100 * float(of_arms[arm]['mistakes']):.1f} ")
    change = float(of_arms["without_ge"]["mistakes_difference"])
    assert apart[1][apart[0].index(mistakes.label)].startswith(f"{100 * change:+.1f} ")


def test_a_measure_takes_no_name_twice(mistakes: Measure) -> None:
    """Two measures of one name would show one's numbers under the other's."""
    for name, epoch_name in (("mistakes", None), ("others", "mistakes")):
        with pytest.raises(ValueError, match="the name is taken"):
            register(Measure(name, "", over_all=mistakes.over_all, epoch_name=epoch_name))
    with pytest.raises(ValueError, match="give of_types= or over_all="):
        register(Measure("empty", ""))
    assert ClassifierFitConfig(select_by="mistakes").select_by == "mistakes"
