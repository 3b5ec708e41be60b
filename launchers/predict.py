"""Name the cell type of raw images with a trained classifier.

usage:
  python launchers/predict.py run=DIR images=PATH out=DIR [domain=NAME]
      run=DIR       a run of train_classifier.py; its best checkpoint is used
      images=PATH   an image, or a folder of images at any depth
      out=DIR       receives predictions.csv (path, type, confidence, one probability per type),
                    gallery.html, and unreadable.csv when a file was no image
      domain=NAME   the images' stain. A classifier of normalised images carries its normaliser: the images
                    go through it unless domain= names the stain that it normalises to; a crop set for
                    the domain in training (data.crop) is made here too

example:
  python launchers/predict.py run=runs/quickstart/classifier images=slides/today out=predictions/today
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data_pipeline.errors import UserError
from data_pipeline.file_stream import FileStream
from data_pipeline.sources.declaration import list_images
from launchers.console import launch, read_config
from trainer.classifier_training import load_classifier, scoring_batch
from trainer.evaluation import NormalizedClassifier
from trainer.games.classification import predict
from trainer.report import write_prediction_gallery
from trainer.topology import join_processes


@dataclass(frozen=True)
class PredictConfig:
    """What to predict, and where to."""

    run: str | None = None
    images: str | None = None
    out: str | None = None
    domain: str | None = None


def main(arguments: Sequence[str]) -> None:
    config = read_config(PredictConfig, "predict", arguments)
    if not (config.run and config.images and config.out):
        raise UserError("predict.py needs run=DIR images=PATH out=DIR")
    trained, source, out = load_classifier(Path(config.run)), Path(config.images), Path(config.out)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    paths = [source] if source.is_file() else [source / name for name in list_images(source)[0]]
    topology = join_processes()
    if topology.world_size > 1:
        raise UserError("predict.py is one process: start it with python, not with several processes")
    batch = scoring_batch(trained.config.train)
    network, data = trained.network, trained.config.data
    crop = data.crop.get(config.domain or "", 1.0)
    normalizer = trained.normalizer
    if normalizer is not None and config.domain != normalizer.target:
        network = NormalizedClassifier(network, normalizer, data.image_size)
        data, crop = replace(data, image_size=normalizer.image_size), normalizer.crop
    stream = FileStream(paths, trained.storage, data, batch, topology, crop=crop)
    batches = tqdm(stream.read(), desc="predicting", unit="batch", total=-(-len(paths) // batch))
    probabilities, rows = predict(network.to(topology.device), batches)
    if not len(rows):
        raise UserError(f"{source}: none of its {len(paths)} files is an image that can be read")
    frame = pd.DataFrame({"path": [str(paths[row]) for row in rows]})
    frame["type"] = np.asarray(trained.cell_types)[probabilities.argmax(dim=1).numpy()]
    frame["confidence"] = probabilities.max(dim=1).values.numpy()
    for index, name in enumerate(trained.cell_types):
        frame[f"p:{name}"] = probabilities[:, index].numpy()
    try:
        out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(out / "predictions.csv", index=False)
    except OSError as error:
        raise UserError(f"{out}: cannot be written to ({error.strerror})") from error
    if stream.unreadable:
        listing = pd.DataFrame(
            {"path": map(str, stream.unreadable), "reason": stream.unreadable.values()},
        )
        listing.to_csv(out / "unreadable.csv", index=False)
        print(f"{len(stream.unreadable)} of {len(paths)} files could not be read: {out / 'unreadable.csv'}")
    print(f"{(out / 'predictions.csv').resolve()}\n{write_prediction_gallery(frame, out).resolve()}")


if __name__ == "__main__":
    launch(main, __doc__)
