"""A run's plan: memory of a step, micro-batches, number of steps."""

from bisect import bisect_left
from dataclasses import dataclass
from functools import partial

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.learners.choices import Precision
from trainer.learners.learner import Setting
from trainer.planning.device_memory import CUDA_CONTEXT, FRAGMENTATION, dali_bytes
from trainer.planning.step_memory import KINDS, OPTIMIZER_STATE, WEIGHTS, Rehearsal, RehearsedStep, rehearse
from trainer.runs import registry
from trainer.runs.config import RunConfig

# Of the run: schedules and loss weights depend on it, memory does not.
_STEPS = 100


@dataclass(frozen=True)
class MicroBatches:
    """How a process divides its share of a global batch."""

    images: int  # of the largest micro-batch
    parts: int  # micro-batches


@dataclass(frozen=True)
class MemoryPlan:
    """GPU memory of a training step, in bytes."""

    precision: Precision
    processes: int
    gpu_memory: int
    micro_batches: MicroBatches  # as configured
    bytes_by_kind: dict[str, int]  # kind of memory -> bytes, with these micro-batches
    largest: MicroBatches | None  # largest micro-batches that fit; None: none fits, or none searched
    episode: bool  # images come in whole episodes, which no micro-batch divides
    batches: int  # global batches that one step takes, over all streams

    @property
    def needed(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def fits(self) -> bool:
        return self.needed <= self.gpu_memory


def plan_memory(config: RunConfig, gpu_memory: int, processes: int = 1, *, search: bool = True) -> MemoryPlan:
    """Memory of the run's step on GPUs of `gpu_memory` bytes. search: look for the largest micro-batch, too.

    UserError if there are more processes than images in a global batch.
    """
    # `auto` is fp16 or bf16 on a GPU; both need the same memory.
    precision: Precision = "fp16" if config.train.precision == "auto" else config.train.precision
    rehearsal = rehearsal_of(config, precision)
    share = -(-config.train.global_batch // processes)
    if config.train.global_batch < processes:
        raise UserError(
            f"processes={processes}: more than the images of train.global_batch={config.train.global_batch}; lower it"
        )
    if rehearsal.episode is not None:
        micro_batches = MicroBatches(rehearsal.episode, 1)
        step = rehearse(rehearsal, (1,))
    else:
        micro_batches = divide_share(share, config.train.micro_batch)
        step = rehearse(rehearsal, (1, 2) if search else (min(micro_batches.parts, 2),))

    def by_kind(tried: MicroBatches) -> dict[str, int]:
        return _with_device(step, tried, config, processes)

    def fits(tried: MicroBatches) -> bool:
        return sum(by_kind(tried).values()) <= gpu_memory

    largest: MicroBatches | None = None
    if search and rehearsal.episode is None:
        if fits(MicroBatches(share, 1)):
            largest = MicroBatches(share, 1)
        else:
            # Memory grows with the micro-batch.
            found = bisect_left(range(1, share), True, key=lambda images: not fits(MicroBatches(images, 2)))
            largest = divide_share(share, found) if found else None
    return MemoryPlan(
        precision,
        processes,
        gpu_memory,
        micro_batches,
        by_kind(micro_batches),
        largest,
        rehearsal.episode is not None,
        sum(step.takes.values()),
    )


def divide_share(share: int, micro_batch: int | None) -> MicroBatches:
    """How a process divides its share of a global batch, as GlobalBatches does. micro_batch: None, one part."""
    parts = -(-share // (micro_batch or share))
    return MicroBatches(-(-share // parts), parts)


def rehearsal_of(config: RunConfig, precision: Precision) -> Rehearsal:
    """A run's step on one process. UserError for a model without such steps."""
    task = registry.task(config.kind)
    types = task.planned_types(config)
    setting = Setting(precision, _STEPS, config.train.global_batch, engine="alone")
    make = partial(task.build, config, types, setting)
    return Rehearsal(make, types, config.data.image_size, task.planned_episode(config))


def _with_device(step: RehearsedStep, tried: MicroBatches, config: RunConfig, processes: int) -> dict[str, int]:
    """Bytes by kind of all that a GPU holds."""
    tensors = step.memory(tried.parts).at(tried.images)
    kinds = {kind: tensors[kind] for kind in KINDS}
    if processes > 1:
        # DistributedDataParallel and ZeRO copy gradients into buckets for the exchange.
        kinds["gradients in exchange"] = tensors[WEIGHTS]
        if config.train.engine in ("zero1", "zero2"):
            kinds[OPTIMIZER_STATE] = -(-tensors[OPTIMIZER_STATE] // processes)
    kinds["allocator fragmentation"] = round(FRAGMENTATION * sum(kinds.values()))
    kinds["CUDA context"] = CUDA_CONTEXT
    if step.held_images:
        kinds["image pool"] = step.held_images * 3 * 4 * config.data.image_size**2
    kinds["DALI"] = dali_bytes(
        tried.images,
        config.data.image_size,
        config.data.prefetch,
        augmentation_bytes=sum(each.bytes_per_value for each in config.data.augment.operations),
        streams=len(step.takes),
    )
    return kinds


def count_steps(config: RunConfig, processes: int) -> int | None:
    """Steps of the whole run; None if they depend on a data set and none is named, or if the run has no steps.

    UserError if the data set does not suit the run.
    """
    task, per_epoch = registry.task(config.kind), config.train.iterations_per_epoch
    if not task.trains_in_steps(config):
        return None
    if per_epoch is None and config.shards is not None:
        topology = Topology(0, processes)
        per_epoch = task.count_epoch_steps(config, config.open_dataset(), topology)
    return None if per_epoch is None else config.train.epochs * per_epoch
