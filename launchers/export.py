"""Write a trained classifier as a file that runs without this project, or as a small run.

usage:
  python launchers/export.py run=DIR format=FORMAT [out=DIR] [domain=NAME] [shards=DIR]
      run=DIR       a run of train_classifier.py; its best checkpoint is used. run=[A,B]: runs that answer together;
                    run=shipped: the classifier that comes with the installation
      views=1       or 2, 4, 8, as of predict.py; views and runs are all in the one model
      format=       onnx, or torch_export (torch.export.load); or safetensors: a run of a few megabytes, with weights
                    in half precision, for every launcher that takes run= of a classifier, but not to resume
      out=DIR       receives the model, model_card.md and model.json: input and output, types, storage, origin;
                    safetensors: a run; default: the run's export-FORMAT (export-FORMAT-viewsN); several runs need it
      domain=NAME   the images' stain, as of predict.py. If the classifier learned from normalised images, the model
                    includes the normaliser, unless the images have the stain that it makes
      shards=DIR    data set with real images to compare it with the live model on; default: the run's own, and
                    where that is not on this machine rendered cells, which model.json then says under "checked"
  Its probabilities are calibrated as the run's are. predict.py run=OUT reads what this writes.

example:
  python launchers/export.py run=runs/quickstart/classifier format=onnx out=exports/quickstart
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from data_pipeline.dataset_config import DatasetConfig
from data_pipeline.disk import naming
from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.learners.choices import Format, ViewCount
from trainer.runs.arguments import one_or_more
from trainer.runs.run_directory import read_run_config
from trainer.runs.shipped import run_or_shipped


@dataclass(frozen=True)
class ExportConfig(DatasetConfig):
    """What to export, and where to. shards, cache, cache_size: of the images that it is checked on."""

    run: str | None = None  # a folder, or [A,B]: several
    views: ViewCount = 1
    format: Format | None = None
    out: str | None = None
    domain: str | None = None


def main(arguments: Sequence[str]) -> None:
    config = read_config(ExportConfig, "export", arguments)
    if not config.run or config.format is None:
        raise UserError(f"export.py needs run=DIR and format={', '.join(get_args(Format))}")
    runs = [run_or_shipped(run) for run in one_or_more(config.run, "run")]
    for run in runs:
        read_run_config(run)
    if len(runs) > 1 and not config.out:
        raise UserError("export.py of several runs needs out=DIR, where the model is written")
    if config.format == "safetensors" and (len(runs) > 1 or config.views > 1):
        raise UserError("format=safetensors is one run, answering without views: give run=DIR alone")
    config.require_dataset()
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.tasks.classification.inference.compact_run import write_compact_run
    from trainer.tasks.classification.inference.ensemble import Ensemble
    from trainer.tasks.classification.inference.export import export_classifier

    ensemble = Ensemble.load(runs, config.views)
    try:
        dataset = config.open_dataset(ensemble.members[0].config)
    except UserError as error:
        if config.shards:
            raise
        dataset = None
        print(f"{error}; the model is compared with the live one on rendered cells meanwhile", file=sys.stderr)
    views = f"-views{config.views}" if config.views > 1 else ""
    out = Path(config.out) if config.out else runs[0] / f"export-{config.format}{views}"
    with naming(out):
        if config.format == "safetensors":
            checked = write_compact_run(ensemble.members[0], dataset, out, config.domain)
        else:
            checked = export_classifier(ensemble, dataset, out, config.format, config.domain)["checked"]
    difference, images = checked["largest_difference"], f"{checked['images']} {checked['on']}"
    print(f"as the live model to {difference:.1e} of a probability on {images}")
    print(out.resolve())


if __name__ == "__main__":
    launch(main, __doc__)
