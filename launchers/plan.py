"""Say what a training will take, before it runs: memory of a GPU, micro-batches, steps, hours. Needs no GPU.

usage:
  python launchers/plan.py config=LAUNCHER gpu_memory=SIZE [processes=N] [gpu=NAME] [key=value ...]
      config=LAUNCHER   train_classifier, train_stain_gan, train_conditional_gan or train_few_shot_gan
      gpu_memory=SIZE   of each GPU: 8GiB, 24GB; default: 8GiB
      processes=N       GPUs that share a global batch; default: 1
      gpu=NAME          tell hours of the devices with this in their name alone: gpu=3090
      speeds=FILE       the table of speeds; default: configs/speeds.yaml
      key=value ...     the arguments of that launcher; with shards=DIR steps and hours are told too
  A step of the real networks is played on tensors without memory. Where it does not fit, the plan is printed all the
  same, the last line names the setting that makes it fit, and the exit code is 2.

example:
  python launchers/plan.py config=train_classifier gpu_memory=8GiB shards=data/blood model=senet154_ge \\
      train.global_batch=64 train.micro_batch=16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import UserError
from launchers.console import CONFIGS, config_groups, launch, read_config
from trainer.planning.device_memory import GIB, parse_memory
from trainer.planning.speeds import Speed, estimates, read_speeds
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.stain.config import StainRunConfig

if TYPE_CHECKING:
    from trainer.planning.plan import MemoryPlan
    from trainer.planning.rehearsals import RunConfig

LAUNCHERS: dict[str, type[RunConfig]] = {
    "train_classifier": ClassifierRunConfig,
    "train_stain_gan": StainRunConfig,
    "train_conditional_gan": ConditionalRunConfig,
    "train_few_shot_gan": FewShotRunConfig,
}


@dataclass(frozen=True)
class PlanConfig:
    """What to plan, for which GPU; the launcher's own arguments come beside it."""

    config: Literal["train_classifier", "train_stain_gan", "train_conditional_gan", "train_few_shot_gan"] | None = None
    gpu_memory: str = "8GiB"
    processes: int = 1
    gpu: str | None = None
    speeds: str = str(CONFIGS / "speeds.yaml")

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes={self.processes}: must be at least 1")


def main(arguments: Sequence[str]) -> None:
    own = {field.name for field in fields(PlanConfig)}
    mine = [argument for argument in arguments if argument.partition("=")[0] in own]
    its = [argument for argument in arguments if argument not in mine]
    asked = read_config(PlanConfig, "plan", mine)
    if asked.config is None:
        raise UserError(f"plan.py needs config=LAUNCHER, one of {', '.join(LAUNCHERS)}; see --help")
    gpu_memory = parse_memory(asked.gpu_memory)
    config: RunConfig = read_config(LAUNCHERS[asked.config], asked.config, its)
    config.require_dataset()
    speeds = read_speeds(Path(asked.speeds))
    # Here, for neither --help nor a mistake need wait for torch.
    from accelerate import PartialState

    from trainer.planning.plan import plan_memory

    PartialState(cpu=True)  # on a machine with GPUs, too, nothing of this runs there
    plan = plan_memory(config, gpu_memory, asked.processes)
    print("\n".join(_told(plan, f"{asked.config} model={_model(asked.config, its)}", config)), flush=True)
    print("\n".join(_time(plan, asked, config, its, speeds)))
    if not plan.fits:
        raise UserError(_what_fits(plan))


def _model(launcher: str, arguments: Sequence[str]) -> str:
    """The file of configs/model that is trained."""
    named = [argument.partition("=")[2] for argument in arguments if argument.startswith("model=")]
    return [config_groups(launcher)["model"], *named][-1]


def _told(plan: MemoryPlan, title: str, config: RunConfig) -> list[str]:
    gpus = f"{plan.processes} GPUs" if plan.processes > 1 else "one GPU"
    lines = [
        f"{title}, {config.data.image_size} px, {plan.precision}, global batch {config.train.global_batch} on {gpus}",
        f"most memory of a step, predicted, {_cut(plan, plan.micro.images, plan.micro.parts)}:",
    ]
    lines += [f"  {size / GIB:6.2f} GiB  {kind}" for kind, size in plan.bytes_by_kind.items() if size]
    verdict = "fits" if plan.fits else "does not fit"
    lines.append(f"  {plan.takes / GIB:6.2f} GiB  of {plan.gpu_memory / GIB:.2f}: {verdict}")
    if plan.largest is not None:
        largest = plan.largest
        lines.append(f"largest micro-batch that fits: {_cut(plan, largest.images, largest.parts)}")
    return lines


def _cut(plan: MemoryPlan, images: int, parts: int) -> str:
    if plan.episode:
        return f"episodes of {images} images"
    accumulated = f", accumulated over {parts} parts" if parts > 1 else ", no accumulation"
    return f"micro_batch={images}{accumulated}"


def _time(
    plan: MemoryPlan, asked: PlanConfig, config: RunConfig, arguments: Sequence[str], speeds: Sequence[Speed]
) -> list[str]:
    from trainer.planning.plan import count_steps, precision_of
    from trainer.planning.rehearsals import rehearsal_of
    from trainer.planning.step_memory import rehearse

    steps = count_steps(config, plan.processes)
    if steps is None:
        return ["steps: they follow from the data set: give shards=DIR, or train.iterations_per_epoch"]
    images = steps * config.train.global_batch * plan.step.shown
    run = Speed(str(asked.config), _model(str(asked.config), arguments), config.data.image_size, plan.precision)

    def count(speed: Speed) -> float:
        """Multiply-accumulates of an image in training."""
        if speed is run:
            return plan.step.multiply_accumulates
        overrides = [f"model={speed.model}", f"data.image_size={speed.image_size}"]
        its_config: RunConfig = read_config(LAUNCHERS[speed.launcher], speed.launcher, overrides)
        return rehearse(rehearsal_of(its_config, precision_of(its_config)), ()).multiply_accumulates

    wanted = [speed for speed in speeds if (speed.is_gpu if asked.gpu is None else asked.gpu in speed.device)]
    lines = [f"steps: {steps:,}, {images:,} images"]
    if not wanted:
        lines.append(f"no speed of {asked.gpu} is known: these are other GPUs'")
        wanted = [speed for speed in speeds if speed.is_gpu]
    for estimate in estimates(wanted, run, count):
        hours = images / (estimate.images_per_second * plan.processes) / 3600
        ideal = ", if nothing is lost between them" if plan.processes > 1 else ""
        lines.append(
            f"  {hours:,.1f} h on {plan.processes} x {estimate.device}{ideal} "
            f"({estimate.images_per_second:.3g} images/s; {estimate.how})"
        )
    return lines


def _what_fits(plan: MemoryPlan) -> str:
    short = f"predicted {plan.takes / GIB:.2f} GiB of {plan.gpu_memory / GIB:.2f}"
    if plan.largest is not None:
        return f"{short}: set train.micro_batch={plan.largest.images}"
    smaller = "shots" if plan.episode else "data.image_size"
    return f"{short}: no micro-batch fits, lower {smaller}, take a smaller model= or a GPU with more memory"


if __name__ == "__main__":
    launch(main, __doc__)
