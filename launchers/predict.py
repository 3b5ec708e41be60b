"""Name the cell type of raw images with a trained classifier.

usage:
  python launchers/predict.py run=DIR images=PATH out=DIR [domain=NAME] [min_confidence=0.9] [heatmaps=true]
      run=DIR       a run of train_classifier.py, whose best checkpoint is used; or a folder that export.py wrote
      images=PATH   an image, or a folder of images at any depth
      out=DIR       receives predictions.csv (path, type, confidence, one probability per type),
                    gallery.html, unreadable.csv when a file was no image, and passed_over.csv when there were files
                    that are hidden or without an image's suffix, in place of an earlier prediction's; the
                    probabilities are calibrated by the temperature that train_classifier.py fitted on
                    validation images. Bytes of a name that are no text are written \\xe4
      domain=NAME   the images' stain, one that the run learned from; its only one without domain=. A classifier of
                    normalised images carries its normaliser: images of the stain that it is made for go through
                    it; a crop set for the domain in training (data.crop) is made here too
      min_confidence=0.9  images of less confidence are marked in a column `uncertain`, and in the gallery, for a
                    person to look at; the run's report tells how many those are and how right the others
      heatmaps=true  the gallery shows where in each image the classifier found its answer (Grad-CAM); for a run of a
                    convolutional network

example:
  python launchers/predict.py run=runs/quickstart/classifier images=slides/today out=predictions/today
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_pipeline.disk import TEMPORARY_PREFIX
from data_pipeline.errors import UserError
from data_pipeline.file_names import on_disk, printable
from data_pipeline.file_stream import FileStream
from data_pipeline.scan import no_file
from data_pipeline.sources.declaration import is_hidden, list_images
from data_pipeline.stream import Topology
from launchers.console import launch, read_config
from trainer.games.classification import predict
from trainer.grad_cam import GradCam, predict_with_heat
from trainer.metrics.evaluation import HEAT
from trainer.raw_classifier import RawClassifier, load_raw_classifier
from trainer.report import write_prediction_gallery
from trainer.topology import join_processes

# What a prediction leaves in its folder.
_WRITTEN = ("predictions.csv", "unreadable.csv", "passed_over.csv", "gallery.html", "gallery-[0-9][0-9][0-9].html")


@dataclass(frozen=True)
class PredictConfig:
    """What to predict, and where to."""

    run: str | None = None
    images: str | None = None
    out: str | None = None
    domain: str | None = None
    min_confidence: float | None = None
    heatmaps: bool = False

    def __post_init__(self) -> None:
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence={self.min_confidence}: must be a probability, from 0 to 1")


def main(arguments: Sequence[str]) -> None:
    config = read_config(PredictConfig, "predict", arguments)
    if not (config.run and config.images and config.out):
        raise UserError("predict.py needs run=DIR images=PATH out=DIR")
    classifier = load_raw_classifier(Path(config.run), config.domain)
    source, out = Path(config.images), Path(config.out)
    paths, left_out = _find(source)
    topology = join_processes()
    if topology.world_size > 1:
        raise UserError("predict.py is one process: start it with python, not with several processes")
    stream = FileStream(paths, classifier.storage, classifier.data, classifier.batch, topology, crop=classifier.crop)
    frame = _predict(classifier, stream, paths, config, topology)
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
    """The images to name, and what was passed over, with the reason: what build_shards.py leaves out, too."""
    if not source.is_dir():
        try:
            problem = no_file(source) if os.path.lexists(source) else "no such file or folder"
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        if problem:
            raise UserError(f"{source}: {problem}")
        return [source], {}
    images, others = list_images(source)
    left_out = {name: "hidden file" for name in images if is_hidden(name)}
    paths = [on_disk(source, name) for name in images if name not in left_out]
    if not paths:
        raise UserError(f"{source}: no image here but {len(left_out)} hidden one(s): give the folder that holds them")
    left_out |= dict.fromkeys(others, "no suffix of an image")
    return paths, {printable(source / name): reason for name, reason in left_out.items()}


def _predict(
    classifier: RawClassifier, stream: FileStream, paths: Sequence[Path], config: PredictConfig, topology: Topology
) -> pd.DataFrame:
    """A row for each image that could be read: path, type, confidence, and what else predictions.csv has; heat."""
    grad_cam = None
    if config.heatmaps:
        grad_cam = GradCam(classifier.network, classifier.classifier, classifier.data.image_size, topology.device)
    total = -(-len(paths) // classifier.batch)
    batches = tqdm(stream.read(), desc="predicting", unit="batch", total=total)
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
    if config.min_confidence is not None:
        frame["uncertain"] = frame["confidence"] < config.min_confidence
    for index, name in enumerate(classifier.cell_types):
        frame[f"p:{name}"] = probabilities[:, index].numpy()
    if heat is not None:
        frame[HEAT] = heat
    return frame


@contextmanager
def _in_place_of_earlier(out: Path) -> Iterator[Path]:
    """A folder to write to, whose files take the place of all that an earlier prediction left in `out`, at the end.

    When writing fails the earlier prediction stays as it was. UserError when the folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for cut_short in out.glob(f"{TEMPORARY_PREFIX}predictions-*"):
            shutil.rmtree(cut_short)
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


if __name__ == "__main__":
    launch(main, __doc__)
