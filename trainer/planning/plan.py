"""A run's plan: memory of a step, micro-batches, number of steps."""

from dataclasses import dataclass

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.learners.choices import Precision
from trainer.planning.device_memory import CUDA_CONTEXT, FRAGMENTATION, dali_bytes
from trainer.planning.rehearsals import RunConfig, rehearsal_of
from trainer.planning.step_memory import KINDS, OPTIMIZER_STATE, WEIGHTS, rehearse
from trainer.tasks.classification import training as classifier_training
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional import training as conditional_training
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot import training as few_shot_training
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episodes import data_of_run
from trainer.tasks.stain import training as stain_training
from trainer.tasks.stain.config import StainRunConfig


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
    bytes_by_kind: dict[str, int]  # with these
    largest: MicroBatches | None  # that fit; None: none does
    episode: bool  # images come in whole episodes, which no micro-batch divides
    batches: int  # global batches of a step, over all streams

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
        raise UserError(f"processes={processes}: more than train.global_batch={config.train.global_batch} has images")
    if rehearsal.episode is not None:
        micro_batches = MicroBatches(rehearsal.episode, 1)
        step = rehearse(rehearsal, (1,))
    else:
        micro_batches = divide_share(share, config.train.micro_batch)
        step = rehearse(rehearsal, (1, 2) if search else (min(micro_batches.parts, 2),))

    def by_kind(tried: MicroBatches) -> dict[str, int]:
        return _with_device(step.memory(tried.parts).at(tried.images), config, tried.images, processes)

    def fits(tried: MicroBatches) -> bool:
        return sum(by_kind(tried).values()) <= gpu_memory

    largest: MicroBatches | None = None
    if search and rehearsal.episode is None:
        if fits(MicroBatches(share, 1)):
            largest = MicroBatches(share, 1)
        else:
            # Bisection: memory grows with the micro-batch.
            low, high = 0, share
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(MicroBatches(middle, 2)) else (low, middle)
            largest = divide_share(share, low) if low else None
    return MemoryPlan(
        precision,
        processes,
        gpu_memory,
        micro_batches,
        by_kind(micro_batches),
        largest,
        rehearsal.episode is not None,
        step.batches,
    )


def divide_share(share: int, micro_batch: int | None) -> MicroBatches:
    """How a process divides its share of a global batch, as GlobalBatches does. micro_batch: None, one part."""
    parts = -(-share // (micro_batch or share))
    return MicroBatches(-(-share // parts), parts)


def _with_device(step: dict[str, int], config: RunConfig, images: int, processes: int) -> dict[str, int]:
    """Bytes by kind of all that a GPU holds, from those of a step's tensors."""
    kinds = {kind: step[kind] for kind in KINDS}
    if processes > 1:
        # DistributedDataParallel and ZeRO copy gradients into buckets for the exchange.
        kinds["gradients in exchange"] = step[WEIGHTS]
        if config.train.engine in ("zero1", "zero2"):
            kinds[OPTIMIZER_STATE] = -(-step[OPTIMIZER_STATE] // processes)
    kinds["allocator fragmentation"] = round(FRAGMENTATION * sum(kinds.values()))
    kinds["CUDA context"] = CUDA_CONTEXT
    streams = 2 if isinstance(config, StainRunConfig) else 1
    if isinstance(config, StainRunConfig) and config.model.algorithm == "cyclegan":
        kinds["image pool"] = streams * config.model.pool_size * 3 * 4 * config.data.image_size**2
    kinds["DALI"] = dali_bytes(
        images,
        config.data.image_size,
        config.data.prefetch,
        moves_stain=config.data.augment.moves_stain,
        streams=streams,
    )
    return kinds


def count_steps(config: RunConfig, processes: int) -> int | None:
    """Steps of the whole run; None if they depend on a data set and none is named, or if the run has no steps.

    UserError if the data set does not suit the run.
    """
    if isinstance(config, FewShotRunConfig) and not config.model.learns_from_rich:
        return None
    per_epoch = config.train.iterations_per_epoch
    if per_epoch is None:
        if config.shards is None:
            return None
        per_epoch = _steps_per_epoch(config, config.open_dataset(), Topology(0, processes))
    return config.train.epochs * per_epoch


def _steps_per_epoch(config: RunConfig, dataset: Dataset, topology: Topology) -> int:
    if isinstance(config, ClassifierRunConfig):
        types = classifier_training.known_cell_types(dataset, config.data)
        return classifier_training.training_stream(dataset, config, types, topology).batches_per_epoch
    if isinstance(config, ConditionalRunConfig):
        types = conditional_training.chosen_cell_types(dataset, config)
        batches = conditional_training.training_stream(dataset, config, types, topology).batches_per_epoch
        return max(1, batches // config.model.critic_steps)
    if isinstance(config, StainRunConfig):
        config = stain_training.with_domains(dataset, config)
        types = stain_training.shared_cell_types(dataset, config, topology)
        streams = stain_training.training_streams(dataset, config, types, topology)
        return min(stream.batches_per_epoch for stream in streams.values())
    data = data_of_run(config, dataset)
    return few_shot_training.rich_stream(config, dataset, data, topology).batches_per_epoch
