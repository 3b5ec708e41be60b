"""Predicting the types of raw images: predictions, unreadable files and a gallery, in one folder."""

import itertools
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipeline.disk import TEMPORARY_PREFIX
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk, printable
from data_pipeline.ingest.scan import no_file
from data_pipeline.progress_bar import track
from data_pipeline.sources.declaration import SourceDeclaration, is_hidden, list_images
from data_pipeline.sources.fields import find_cells, has_annotated_fields
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import Topology
from trainer.metrics.conformal import prediction_sets
from trainer.metrics.evaluation import HEAT, SET, SET_SEPARATOR, UNFAMILIAR
from trainer.metrics.uncertainty import UNFAMILIARITY
from trainer.reports.gallery import write_prediction_gallery
from trainer.tasks.classification.inference.grad_cam import GradCam, predict_with_heat
from trainer.tasks.classification.inference.logits import predict
from trainer.tasks.classification.inference.raw_classifier import RawClassifier, load_raw_classifier
from trainer.tasks.classification.uncertainty.calibration import calibrated_probabilities
from trainer.tasks.classification.uncertainty.reference import FILE as UNCERTAINTY_FILE

# Files that a prediction writes.
_WRITTEN = ("predictions.csv", "unreadable.csv", "passed_over.csv", "gallery.html", "gallery-[0-9][0-9][0-9].html")


@dataclass(frozen=True)
class PredictOptions:
    """How images are predicted."""

    domain: str | None  # see `load_raw_classifier`
    views: int
    min_confidence: float | None  # images below it are marked uncertain
    coverage: float = 0.9  # probability that an image's set of types holds the true one
    heatmaps: bool = False  # in the gallery


def predict_images(
    runs: Sequence[Path], source: Path | Sequence[Path], out: Path, options: PredictOptions, topology: Topology
) -> None:
    """Predict the type of each image of `source`: an image, a folder, also one of annotated fields, or paths.

    `out` then holds this prediction only. runs: see `load_raw_classifier`. UserError where no image can be read, or
    `out` cannot be written to.
    """
    paths, left_out = _find(source)
    classifier = load_raw_classifier(runs, options.domain, options.views, paths)
    if classifier.crop < 1 and classifier.domain is None:
        print(f"the middle of each image is classified, {classifier.crop:.0%} of its sides", file=sys.stderr)
    stream = FileStream(paths, classifier.storage, classifier.data, classifier.batch, topology, crop=classifier.crop)
    if classifier.uncertainty is None:
        names = " + ".join(map(str, runs))
        alone = "" if len(runs) == 1 else ", or they have no validation images in common"
        print(
            f"warning: no unfamiliarity and no sets of types: no {UNCERTAINTY_FILE} of its checkpoint in {names}{alone}"
            " (exports and naive Bayes have none, nor have runs of adapt.py without 20 labelled cells or the data set "
            "of their run): train_classifier.py, given the run's command again, writes it",
            file=sys.stderr,
        )
    frame = _predict(classifier, stream, paths, options, topology)
    if not len(frame):
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in list(stream.unreadable.items())[:3])
        place = source if isinstance(source, Path) else paths[0].parent
        raise UserError(f"{place}: none of its {len(paths)} images can be read ({reasons})")
    unreadable = {printable(path): reason for path, reason in stream.unreadable.items()}
    with _in_place_of_earlier(out) as aside:
        frame.drop(columns=HEAT, errors="ignore").to_csv(aside / "predictions.csv", index=False)
        for name, reasons_of in (("unreadable.csv", unreadable), ("passed_over.csv", left_out)):
            if reasons_of:
                listing = pd.DataFrame({"path": reasons_of.keys(), "reason": reasons_of.values()})
                listing.to_csv(aside / name, index=False)
        gallery = write_prediction_gallery(frame, aside, middle_square=classifier.storage.stored_size is not None)
    _say("could not be read", unreadable, out / "unreadable.csv")
    _say("passed over", left_out, out / "passed_over.csv")
    print(f"{(out / 'predictions.csv').resolve()}\n{(out / gallery.name).resolve()}")


