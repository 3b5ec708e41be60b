"""Write a data set in which the images of one stain have the look of another.

usage:
  accelerate launch launchers/normalize_stains.py shards=DIR out=DIR run=RUN [policy=to_a]
  accelerate launch launchers/normalize_stains.py shards=DIR out=DIR method=NAME a=DOMAIN b=DOMAIN [policy=to_a]
      shards=DIR         a data set with images of two stains, which stays as it is: a folder, or a URL in a store,
                         s3://bucket/prefix, with cache=DIR cache_size=GB as for training
      out=DIR            the new data set: normalised images, and references to all others in shards=
      run=RUN            a run of train_stain_gan.py
      method=NAME        reinhard, reinhard_domain or macenko, fitted on training images
      policy=to_a        images of b take the stain of a; to_b: the reverse.
                         thesis: the rule of its section 4.1, a being Barcelona: basophils, eosinophils, erythroblasts,
                         immature granulocytes and monocytes of b take the stain of a, lymphocytes of a that of b, all
                         others stay as they are (training images only, as it needs the label).
                         thesis_predicted: the same rule by the type that classifier= names, for all images
      classifier=RUN     for policy=thesis_predicted: a run of train_classifier.py on raw images of both stains
      image_size=256     side of the normalised images in pixels, for method= (a run has its own)
  The same command resumes an interrupted one. A normalised image keeps its split and names its parent; its domain is
  <old>_as_<new>. A classifier trained on the new data set has a copy of the normaliser: predict.py and evaluate.py
  apply it to raw images.

example:
  accelerate launch launchers/normalize_stains.py shards=data/blood run=runs/stain out=data/normalized
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.runs.run_directory import read_run_config
from trainer.tasks.stain.normalization_config import NormalizeConfig


def main(arguments: Sequence[str]) -> None:
    config = read_config(NormalizeConfig, "normalize_stains", arguments)
    if not config.shards or not config.out:
        raise UserError("normalize_stains.py needs shards=DIR and out=DIR; see --help")
    config.require_dataset()
    for run in filter(None, (config.run, config.classifier)):
        read_run_config(Path(run))
    # Imported here: --help and a refused argument must not wait for torch.
    from trainer.learners.topology import join_processes, leave_processes
    from trainer.tasks.stain.normalization import normalize_dataset

    topology = join_processes()
    report = normalize_dataset(config, topology)
    leave_processes()
    if topology.rank == 0:
        print(f"{report['samples']} images, {report['shards_written']} shards written: {config.out}")


if __name__ == "__main__":
    launch(main, __doc__)
