"""A run reduced to what its use needs: the best weights in half precision, and what the run says of itself.

It is a run like any other, of a few megabytes: `load_classifier` reads it, so every launcher takes it that takes a
classifier's run. It cannot be resumed. The folders of the machine that trained it are not named in it.
"""

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.disk import checked, replace_through, with_checksum
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE as LEARNED_FILE
from data_pipeline.learned_images import LearnedImages
from trainer.loop.checkpoint import CheckpointStore
from trainer.metrics.evaluation import SavedEvaluation, load_evaluations
from trainer.metrics.records import to_json, write_json
from trainer.runs.record import RunRecord
from trainer.runs.training_data import FILE as TRAINING_DATA_FILE
from trainer.runs.training_data import read_training_data
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.export import compare, written_aside
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.inference.raw_classifier import load_raw_classifier
from trainer.tasks.classification.reports.adaptation_record import Adaptation, read_adaptation
from trainer.tasks.classification.reports.model_card import MODEL_CARD, model_card
from trainer.tasks.classification.uncertainty.calibration import FILE as CALIBRATION_FILE
from trainer.tasks.classification.uncertainty.reference import load_reference, save_reference

# Of a probability: half precision has 11 significant bits.
TOLERANCE = 1e-2


def write_compact_run(
    trained: TrainedClassifier, dataset: Dataset | None, out: Path, domain: str | None
) -> dict[str, Any]:
    """Write a run's classifier as a compact run to the folder `out`; returns what the two were compared on.

    dataset, domain: as of `export_classifier`. UserError for a run with a normaliser, and for probabilities that
    differ by more than TOLERANCE; nothing is written then.
    """
    run = trained.folder
    if trained.normalizer is not None:
        raise UserError(f"{run}: has a normaliser, which format=safetensors does not hold: take onnx or torch_export")
    record: RunRecord[ClassifierRunConfig] = RunRecord.read(run, ClassifierRunConfig.kind)
    evaluations = load_evaluations(run)
    adaptation = read_adaptation(run)
    by_name = _naming_files(record.config, evaluations, adaptation)
    with written_aside(out) as aside:
        weights = trained.network.state_dict()
        written = CheckpointStore(aside / "checkpoints").save_weights(trained.checkpoint.step, "classifier", weights)
        record = dataclasses.replace(record, config=_without_folders(record.config, out.name))
        record.write(aside)
        if (run / CALIBRATION_FILE).exists():
            _copy_calibration(run, aside, trained.checkpoint.digest, written.digest)
        if (reference := load_reference(run, trained.checkpoint.digest)) is not None:
            save_reference(aside, dataclasses.replace(reference, checkpoint=written.digest))
        if (run / TRAINING_DATA_FILE).exists():
            shutil.copyfile(run / TRAINING_DATA_FILE, aside / TRAINING_DATA_FILE)
        if (run / LEARNED_FILE).exists():
            _copy_learned(run, aside, by_name)
        for each in evaluations:  # without the predictions, which are large
            content = json.dumps(to_json(each.record), ensure_ascii=False)
            write_json(aside / "evaluation" / f"{each.name}.json", json.loads(by_name(content)))
        card = by_name(model_card(out.name, record, read_training_data(run), evaluations, adaptation))
        (aside / MODEL_CARD).write_text(card, encoding="utf-8")
        return compare(load_raw_classifier([run], domain), load_raw_classifier([aside], domain), dataset, TOLERANCE)


def _naming_files(
    config: ClassifierRunConfig, evaluations: list[SavedEvaluation], adaptation: Adaptation | None
) -> Callable[[str], str]:
    """A function of a text: it gives files and data sets by their names, without the folders that they lie in."""
    paths = {config.shards, config.model.weights, *(each.record.dataset.path for each in evaluations)}
    if adaptation is not None:
        paths |= {word.partition("=")[2] for word in shlex.split(adaptation.command) if "/" in word}
    known = sorted((path for path in paths if path), key=len, reverse=True)  # no path before one that it begins

    def by_name(text: str) -> str:
        for path in known:
            text = text.replace(path, Path(path).name)
        return text

    return by_name


def _without_folders(config: ClassifierRunConfig, name: str) -> ClassifierRunConfig:
    """The settings of the run, called `name`, with its data set and initial weights by their names."""
    weights, shards = (Path(path).name if path else None for path in (config.model.weights, config.shards))
    model = dataclasses.replace(config.model, weights=weights)
    return dataclasses.replace(config, run=name, shards=shards, cache=None, model=model)


def _copy_calibration(run: Path, out: Path, checkpoint: str, written: str) -> None:
    """The calibration of the run's checkpoint, as that of the weights that were written."""
    content = json.dumps(checked(json.loads((run / CALIBRATION_FILE).read_text())))
    calibration = json.loads(content.replace(checkpoint, written))
    replace_through(out / CALIBRATION_FILE, (json.dumps(with_checksum(calibration), indent=1) + "\n").encode())


def _copy_learned(run: Path, out: Path, by_name: Callable[[str], str]) -> None:
    learned = LearnedImages.load(run / LEARNED_FILE)
    LearnedImages(
        learned.table.assign(through=learned.table["through"].map(by_name)),
        tuple(map(by_name, learned.unknown)),
        {by_name(name): count for name, count in learned.synthetic.items()},
    ).save(out)
