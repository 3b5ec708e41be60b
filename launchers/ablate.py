"""Many trainings as one experiment: the thesis's ablation, a comparison of models, or a search.

usage:
  python launchers/ablate.py sweep=FILE out=DIR [shards=DIR] [key=value ...]
      sweep=FILE      a YAML file: configs/sweeps/ablation.yaml, classifiers.yaml, learning_rate.yaml, generator.yaml or
                      your own; its keys: trainer/experiments/sweep_config.py
      out=DIR         where stages, trials, table and report are written
      shards=DIR      the data set, where the sweep file names none: a folder, or a URL in a store, s3://bucket/prefix,
                      whose shards each machine keeps in ~/.cache/hemaforge (XDG_CACHE_HOME, or cache= among fixed=)
      stages=DIR      where what trials share is made and found, OUT/stages by default: name the same folder for several
                      sweeps, and what they share is made once
      key=value       overrides the sweep file: resources_per_trial.gpu=1
      plan=true       print every stage and trial, run nothing
  Runs on the Ray cluster that RAY_ADDRESS names or `ray start` made this machine part of (configs/ray), else on this
  machine alone; on several nodes, data set and out are on a file system that all of them see. What trials share is
  made once. Every trial is printed as a command that repeats its training. After an interruption, the same command
  resumes.

example:
  python launchers/ablate.py sweep=configs/sweeps/classifiers.yaml shards=data/blood out=sweeps/classifiers \\
      resources_per_trial.gpu=1 resources_per_trial.cpu=8
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError
from launchers.console import launch, read_config


@dataclass(frozen=True)
class AblateConfig:
    """The arguments that are not the sweep's own."""

    sweep: str | None = None
    out: str | None = None
    stages: str | None = None
    plan: bool = False  # print the plan only


def main(arguments: Sequence[str]) -> None:
    own = [argument for argument in arguments if argument.split("=")[0] in ("sweep", "out", "stages", "plan")]
    config = read_config(AblateConfig, "ablate", own)
    if not config.sweep or not config.out:
        raise UserError("ablate.py needs sweep=FILE and out=DIR; see --help")
    # Here: neither --help nor a wrong argument waits for the imports of a plan.
    from trainer.experiments.sweep import describe_sweep, opened, plan_sweep, refuse_failures, refuse_other_sweep
    from trainer.experiments.sweep_config import read_sweep

    changes = [argument for argument in arguments if argument not in own]
    file = Path(config.sweep)
    stages_folder = Path(config.stages) if config.stages else None
    sweep = plan_sweep(read_sweep(file, changes), Path(config.out), file, stages_folder)
    refuse_other_sweep(sweep)
    print("\n".join(describe_sweep(sweep)), flush=True)
    if config.plan:
        return
    with ExitStack() as held:
        if sweep.to_run:
            # Here: a mistake above does not wait for Ray.
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
