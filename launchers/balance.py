"""Make a data set in which every cell type has many training images, some of them generated.

usage:
  accelerate launch launchers/balance.py shards=DIR banks=[A,B] out=DIR per_type=N [best=SCORE] [domains=[D,...]]
      shards=DIR         a data set; it is not changed, and its images are referred to, not copied. A folder, or a
                         URL in a store: s3://bucket/prefix, with cache=DIR cache_size=GB as for training
      banks=[A,B]        image banks of synthesize.py, of generators that learned from this data set or one it was
                         made from; the first is used up before the second
      out=DIR            the new data set: generated images are in its training split alone
      per_type=N         training images of each type, at least; a type with more keeps them all
      best=SCORE         the images that score highest first; default: the first of each type
      domains=[D,...]    only training images of these stains count; default: all
  Generated images are stored with the codec and at the size of the real ones. Build the data set with stored_size=
  near the generator's size, so that sharpness does not betray an image's origin. The same command resumes an
  interrupted one. Then: launchers/train_classifier.py shards=OUT; its validation and test stay real.

example:
  python launchers/balance.py shards=data/normalized banks=[data/conditional] out=data/filled per_type=3000
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.errors import UserError
from launchers.console import launch, read_config


def main(arguments: Sequence[str]) -> None:
    config = read_config(BalanceConfig, "balance", arguments)
    if not config.shards or not config.banks or not config.out or config.per_type is None:
        raise UserError("balance.py needs shards=DIR, banks=[DIR,...], out=DIR and per_type=N; see --help")
    config.require_dataset()
    # Not at the top: --help and a refused argument need no torch.
    from accelerate import PartialState

    from data_pipeline.banks.balance import balance_dataset, format_counts, training_counts
    from data_pipeline.catalog import Dataset
    from trainer.learners.topology import join_processes, leave_processes

    topology = join_processes()
    report = balance_dataset(
        config, rank=topology.rank, world_size=topology.world_size, barrier=PartialState().wait_for_everyone
    )
    leave_processes()
    if topology.rank == 0:
        print(format_counts(training_counts(Dataset.open(Path(config.out)), config.domains)))
        for warning in report["warnings"]:
            print(f"warning: {warning}")
        print(f"{report['samples']} images, {report['shards_written']} shards written: {config.out}")


if __name__ == "__main__":
    launch(main, __doc__)
