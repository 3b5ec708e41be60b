"""Make a data set in which every cell type has many training images, some of them generated.

usage:
  accelerate launch launchers/balance.py shards=DIR banks=[A,B] out=DIR per_type=N [best=[SCORE]] [domains=[D,...]]
      shards=DIR         a data set; it is not changed, and its images are referred to, not copied. A folder, or a
                         URL in a store: s3://bucket/prefix, with cache=DIR cache_size=GB as for training
      banks=[A,B]        image banks of synthesize.py, of generators that learned from this data set or one it was
                         made from; the first is used up before the second
      out=DIR            the new data set: generated images are in its training split alone
      per_type=N         training images of each type, at least; a type with more keeps them all
      per_type=auto classifier=RUN   validation images choose how many each type gets, maybe none: a linear head on
                         the features of RUN, a run of train_classifier.py of real images (model=frozen, say), is
                         fitted with none, half as many as real ones, as many, and filled up to the largest type
      best=[SCORE,...]   the images that score highest first, by several the mean rank; evaluate.py bank= writes
                         type_probability, type_likeness, novelty; default: the first of each type
      least={SCORE: X}   only images that score so much: {novelty: 1} leaves out near copies of training images
      at_most=1          so many generated images, at most, for each real training image of a type
      domains=[D,...]    only training images of these stains count; default: all
  Generated images are stored with the codec and at the size of the real ones. Build the data set with stored_size=
  near the generator's size, so that sharpness does not betray an image's origin. The same command resumes an
  interrupted one. Then: launchers/train_classifier.py shards=OUT; its validation and test stay real.

example:
  python launchers/balance.py shards=data/normalized banks=[data/conditional] out=data/filled per_type=3000
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.banks.balance_config import AUTO, BalanceConfig
from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.runs.run_directory import read_run_config


def main(arguments: Sequence[str]) -> None:
    config = read_config(BalanceConfig, "balance", arguments)
    if not config.shards or not config.banks or not config.out or config.per_type is None:
        raise UserError("balance.py needs shards=DIR, banks=[DIR,...], out=DIR and per_type=N; see --help")
    config.require_dataset()
    if config.classifier is not None:
        read_run_config(Path(config.classifier))
    # Not at the top: --help and a refused argument need no torch.
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from data_pipeline.banks.asked import format_asked
    from data_pipeline.banks.balance import balance_dataset, format_counts, training_counts
    from data_pipeline.catalog import Dataset
    from trainer.learners.topology import join_processes, leave_processes

    topology, verdict = join_processes(), None
    if config.per_type == AUTO:
        from trainer.experiments.amounts import ask_validation

        (verdict,) = broadcast_object_list([ask_validation(config, topology) if topology.rank == 0 else None])
    report = balance_dataset(
        config,
        verdict=verdict,
        rank=topology.rank,
        world_size=topology.world_size,
        barrier=PartialState().wait_for_everyone,
    )
    leave_processes()
    if topology.rank == 0:
        if verdict is not None:
            print(format_asked(verdict.types))
        print(format_counts(training_counts(Dataset.open(Path(config.out)), config.domains)))
        for warning in report["warnings"]:
            print(f"warning: {warning}")
        print(f"{report['samples']} images, {report['shards_written']} shards written: {config.out}")


if __name__ == "__main__":
    launch(main, __doc__)