def _find(source: Path | Sequence[Path]) -> tuple[list[Path], dict[str, str]]:
    """The images to classify, and the files skipped with the reason: those that build_shards.py skips too.

    Of annotated fields, the images are the squares round the white cells.
    """
    if not isinstance(source, Path):
        return list(source), {}
    if not source.is_dir():
        try:
            problem = no_file(source)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise UserError(f"{source}: {problem}")
        return [source], {}
    if has_annotated_fields(source):
        cells, warnings = find_cells(SourceDeclaration("fields", "", source, ""))
        for warning in warnings:
            print(f"{source}: {warning}", file=sys.stderr)
        return [on_disk(source, f"{cell.field}{cell.region}") for cell in cells], {}
    images, others = list_images(source)
    left_out = {name: "hidden file" for name in images if is_hidden(name)}
    paths = [on_disk(source, name) for name in images if name not in left_out]
    if not paths:
        raise UserError(f"{source}: no image here but {len(left_out)} hidden one(s): give the folder that holds them")
    left_out |= dict.fromkeys(others, "no suffix of an image")
    return paths, {printable(source / name): reason for name, reason in left_out.items()}


def _predict(
    classifier: RawClassifier, stream: FileStream, paths: Sequence[Path], options: PredictOptions, topology: Topology
) -> pd.DataFrame:
    """A row for each readable image: the columns of predictions.csv, and heat."""
    uncertainty, network = classifier.uncertainty, classifier.network
    if uncertainty is not None:
        network = uncertainty.added_to(network)
    grad_cam = None
    if options.heatmaps:
        grad_cam = GradCam(classifier.network, classifier.classifier, classifier.data.image_size, topology.device)
    total = -(-len(paths) // classifier.batch)
    answers, rows = predict(network.to(topology.device), track(stream.read(), total, "predicting", "batch"))
    if not len(rows):
        return pd.DataFrame()
    types = len(classifier.cell_types)
    probabilities = calibrated_probabilities(answers[:, :types], 1.0)
    frame = pd.DataFrame({"path": [printable(paths[row]) for row in rows]})
    frame["type"] = np.asarray(classifier.cell_types)[probabilities.argmax(dim=1).numpy()]
    frame["confidence"] = probabilities.max(dim=1).values.float().numpy()
    if options.min_confidence is not None:
        frame["uncertain"] = frame["confidence"] < options.min_confidence
    if uncertainty is not None:
        frame[UNFAMILIARITY] = answers[:, types].numpy()
        frame[UNFAMILIAR] = frame[UNFAMILIARITY] > 1
        sets = prediction_sets(probabilities.numpy(), uncertainty.least_probability(options.coverage))
        frame[SET] = [SET_SEPARATOR.join(itertools.compress(classifier.cell_types, each)) for each in sets]
    for index, name in enumerate(classifier.cell_types):
        frame[f"p:{name}"] = probabilities[:, index].float().numpy()
    if grad_cam is not None:
        batches = track(stream.read(), total, "heat maps", "batch")
        frame[HEAT] = predict_with_heat(grad_cam, batches, classifier.crop)[2]
    return frame


@contextmanager
def _in_place_of_earlier(out: Path) -> Iterator[Path]:
    """A folder whose files replace those of an earlier prediction in `out` at the end.

    On an error the earlier prediction stays as it was. UserError when the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for interrupted in out.glob(f"{TEMPORARY_PREFIX}predictions-*"):
            shutil.rmtree(interrupted)
        with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY_PREFIX}predictions-", dir=out) as folder:
            yield Path(folder)
            for pattern in _WRITTEN:
                for old in out.glob(pattern):
                    old.unlink()
            for new in sorted(Path(folder).iterdir()):
                new.rename(out / new.name)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written to ({error.strerror}); make room, or name another out=DIR"
        ) from error


def _say(what: str, reasons: Mapping[str, str], where: Path) -> None:
    if reasons:
        first = ", ".join(f"{Path(path).name}: {reason}" for path, reason in list(reasons.items())[:3])
        more = ", ..." if len(reasons) > 3 else ""
        print(f"{len(reasons)} file(s) {what} ({first}{more}): {where}")
