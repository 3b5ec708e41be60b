"""Export of a trained classifier to a file that runs without this project: ONNX, or torch's exported program."""

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.disk import with_checksum
from data_pipeline.errors import UserError
from data_pipeline.phantoms.folders import STAINS, render_cell
from data_pipeline.stream.stream import MicroBatch, Topology
from trainer.learners.choices import Format
from trainer.runs.run_directory import DESCRIPTION
from trainer.tasks.classification.inference.ensemble import Ensemble
from trainer.tasks.classification.inference.logits import predict, scoring_stream
from trainer.tasks.classification.inference.raw_classifier import (
    FORMAT_VERSION,
    MODEL_FILES,
    RawClassifier,
    load_raw_classifier,
    of_ensemble,
)
from trainer.tasks.classification.reports.model_card import MODEL_CARD

# Images on which the export is compared with the live model.
_CHECKED = 64
# Of a probability: runtimes sum in different orders.
_TOLERANCE = 1e-4


def export_classifier(
    ensemble: Ensemble, dataset: Dataset | None, out: Path, form: Format, domain: str | None
) -> dict[str, Any]:
    """Write the classifier of one run or several, with its normaliser, to the folder `out`; returns its model.json.

    The model maps `images` float32 [n, 3, S, S] in [-1, 1], RGB, to calibrated `probabilities` float32 [n, types].
    It is first compared with the live model on real test images of the data set, without one on rendered cells.
    domain: the stain of the images that it is for. A run's model card is copied along, those of several are numbered.
    UserError for a model that cannot be exported, or differs; nothing is written then.
    """
    raw = of_ensemble(ensemble, domain)
    with written_aside(out) as aside:
        (aside / MODEL_FILES[form]).write_bytes(_exported(raw, form))
        facts = _describe(ensemble, raw, aside, form)
        (aside / DESCRIPTION).write_text(json.dumps(with_checksum(facts), indent=1))
        facts["checked"] = compare(raw, load_raw_classifier([aside], None), dataset, _TOLERANCE)
        (aside / DESCRIPTION).write_text(json.dumps(with_checksum(facts), indent=1))
        _copy_model_cards(ensemble, aside)
    return facts


@contextlib.contextmanager
def written_aside(out: Path) -> Iterator[Path]:
    """A new folder of the same name that becomes `out` at the end; on an error nothing is left.

    UserError if `out` is there already.
    """
    if out.exists():
        raise UserError(f"{out}: there already: name another out=DIR, or remove it")
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    folder = aside / out.name  # cards and reports take their title from it
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class _Probabilities(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images).float().softmax(dim=1)


def _exported(raw: RawClassifier, form: Format) -> bytes:
    """The bytes of the model's file. The exporters do not write it: torch's aborts the process on a full disk."""
    side = raw.data.image_size
    example = torch.zeros(2, 3, side, side)
    shapes = {"images": {0: torch.export.Dim("n", min=1)}}
    messages = io.StringIO()  # the exporters print their steps
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(messages), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(_Probabilities(raw.network).eval(), (example,), dynamic_shapes=shapes)
            if form == "torch_export":
                content = io.BytesIO()
                torch.export.save(program, content)
                return content.getvalue()
            model = torch.onnx.export(
                program,
                input_names=["images"],
                output_names=["probabilities"],
                dynamo=True,
                verbose=False,
            )
            assert model is not None  # dynamo=True
            return bytes(model.model_proto.SerializeToString())
    except Exception as error:  # operators raise errors of many kinds
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"this classifier cannot be exported to {form} ({type(error).__name__}: {reason})") from error


def _describe(ensemble: Ensemble, raw: RawClassifier, folder: Path, form: Format) -> dict[str, Any]:
    side = raw.data.image_size
    members = [
        {
            "model": member.config.model.name,
            "checkpoint": {"file": member.checkpoint.path.name, "step": member.checkpoint.step},
            "dataset_hash": member.dataset_hash,
            "normalizer": None if through is None else through.describe(),
            "temperature": calibration.temperature,
        }
        for member, calibration, through in zip(ensemble.members, ensemble.calibrations, raw.normalizers, strict=True)
    ]
    return {
        "format_version": FORMAT_VERSION,
        "format": form,
        "sha256": hashlib.sha256((folder / MODEL_FILES[form]).read_bytes()).hexdigest(),
        "input": {
            "name": "images",
            "shape": ["n", 3, side, side],
            "dtype": "float32",
            "range": [-1, 1],
            "order": "RGB",
        },
        "output": {"name": "probabilities", "shape": ["n", len(raw.cell_types)], "dtype": "float32"},
        "cell_types": list(raw.cell_types),
        "domain": raw.domain,
        "image_size": side,
        "crop": raw.crop,
        "storage": dataclasses.asdict(raw.storage),
        "views": ensemble.views,
        **(members[0] if len(members) == 1 else {"members": members}),
        "temperature": raw.temperature,
    }


def _copy_model_cards(ensemble: Ensemble, folder: Path) -> None:
    cards = [member.folder / MODEL_CARD for member in ensemble.members]
    for number, card in enumerate(cards, 1):
        if card.exists():
            name = card.name if len(cards) == 1 else f"{card.stem}_{number}{card.suffix}"
            shutil.copyfile(card, folder / name)


def compare(live: RawClassifier, exported: RawClassifier, dataset: Dataset | None, tolerance: float) -> dict[str, Any]:
    """The largest difference of a probability, and on which images. UserError if it is more than `tolerance`."""
    if dataset is not None and not len(dataset.samples(splits=["test"], cell_types=live.cell_types)):
        dataset = None  # a laboratory's few cells, all of them for training
    batch = _rendered(live.data.image_size) if dataset is None else _real(live, dataset)
    answers = [predict(classifier.network, [batch])[0].softmax(dim=1) for classifier in (live, exported)]
    difference = float((answers[0] - answers[1]).abs().max())
    if not difference <= tolerance:
        raise UserError(
            f"the exported model differs from the live one by {difference:.2g} on a probability: take the other format"
        )
    return {
        "on": "rendered cells" if dataset is None else "real test images",
        "dataset_hash": None if dataset is None else dataset.content_hash,
        "split": None if dataset is None else "test",
        "images": len(batch.images),
        "largest_difference": difference,
    }


def _real(live: RawClassifier, dataset: Dataset) -> MicroBatch:
    """The first test images of a data set."""
    config = dataclasses.replace(live.data, domains=None, cell_types=None, crop={})
    stream = scoring_stream(
        dataset, config, splits=["test"], cell_types=live.cell_types, batch=_CHECKED, topology=Topology()
    )
    return next(iter(stream.read()))


def _rendered(side: int) -> MicroBatch:
    """Phantom cells, the same each time: enough to compare two models, not to score them."""
    rows = np.arange(_CHECKED)
    cells = [
        render_cell(CELL_TYPES[row % len(CELL_TYPES)], STAINS[row % len(STAINS)], row, 0, side)
        for row in range(_CHECKED)
    ]
    images = torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return MicroBatch(images, torch.zeros(_CHECKED, dtype=torch.int64), rows, rows, 0, 1)
