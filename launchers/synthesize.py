"""Draw images of cells from a trained generator into an image bank.

usage:
  accelerate launch launchers/synthesize.py run=RUN bank=DIR count=N [cell_types=[A,B]] [seed=0] [truncation=1]
      [variations=true] [strength=0.3]
      run=RUN            a run of train_conditional_gan.py or train_few_shot_gan.py
      bank=DIR           the bank, a Zarr v3 group: images, latents, labels, and a SHA-256 of each image
      count=N            images of each type; with a larger N the same command adds to a bank that is there
      cell_types=[A,B]   default: all that the run can make
      seed=0             an image depends on run, seed, type and its number in the type only, not on the number of
                         processes
      truncation=1       factor of the noise: below 1, 0.7 say, images are more typical and less diverse
      variations=true    variations of training images, by the encoder of a run of model=few_shot_meta; balance.py names
                         the parent of each in the catalogue
      strength=0.3       of a variation: 0, the image's reconstruction; 1, as far as the type's images lie apart
  The same command resumes an interrupted bank. Then: launchers/balance.py.

example:
  accelerate launch launchers/synthesize.py run=runs/conditional bank=data/conditional count=2000 \\
      cell_types=[basophil,erythroblast]
"""

from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.runs.run_directory import read_run_config
from trainer.tasks.generation.synthesis_config import SynthesizeConfig


def main(arguments: Sequence[str]) -> None:
    config = read_config(SynthesizeConfig, "synthesize", arguments)
    if not config.run or not config.bank or config.count is None:
        raise UserError("synthesize.py needs run=RUN, bank=DIR and count=N; see --help")
    run = Path(config.run)
    read_run_config(run)
    # Here, for neither --help nor a mistake need wait for torch.
    from trainer.learners.topology import join_processes, leave_processes
    from trainer.runs.provenance import learned_by_run
    from trainer.tasks.generation.synthesis import load_sampler, synthesize

    topology = join_processes()
    bank = synthesize(load_sampler(run), config, topology, learned_by_run(run))
    leave_processes()
    if topology.rank == 0:
        print(f"{len(bank)} images of {', '.join(bank.cell_types)}: {bank.root}")


if __name__ == "__main__":
    launch(main, __doc__)
