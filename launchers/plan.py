"""Predict what a training needs before it runs: GPU memory, micro-batch, steps, hours. Needs no GPU.

usage:
  python launchers/plan.py config=LAUNCHER [gpu_memory=SIZE] [processes=N] [images_per_second=N] [key=value ...]
      config=LAUNCHER        train_classifier, train_stain_gan, train_conditional_gan or train_few_shot_gan
      gpu_memory=SIZE        of each GPU: 8GiB, 24GB; default: 8GiB
      processes=N            GPUs that share a global batch; default: 1
      images_per_second=N    a measured speed, of all GPUs together, from which the hours follow: a run of the model
                             shows it beside its progress bar and in metrics.jsonl
      key=value ...          the arguments of that launcher; shards=DIR gives the number of steps, too
  A step of the real networks runs on tensors without memory. If it does not fit, the plan is printed all the same, the
  last line names the setting that makes it fit, and the exit code is 2.

example:
  python launchers/plan.py config=train_classifier gpu_memory=8GiB shards=data/blood model=senet154_ge \\
      train.global_batch=64 train.micro_batch=16
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from data_pipeline.errors import UserError
from launchers.console import config_groups, launch, read_config
from trainer.planning.device_memory import GIB, parse_memory
from trainer.runs.config import RunConfig
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.stain.config import StainRunConfig

if TYPE_CHECKING:
    from trainer.planning.plan import MemoryPlan, MicroBatches

LAUNCHERS: dict[str, type[RunConfig]] = {
    "train_classifier": ClassifierRunConfig,
    "train_stain_gan": StainRunConfig,
    "train_conditional_gan": ConditionalRunConfig,
    "train_few_shot_gan": FewShotRunConfig,
}


@dataclass(frozen=True)
class PlanConfig:
    """The arguments that are not the planned launcher's; see the usage above."""

    config: Literal["train_classifier", "train_stain_gan", "train_conditional_gan", "train_few_shot_gan"] | None = None
    gpu_memory: str = "8GiB"
    processes: int = 1
    images_per_second: float | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes={self.processes}: must be at least 1")
        if self.images_per_second is not None and self.images_per_second <= 0:
            raise ValueError(f"images_per_second={self.images_per_second}: must be above 0")


def main(arguments: Sequence[str]) -> None:
    own = {field.name for field in fields(PlanConfig)}
    planned = [argument for argument in arguments if argument.partition("=")[0] not in own]
    asked = read_config(PlanConfig, "plan", [argument for argument in arguments if argument not in planned])
    if asked.config is None:
        raise UserError(f"plan.py needs config=LAUNCHER, one of {', '.join(LAUNCHERS)}; see --help")
    gpu_memory = parse_memory(asked.gpu_memory)
    config: RunConfig = read_config(LAUNCHERS[asked.config], asked.config, planned)
    config.require_dataset()
    # Imported here: --help and a mistake need not wait for torch.
    from accelerate import PartialState

    from trainer.planning.plan import count_steps, plan_memory
    from trainer.runs.stored_size import propose_stored_size

    PartialState(cpu=True)  # nothing of a plan runs on a GPU
    plan = plan_memory(config, gpu_memory, asked.processes)
    models = [argument.partition("=")[2] for argument in planned if argument.startswith("model=")]
    model = [config_groups(asked.config)["model"], *models][-1]
    print("\n".join(_memory(plan, f"{asked.config} model={model}", config)), flush=True)
    steps = count_steps(config, plan.processes)
    print("\n".join(_time(steps, config.train.global_batch * plan.batches, asked.images_per_second)))
    if config.shards is not None and (proposal := propose_stored_size(config.open_dataset(), config.data)) is not None:
        print(proposal)
    if not plan.fits:
        raise UserError(_advice(plan))


def _memory(plan: MemoryPlan, title: str, config: RunConfig) -> list[str]:
    gpus = f"{plan.processes} GPUs" if plan.processes > 1 else "one GPU"
    lines = [
        f"{title}, {config.data.image_size} px, {plan.precision}, global batch {config.train.global_batch} on {gpus}",
        f"peak memory of a step, predicted, {_described(plan, plan.micro_batches)}:",
    ]
    lines += [f"  {size / GIB:6.2f} GiB  {kind}" for kind, size in plan.bytes_by_kind.items() if size]
    verdict = "fits" if plan.fits else "does not fit"
    lines.append(f"  {plan.needed / GIB:6.2f} GiB  of {plan.gpu_memory / GIB:.2f}: {verdict}")
    if plan.largest is not None:
        lines.append(f"largest micro-batch that fits: {_described(plan, plan.largest)}")
    return lines


def _described(plan: MemoryPlan, micro_batches: MicroBatches) -> str:
    if plan.episode:
        return f"episodes of {micro_batches.images} images"
    accumulated = f"accumulated over {micro_batches.parts} parts" if micro_batches.parts > 1 else "no accumulation"
    return f"micro_batch={micro_batches.images}, {accumulated}"


def _time(steps: int | None, images_per_step: int, images_per_second: float | None) -> list[str]:
    if steps is None:
        return ["steps: they depend on the data set: give shards=DIR, or train.iterations_per_epoch"]
    images = steps * images_per_step
    if images_per_second is None:
        hours = "give images_per_second=N, a measured speed; a training tells them itself in its first minute"
    else:
        hours = f"{images / images_per_second / 3600:,.1f} at {images_per_second:g} images/s, without scoring"
    return [f"steps: {steps:,}, {images:,} images", f"hours: {hours}"]


def _advice(plan: MemoryPlan) -> str:
    short = f"the step needs {plan.needed / GIB:.2f} GiB of GPU memory, {plan.gpu_memory / GIB:.2f} are there"
    if plan.largest is not None:
        return f"{short}: set train.micro_batch={plan.largest.images}"
    smaller = "shots" if plan.episode else "data.image_size"
    return f"{short}: no micro-batch fits, lower {smaller}, take a smaller model= or a GPU with more memory"


if __name__ == "__main__":
    launch(main, __doc__)
