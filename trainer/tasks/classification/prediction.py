"""Predicting the types of raw images: predictions, unreadable files and a gallery, in one folder."""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from data_pipeline.disk import TEMPORARY_PREFIX
from data_pipeline.errors import UserError
from data_pipeline.ingest.file_names import on_disk, printable
from data_pipeline.ingest.scan import no_file
from data_pipeline.progress_bar import track
from data_pipeline.sources.declaration import is_hidden, list_images
from data_pipeline.sources.fields import find_cells, has_annotated_fields
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import Topology
from trainer.metrics.evaluation import HEAT
from trainer.reports.gallery import write_prediction_gallery
from trainer.tasks.classification.algorithms.cross_entropy import predict
from trainer.tasks.classification.grad_cam import GradCam, predict_with_heat
from trainer.tasks.classification.raw_classifier import RawClassifier, load_raw_classifier

# Files that a prediction writes.
_WRITTEN = ("predictions.csv", "unreadable.csv", "passed_over.csv", "gallery.html", "gallery-[0-9][0-9][0-9].html")


def predict_images(
    runs: Sequence[Path],
    source: Path,
    out: Path,
    *,
    domain: str | None,
    views: int,
    min_confidence: float | None,
    heatmaps: bool,
    topology: Topology,
) -> None:
    """Predict the type of each image of `source`, an image or a folder, also one of annotated fields.

    `out` then holds this prediction only.

    runs, domain, views: see `load_raw_classifier`. min_confidence: images below it are marked uncertain. heatmaps: the
    gallery has heat maps. UserError where no image can be read, or `out` cannot be written to.
    """
    classifier = load_raw_classifier(runs, domain, views)
    paths, left_out = _find(source)
    stream = FileStream(paths, classifier.storage, classifier.data, classifier.batch, topology, crop=classifier.crop)
    frame = _predict(classifier, stream, paths, topology, min_confidence=min_confidence, heatmaps=heatmaps)
    if not len(frame):
        reasons = "; ".join(f"{path.name}: {reason}" for path, reason in list(stream.unreadable.items())[:3])
        raise UserError(f"{source}: none of its {len(paths)} images can be read ({reasons})")
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


def _find(source: Path) -> tuple[list[Path], dict[str, str]]:
    """The images to classify, and the files skipped with the reason: those that build_shards.py skips too.

    Of annotated fields, the images are the squares round the white cells.
    """
    if not source.is_dir():
        try:
            problem = no_file(source)
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise UserError(f"{source}: {problem}")
        return [source], {}
    if has_annotated_fields(source):
        cells, warnings = find_cells(source, {})
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
    classifier: RawClassifier,
    stream: FileStream,
    paths: Sequence[Path],
    topology: Topology,
    *,
    min_confidence: float | None,
    heatmaps: bool,
) -> pd.DataFrame:
    """A row for each readable image: the columns of predictions.csv, and heat."""
    grad_cam = None
    if heatmaps:
        grad_cam = GradCam(classifier.network, classifier.classifier, classifier.data.image_size, topology.device)
    total = -(-len(paths) // classifier.batch)
    batches = track(stream.read(), total, "predicting", "batch")
    heat = None
    if grad_cam is None:
        logits, rows = predict(classifier.network.to(topology.device), batches)
    else:
        logits, rows, heat = predict_with_heat(grad_cam, batches, classifier.crop)
    probabilities = logits.softmax(dim=1)
    if not len(rows):
        return pd.DataFrame()
    frame = pd.DataFrame({"path": [printable(paths[row]) for row in rows]})
    frame["type"] = np.asarray(classifier.cell_types)[probabilities.argmax(dim=1).numpy()]
    frame["confidence"] = probabilities.max(dim=1).values.numpy()
    if min_confidence is not None:
        frame["uncertain"] = frame["confidence"] < min_confidence
    for index, name in enumerate(classifier.cell_types):
        frame[f"p:{name}"] = probabilities[:, index].numpy()
    if heat is not None:
        frame[HEAT] = heat
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
        raise UserError(f"{out}: cannot be written to ({error.strerror})") from error


def _say(what: str, reasons: Mapping[str, str], where: Path) -> None:
    if reasons:
        first = ", ".join(f"{Path(path).name}: {reason}" for path, reason in list(reasons.items())[:3])
        more = ", ..." if len(reasons) > 3 else ""
        print(f"{len(reasons)} file(s) {what} ({first}{more}): {where}")
