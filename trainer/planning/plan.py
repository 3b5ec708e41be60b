"""A run's plan: memory of a step, micro-batches, steps, hours."""

from dataclasses import dataclass

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.learners.choices import Precision
from trainer.planning.device_memory import CUDA_CONTEXT, FRAGMENTATION, dali_bytes
from trainer.planning.rehearsals import RunConfig, rehearsal_of
from trainer.planning.step_memory import KINDS, MOMENTS, WEIGHTS, RehearsedStep, rehearse
from trainer.tasks.classification import training as classifier_training
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.training import known_cell_types
from trainer.tasks.conditional import training as conditional_training
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot import training as few_shot_training
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episodes import data_of_run
from trainer.tasks.stain import training as stain_training
from trainer.tasks.stain.config import StainRunConfig


@dataclass(frozen=True)
class Micro:
    """How a process's share of a global batch is cut. images: of the largest part."""

    images: int
    parts: int


@dataclass(frozen=True)
class MemoryPlan:
    """What a training step takes of one GPU, in bytes.

    bytes_by_kind: of the run as configured; `takes` adds them up. largest: the largest micro-batch that fits, None
    where none does. episode: whether images come in whole episodes, which no micro-batch divides.
    """

    precision: Precision
    processes: int
    gpu_memory: int
    micro: Micro
    bytes_by_kind: dict[str, int]
    largest: Micro | None
    episode: bool
    step: RehearsedStep

    @property
    def takes(self) -> int:
        return sum(self.bytes_by_kind.values())

    @property
    def fits(self) -> bool:
        return self.takes <= self.gpu_memory


def precision_of(config: RunConfig) -> Precision:
    """The run's precision on a GPU; `auto` is fp16 or bf16 there, which take the same memory."""
    return "fp16" if config.train.precision == "auto" else config.train.precision


def plan_memory(config: RunConfig, gpu_memory: int, processes: int = 1, *, search: bool = True) -> MemoryPlan:
    """What the run's step takes of GPUs of so many bytes each. search: whether to look for the largest micro-batch.

    UserError where so many processes cannot share a global batch.
    """
    precision, rehearsal = precision_of(config), rehearsal_of(config, precision_of(config))
    share = -(-config.train.global_batch // processes)
    if config.train.global_batch < processes:
        raise UserError(f"processes={processes}: more than train.global_batch={config.train.global_batch} has images")
    if rehearsal.episode is not None:
        micro = Micro(rehearsal.episode, 1)
        step = rehearse(rehearsal, (1,))
    else:
        micro = cut(share, config.train.micro_batch)
        step = rehearse(rehearsal, (1, 2) if search else (min(micro.parts, 2),))

    def kinds(images: int, parts: int) -> dict[str, int]:
        return _with_device(step.memory(parts).at(images), config, images, processes)

    def fits(micro: Micro) -> bool:
        return sum(kinds(micro.images, micro.parts).values()) <= gpu_memory

    largest: Micro | None = None
    if search and rehearsal.episode is None:
        if fits(Micro(share, 1)):
            largest = Micro(share, 1)
        else:
            # The memory of a part grows with its images, so halving finds where it fits no more.
            low, high = 0, share
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(Micro(middle, 2)) else (low, middle)
            largest = cut(share, low) if low else None
    by_kind = kinds(micro.images, micro.parts)
    return MemoryPlan(precision, processes, gpu_memory, micro, by_kind, largest, rehearsal.episode is not None, step)


def cut(share: int, micro_batch: int | None) -> Micro:
    """How a process cuts its share of a global batch, as GlobalBatches does."""
    parts = -(-share // (micro_batch or share))
    return Micro(-(-share // parts), parts)


def _with_device(step: dict[str, int], config: RunConfig, images: int, processes: int) -> dict[str, int]:
    """All that a GPU holds, from what a step's tensors do."""
    kinds = {kind: step[kind] for kind in KINDS}
    if processes > 1:
        # DistributedDataParallel, and ZeRO too, copy gradients into portions to be exchanged.
        kinds["gradients in exchange"] = step[WEIGHTS]
        if config.train.engine in ("zero1", "zero2"):
            kinds[MOMENTS] = -(-step[MOMENTS] // processes)
    kinds["gaps in the allocator's blocks"] = round(FRAGMENTATION * sum(kinds.values()))
    kinds["CUDA context"] = CUDA_CONTEXT
    streams = 2 if isinstance(config, StainRunConfig) else 1
    if isinstance(config, StainRunConfig) and config.model.algorithm == "cyclegan":
        kinds["image pool"] = streams * config.model.pool_size * 3 * 4 * config.data.image_size**2
    kinds["DALI"] = dali_bytes(
        images,
        config.data.image_size,
        config.data.prefetch,
        augmentation_bytes=sum(each.bytes_per_value for each in config.data.augment.operations),
        streams=streams,
    )
    return kinds


def count_steps(config: RunConfig, processes: int) -> int | None:
    """Steps of the whole run; None where they follow from a data set and none is named, or there are none.

    UserError where the data set does not fit the run.
    """
    per_epoch = config.train.iterations_per_epoch
    if isinstance(config, FewShotRunConfig) and not config.model.learns_from_rich:
        return None
    if per_epoch is None:
        if config.shards is None:
            return None
        per_epoch = _steps_per_epoch(config, config.open_dataset(), Topology(0, processes))
    return config.train.epochs * per_epoch


def _steps_per_epoch(config: RunConfig, dataset: Dataset, topology: Topology) -> int:
    if isinstance(config, ClassifierRunConfig):
        types = known_cell_types(dataset, config.data)
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
