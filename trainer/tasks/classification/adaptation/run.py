"""The run that an adaptation writes: like that of a training, to predict, score and export with."""

import dataclasses
import shlex
from pathlib import Path

from torch import nn

from data_pipeline.learned_images import LearnedImages, Role
from data_pipeline.shards.writer import ShardSettings
from trainer.learners.choices import VIEWS
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.progress import Progress, checkpoint_state
from trainer.metrics.records import to_json, write_json
from trainer.runs.provenance import learned_by_weights
from trainer.runs.record import RunRecord
from trainer.runs.training_data import save_training_data
from trainer.tasks.classification.adaptation.choice import Trial
from trainer.tasks.classification.adaptation.config import OWN_HEAD, AdaptConfig
from trainer.tasks.classification.adaptation.laboratory import FOLDER, Laboratory
from trainer.tasks.classification.adaptation.uncertainty import adapted_reference
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.reports.adaptation_record import FILE, Adaptation, Method
from trainer.tasks.classification.reports.model_card import write_model_card
from trainer.tasks.classification.reports.report import write_run_report
from trainer.tasks.classification.uncertainty.calibration import (
    Calibration,
    fit_temperature,
    load_calibration,
    save_calibration,
)
from trainer.tasks.classification.uncertainty.reference import save_reference
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities


def write_adapted_run(
    folder: Path,
    out: Path,
    trained: TrainedClassifier,
    laboratory: Laboratory,
    network: nn.Module,
    record: Adaptation,
    chosen: Trial | None,
) -> None:
    """Write the run into `folder`, which is then renamed to `out`.

    chosen: the chosen method's answers to cells that it had not learned from; None: nothing was held out.
    """
    dataset = laboratory.labelled.dataset
    data = laboratory.labelled.config
    address = str((out / FOLDER).resolve()) if (folder / FOLDER).exists() else dataset.address
    config = dataclasses.replace(
        trained.config,
        shards=address,
        run=str(out),
        data=data,
        model=dataclasses.replace(trained.config.model, weights=record.source),
    )
    RunRecord(
        config=config,
        kind=config.kind,
        cell_types=laboratory.cell_types,
        dataset_hash=dataset.content_hash,
        storage=ShardSettings(**dataset.metadata["settings"]),
        domain="",
        normalizer=None,
    ).write(folder)
    role: Role = "chosen" if record.method == "as_is" else "trained"
    own = LearnedImages.of(dataset, {role: list(laboratory.everything)})
    LearnedImages.joined([own, learned_by_weights(record.source)]).save(folder)
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    learners = {"classifier": {"module": weights, "average": None}}
    fingerprint = {"adapted by": record.command}
    store = CheckpointStore(folder / "checkpoints")
    store.save(1, checkpoint_state(learners, {}, Progress(1, best_epoch=0), fingerprint), best=True)
    checkpoint = store.best()
    assert checkpoint is not None
    save_calibration(folder, *_calibrations(trained, record.method, chosen, checkpoint.digest))
    reference = adapted_reference(trained, laboratory, record.method, network, chosen, checkpoint.digest)
    if reference is not None:
        save_reference(folder, reference)
    write_json(folder / FILE, to_json(record))
    save_training_data(folder, dataset, data)
    write_model_card(folder)
    write_run_report(folder)


def _calibrations(trained: TrainedClassifier, method: Method, chosen: Trial | None, digest: str) -> list[Calibration]:
    """For each number of views a temperature fitted to labelled cells that the network had not learned from.

    Without such cells it is the run's own, where the last layer is, else 1.
    """
    if chosen is None:
        remark = "no labelled cells were held out"
        if method not in OWN_HEAD:
            return [Calibration(remark=f"temperature left at 1: {remark}", checkpoint=digest, views=n) for n in VIEWS]
        own = [load_calibration(trained.folder, trained.checkpoint.digest, count) for count in VIEWS]
        remark = f"the temperature of the run that was adapted: {remark}"
        return [dataclasses.replace(each, remark=remark, checkpoint=digest) for each in own]
    answers, labels = chosen.once()
    return [fit_temperature(mean_log_probabilities(answers[:, :count]), labels, digest, count) for count in VIEWS]


def command_of(config: AdaptConfig) -> str:
    """The shell command of an adaptation."""
    changed = [
        f"{each.name}={value}"
        for each in dataclasses.fields(config)
        if (value := getattr(config, each.name)) != each.default
    ]
    return " ".join(["python launchers/adapt.py", *map(shlex.quote, changed)])
