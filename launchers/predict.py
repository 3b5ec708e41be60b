"""Name the cell type of raw images with a trained classifier.

usage:
  python launchers/predict.py run=DIR images=PATH out=DIR [domain=NAME] [min_confidence=0.9] [heatmaps=true]
      run=DIR       a run of train_classifier.py, whose best checkpoint is used; or a folder that export.py wrote
      images=PATH   an image, or a folder of images at any depth
      out=DIR       receives predictions.csv (path, type, confidence, one probability per type),
                    gallery.html, and unreadable.csv when a file was no image; the probabilities are calibrated by
                    the temperature that train_classifier.py fitted on validation images
      domain=NAME   the images' stain. A classifier of normalised images carries its normaliser: the images
                    go through it unless domain= names the stain that it normalises to; a crop set for
                    the domain in training (data.crop) is made here too
      min_confidence=0.9  images of less confidence are marked in a column `uncertain`, and in the gallery, for a
                    person to look at; the run's report tells how many those are and how right the others
      heatmaps=true  the gallery shows where in each image the classifier found its answer (Grad-CAM); for a run of a
                    convolutional network

example:
  python launchers/predict.py run=runs/quickstart/classifier images=slides/today out=predictions/today
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_pipeline.disk import replacing
from data_pipeline.errors import UserError
from data_pipeline.file_stream import FileStream
from data_pipeline.sources.declaration import list_images
from launchers.console import launch, read_config
from trainer.games.classification import predict
from trainer.grad_cam import GradCam, predict_with_heat
from trainer.metrics.evaluation import HEAT
from trainer.raw_classifier import load_raw_classifier
from trainer.report import write_prediction_gallery
from trainer.topology import join_processes


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
    classifier, source, out = (
        load_raw_classifier(Path(config.run), config.domain),
        Path(config.images),
        Path(config.out),
    )
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    paths = [source] if source.is_file() else [source / name for name in list_images(source)[0]]
    topology = join_processes()
    if topology.world_size > 1:
        raise UserError("predict.py is one process: start it with python, not with several processes")
    grad_cam = None
    if config.heatmaps:
        grad_cam = GradCam(classifier.network, classifier.classifier, classifier.data.image_size, topology.device)
    stream = FileStream(paths, classifier.storage, classifier.data, classifier.batch, topology, crop=classifier.crop)
    total = -(-len(paths) // classifier.batch)
    batches = tqdm(stream.read(), desc="predicting", unit="batch", total=total)
    heat = None
    if grad_cam is None:
        logits, rows = predict(classifier.network.to(topology.device), batches)
    else:
        logits, rows, heat = predict_with_heat(grad_cam, batches, classifier.crop)
    probabilities = logits.softmax(dim=1)
    if not len(rows):
        raise UserError(f"{source}: none of its {len(paths)} files is an image that can be read")
    frame = pd.DataFrame({"path": [str(paths[row]) for row in rows]})
    frame["type"] = np.asarray(classifier.cell_types)[probabilities.argmax(dim=1).numpy()]
    frame["confidence"] = probabilities.max(dim=1).values.numpy()
    if config.min_confidence is not None:
        frame["uncertain"] = frame["confidence"] < config.min_confidence
    for index, name in enumerate(classifier.cell_types):
        frame[f"p:{name}"] = probabilities[:, index].numpy()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "predictions.csv") as temporary:
            frame.to_csv(temporary, index=False)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror})") from error
    if stream.unreadable:
        listing = pd.DataFrame(
            {"path": map(str, stream.unreadable), "reason": stream.unreadable.values()},
        )
        listing.to_csv(out / "unreadable.csv", index=False)
        print(f"{len(stream.unreadable)} of {len(paths)} files could not be read: {out / 'unreadable.csv'}")
    if heat is not None:
        frame[HEAT] = heat
    gallery = write_prediction_gallery(frame, out, middle_square=classifier.storage.stored_size is not None)
    print(f"{(out / 'predictions.csv').resolve()}\n{gallery.resolve()}")


if __name__ == "__main__":
    launch(main, __doc__)
