"""If these fail, a model is handed on with other numbers than were measured, or without what limits it."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.config import StreamConfig
from launchers.console import read_config
from tests.conftest import TINY_TYPES
from tests.evaluations import evaluation_of
from trainer.metrics.bootstrap import Estimate
from trainer.metrics.classification import TRUST, ReliabilityBin, Trust
from trainer.metrics.evaluation import (
    CalibrationRecord,
    ClassifierEvaluation,
    ScoredData,
    predictions_frame,
    save_evaluation,
)
from trainer.metrics.measures import measures, shown
from trainer.runs.record import RunRecord
from trainer.runs.training_data import read_training_data, save_training_data
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.reports.model_card import command, model_card, write_model_card

TYPES = (*TINY_TYPES, "platelet")


def tables(text: str) -> list[list[list[str]]]:
    """The rows of each table of a Markdown text, without heads."""
    found: list[list[list[str]]] = []
    before = ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        before = line
    return [rows[2:] for rows in found]


def configured(*arguments: str) -> ClassifierRunConfig:
    return read_config(ClassifierRunConfig, "train_classifier", ["shards=data", "run=run", *arguments])


def write_config(run: Path, dataset: Dataset, config: ClassifierRunConfig) -> None:
    record = RunRecord(
        config, "classification", TYPES, dataset.content_hash, ShardSettings(), domain="", normalizer=None
    )
    record.write(run)


def evaluate(run: Path, dataset: Dataset, split: str, own: bool, **more: Any) -> ClassifierEvaluation:
    """A record of a classifier that is right two times in three; no image is a platelet."""
    samples = dataset.samples(splits=[split])
    labels = np.array([TYPES.index(name) for name in samples["cell_type"]])
    table = np.random.default_rng(0).dirichlet([1.0] * len(TYPES), len(labels))
    table[np.arange(len(labels)), labels] += np.where(np.arange(len(labels)) % 3, 1.0, 0.0)
    table /= table.sum(axis=1, keepdims=True)
    data = ScoredData(
        f"/somewhere/{dataset.root.name}",  # type: ignore[union-attr]
        dataset.content_hash,
        split,
        ["giemsa", "violet"],
        len(samples),
    )
    facts = {} if own else {"normalizer": {"name": "reinhard", "source": "violet"}, "not_scored": {"monoblast": 3}}
    record = evaluation_of(data, table, labels, list(samples["group"]), TYPES, **facts, **more)
    save_evaluation(run, record, predictions_frame(samples, table, TYPES), own_test=own)
    return record


def test_every_number_is_that_of_the_record(tiny_dataset: Dataset, tmp_path: Path) -> None:
    write_config(tmp_path, tiny_dataset, configured("data.image_size=32"))
    save_training_data(tmp_path, tiny_dataset, StreamConfig(image_size=32))
    estimate = Estimate(0.0625, 0.03125, 0.125)
    calibration = CalibrationRecord(
        1.5,
        40,
        "none",
        Trust(dict.fromkeys(TRUST, estimate), [ReliabilityBin(0.0, 1.0, 0, confidence=None, accuracy=None)]),
    )
    records = [
        evaluate(tmp_path, tiny_dataset, "test", True, calibration=calibration),
        evaluate(tmp_path, tiny_dataset, "validation", False),
    ]
    text = write_model_card(tmp_path).read_text()
    assert yaml.safe_load(text.split("---\n")[1])["pipeline_tag"] == "image-classification"
    assert "Not a medical device" in text
    unknown = ", ".join(name for name in CELL_TYPES if name not in TYPES)
    assert f"It knows 4 types: {', '.join(TYPES)}. " in text
    assert f"does not know {unknown}." in text

    data_facts, counted = tables(text)[:2]
    assert ["data set", f"data, content {tiny_dataset.content_hash}"] in data_facts
    samples = tiny_dataset.samples()
    for row in counted[: len(TYPES)]:
        of_type = samples[samples["cell_type"] == row[0]]
        expected = [int((of_type["split"] == split).sum()) for split in ("train", "validation", "test")]
        assert [int(cell) for cell in row[1:]] == [expected[0], 0, 0, *expected[1:]]
    assert [int(cell) for cell in counted[-1][1:]] == [
        sum(int(row[column]) for row in counted[:-1]) for column in range(1, 6)
    ]

    parts = text.split("## Scores: ")[1:]
    assert parts[0].startswith("own test split\n")
    assert parts[1].startswith("data, validation split, domains giemsa, violet")
    for part, record in zip(parts, records, strict=True):
        facts, overall, per_type = tables(part.split("## Limits")[0])[:3]
        told, scores = dict(facts), record.scores
        assert record.dataset.content_hash[:12] in told["data set"]
        assert told["split"].startswith(record.dataset.split)
        assert "step 88" in told["checkpoint"]
        assert ("reinhard" in told["normaliser"]) == (record.normalizer is not None)
        assert told["scored"].startswith(f"{record.dataset.count} images in ")
        expected_scores = [[each.label, each.format(scores[name], brackets=True)] for name, each in measures().items()]
        assert overall[:-1] == expected_scores
        most = max(row.count for row in scores.per_type.values())
        assert overall[-1][1] == f"{100 * most / record.dataset.count:.1f}"
        for row in per_type:
            of_type = scores.per_type[row[0]]
            values = [each.format(of_type[each.name], brackets=True) for each in shown("types")]
            assert row[1:] == [str(of_type.count), str(of_type.groups), *values]
    calibrated = tables(parts[0].split("### Calibration")[1])[0]
    assert calibrated[:4] == [
        ["temperature", "1.5"],
        ["validation images", "40"],
        ["remark", "none"],
        ["uncalibrated: Calibration error", "6.2 [3.1, 12.5]"],
    ]
    assert tables(parts[1].split("### Calibration")[1])[0][0] == ["temperature", "1"]

    limits = text.split("## Limits")[1]
    assert "own test split: no image of platelet" in limits
    assert "- platelet: few training images, 0." in limits
    per_type = records[0].scores.per_type
    few = ", ".join(f"{name} ({per_type[name].count})" for name in TINY_TYPES)
    assert f"own test split: scored on few images: {few}." in limits
    for name in TINY_TYPES:
        assert f"{name} {per_type[name]['sensitivity'].format(brackets=True)}" in limits


def test_the_command_gives_the_same_configuration_again(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = configured(
        "model=vgg19", "data/augment=flip", "data.domains=[giemsa]", "data.cell_types=[immature granulocyte,platelet]"
    )
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, crop={"giemsa": 0.7}), run="my runs/a")
    write_config(tmp_path, tiny_dataset, config)
    told = command(config)
    assert told in write_model_card(tmp_path).read_text()
    launcher, *arguments = shlex.split(told.replace("\\\n", " "))[2:]
    assert launcher == "launchers/train_classifier.py"
    assert read_config(ClassifierRunConfig, "train_classifier", arguments) == config


def test_what_is_not_there_is_said(tiny_dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_model_card(tmp_path)
    write_config(tmp_path, tiny_dataset, configured())
    text = write_model_card(tmp_path).read_text()
    assert "nothing else of it was recorded" in text
    assert "The run's own test split has not been scored." in text
    (tmp_path / "training_data.json").write_text("{")
    with pytest.raises(UserError, match=r"training_data\.json: damaged"):
        write_model_card(tmp_path)


def test_licences_of_public_images_and_weights_stand_in_the_card(tiny_dataset: Dataset, tmp_path: Path) -> None:
    weights = "model.weights=elsewhere/tf_efficientnet_lite0.safetensors"
    config = configured("model.architecture=timm", "model.timm_name=tf_efficientnet_lite0", weights)
    write_config(tmp_path, tiny_dataset, config)
    save_training_data(tmp_path, tiny_dataset, StreamConfig(image_size=32))
    trained_on = read_training_data(tmp_path) or {}
    trained_on["sources"] = [{"name": name, "kind": name, "domain": name} for name in ("barcelona", "munich", "bccd")]
    text = model_card("shipped", RunRecord.read(tmp_path), trained_on, [], None)
    licences = text.split("## Licences and citations")[1].split("##")[0]
    for said in ("barcelona: CC BY 4.0", "munich: CC BY 3.0", "bccd: MIT", "timm's tf_efficientnet_lite0, apache-2.0"):
        assert said in licences
