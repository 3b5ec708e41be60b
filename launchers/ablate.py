"""Many trainings of a classifier as one experiment: the thesis's ablation, a comparison of models, or a search.

usage:
  python launchers/ablate.py sweep=FILE out=DIR [shards=DIR] [key=value ...]
      sweep=FILE      a YAML file: configs/sweeps/ablation.yaml, classifiers.yaml, learning_rate.yaml or your own;
                      its keys: trainer/experiments/sweep_config.py
      out=DIR         where stages, trials, table and report are written
      shards=DIR      the data set, where the sweep file names none: a folder, or a URL in a store, s3://bucket/prefix,
                      whose shards each machine keeps in ~/.cache/hemaforge (XDG_CACHE_HOME, or cache= among fixed=)
      key=value       in place of what the sweep file says, resources_per_trial.gpu=1 say
      plan=true       print what would be done, and do nothing
  Runs on the Ray cluster that RAY_ADDRESS names or `ray start` made this machine part of (configs/ray), else on this
  machine alone; on several nodes, data set and out are on a file system that all of them see. What trials share is
  made once. Every trial is printed as a command that does the same training again. Killed, the same command goes on.

example:
  python launchers/ablate.py sweep=configs/sweeps/classifiers.yaml shards=data/blood out=sweeps/classifiers \\
      resources_per_trial.gpu=1 resources_per_trial.cpu=8
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.errors import UserError
from launchers.console import launch, read_config
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.generation.synthesis_config import SynthesizeConfig
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.normalization_config import NormalizeConfig

# The launchers that a sweep starts, and what their arguments come to.
LAUNCHER_CONFIGS: dict[str, type] = {
    "train_classifier": ClassifierRunConfig,
    "train_stain_gan": StainRunConfig,
    "normalize_stains": NormalizeConfig,
    "train_conditional_gan": ConditionalRunConfig,
    "train_few_shot_gan": FewShotRunConfig,
    "synthesize": SynthesizeConfig,
    "balance": BalanceConfig,
}


@dataclass(frozen=True)
class AblateConfig:
    """The arguments that are not the sweep's own."""

    sweep: str | None = None
    out: str | None = None
    plan: bool = False


def main(arguments: Sequence[str]) -> None:
    own = [argument for argument in arguments if argument.split("=")[0] in ("sweep", "out", "plan")]
    config = read_config(AblateConfig, "ablate", own)
    if not config.sweep or not config.out:
        raise UserError("ablate.py needs sweep=FILE and out=DIR; see --help")
    # Here, for neither --help nor a wrong argument need wait for what a plan takes.
    from trainer.experiments.sweep import describe_sweep, opened, plan_sweep, refuse_failures, refuse_other_sweep
    from trainer.experiments.sweep_config import read_sweep

    changes = [argument for argument in arguments if argument not in own]
    sweep = plan_sweep(
        read_sweep(Path(config.sweep), changes),
        Path(config.out),
        lambda launcher, overrides: read_config(LAUNCHER_CONFIGS[launcher], launcher, overrides),
        Path(config.sweep),
    )
    refuse_other_sweep(sweep)
    print("\n".join(describe_sweep(sweep)), flush=True)
    if config.plan:
        return
    with ExitStack() as held:
        if sweep.to_run:
            # Here, for importing Ray takes a while, which a mistake above need not wait for.
            from trainer.experiments.cluster import check_fit, run_stages, run_trials
            from trainer.experiments.ray_cluster import joined_cluster

            held.enter_context(joined_cluster())
            resources, stages = sweep.config.resources_per_trial, sweep.stages_to_run
            room = check_fit(resources, stages)
            held.enter_context(opened(sweep))
            run_stages(stages, sweep.stages_folder, resources)
            run_trials(sweep, room)
        else:
            held.enter_context(opened(sweep))
        from trainer.experiments.sweep_report import write_sweep_report

        report = write_sweep_report(sweep.folder)
    print(f"{(sweep.folder / 'table.csv').resolve()}\n{report.resolve()}")
    refuse_failures(sweep)


if __name__ == "__main__":
    launch(main, __doc__)
