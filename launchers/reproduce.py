"""The thesis's whole experiment: from raw folders to one report with its tables and figures, ours beside its numbers.

usage:
  python launchers/reproduce.py preset=NAME run=DIR [barcelona=RAW munich=RAW] [shards=DIR] [key=value ...]
      preset=phantom    rendered cells, tiny networks: some fifteen minutes on two CPU cores, to see that it works
      preset=small      the two public data sets, or parts of them, at 32 px: under an hour on two CPU cores
      preset=thesis     the thesis to the letter at its sizes, for one RTX 2080 SUPER (8 GB, fp16) or more: days
      preset=thesis_small   the same algorithms in small networks at 64 px: an hour and a half on one CPU core
      preset=best       this project's own variants of the models at the thesis's sizes
                        or a file of your own, as in configs/reproduce: trainer/experiments/reproduction_config.py
      run=DIR           where stages, sweeps and report.html are written
      barcelona=RAW munich=RAW   the two public sets as downloaded; for other images build a data set first, shards=DIR
      shards=DIR        the data set; default: RUN/data
      key=value         overrides the preset: resources.gpu=1 resources.cpu=8
      plan=true         print every stage and trial, run nothing
      report=true       write the report of what is done, run nothing; also while it runs
  Shards the images; normalises their stain by W-CycleGAN-GP beside its rivals; makes cells by C-WGAN-GP and by
  few-shot generation beside theirs; trains classifiers on original and balanced data, the thesis's ten against each
  other, the ablation, and each part's effect between two laboratories; looks for leaks. Finished stages whose inputs
  have not changed are not run again: after an interruption, the same command resumes. Runs on the Ray cluster that
  RAY_ADDRESS names, else on this machine. Exit code 1: a leak was found; the report names it.

example:
  python launchers/reproduce.py preset=small run=runs/reproduction barcelona=raw/PBC_dataset_normal_DIB \\
      munich=raw/AML-Cytomorphology_LMU
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from data_pipeline.shards.store import root_of
from launchers.console import CONFIGS, launch, read_config

if TYPE_CHECKING:
    from trainer.experiments.reproduction import Reproduction

OWN = ("preset", "run", "shards", "barcelona", "munich", "plan", "report")


@dataclass(frozen=True)
class ReproduceConfig:
    """The arguments that are not the preset's."""

    preset: str | None = None
    run: str | None = None
    shards: str | None = None
    barcelona: str | None = None
    munich: str | None = None
    plan: bool = False
    report: bool = False


def main(arguments: Sequence[str]) -> None:
    own = [argument for argument in arguments if argument.split("=")[0] in OWN]
    config = read_config(ReproduceConfig, "reproduce", own)
    if not config.preset or not config.run:
        raise UserError("reproduce.py needs preset=phantom|small|thesis_small|thesis|best and run=DIR; see --help")
    # Here: neither --help nor a wrong argument waits for the imports of a plan.
    from data_pipeline.catalog import Dataset
    from launchers import audit, build_shards
    from trainer.experiments.reproduction import AUDIT_FILE, plan_reproduction
    from trainer.experiments.reproduction_config import build_phantom_dataset, read_preset
    from trainer.experiments.sweep import refuse_other_sweep

    named = CONFIGS / "reproduce" / f"{config.preset}.yaml"
    file = named if named.exists() else Path(config.preset)
    preset = read_preset(file, [argument for argument in arguments if argument not in own])
    run = Path(config.run)
    shards = config.shards or str(run / "data")
    sources = [f"{name}={getattr(config, name)}" for name in ("barcelona", "munich") if getattr(config, name)]
    if sources:
        build_shards.main([f"shards={shards}", *sources, *preset.build])
    elif preset.phantoms and config.shards is None:
        build_phantom_dataset(preset, run / "phantoms", Path(shards))
    if not Dataset.is_at(root_of(shards)):
        raise UserError(
            f"{shards}: no data set there: give the raw folders barcelona=RAW munich=RAW, or shards=DIR of a data set "
            "of two stains (build_shards.py)"
        )
    reproduction = plan_reproduction(preset, file, run, root_of(shards))
    refuse_other_sweep(reproduction.ablation, "run")
    if config.report:
        _write_report(reproduction)
        return
    print("\n".join(reproduction.describe()), flush=True)
    if config.plan:
        return
    _run(reproduction)
    # The full method's classifier depends on the data of all generators, banks and normalisers.
    clean = audit.is_clean(audit.AuditConfig(run=str(reproduction.ablation.trials[0].run), out=str(run / AUDIT_FILE)))
    _write_report(reproduction)
    if not clean:
        sys.exit(1)


def _write_report(reproduction: Reproduction) -> None:
    # Here: a mistake in a preset does not wait for what draws figures.
    from trainer.experiments.reproduction_report import write_reproduction_report

    print(write_reproduction_report(reproduction).resolve())


def _run(reproduction: Reproduction) -> None:
    """The ablation and its control, then all other stages, then the classifiers compared."""
    # Here: a mistake above does not wait for Ray.
    from trainer.experiments.cluster import check_fit, run_stages, run_trials
    from trainer.experiments.ray_cluster import joined_cluster
    from trainer.experiments.stages import in_order
    from trainer.experiments.sweep import opened, refuse_failures, refuse_other_sweep

    resources = reproduction.config.resources
    with ExitStack() as held:
        held.enter_context(joined_cluster())
        folder = reproduction.stages_folder
        room = check_fit(resources, reproduction.stages)
        held.enter_context(opened(reproduction.ablation))
        run_stages(in_order(reproduction.ablation_stages, folder), folder, resources)
        run_trials(reproduction.ablation, room)
        refuse_failures(reproduction.ablation)
        run_stages(in_order(reproduction.stages, folder), folder, resources)
        comparison = reproduction.comparison()
        refuse_other_sweep(comparison, "run")
        held.enter_context(opened(comparison))
        run_trials(comparison, room)
        refuse_failures(comparison)


if __name__ == "__main__":
    launch(main, __doc__)
