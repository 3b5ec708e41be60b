"""What a classifier learns from: its cell types and the stream of its training images."""

from collections.abc import Sequence

from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.split_check import way_out
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.sampling import GeneratedUse
from data_pipeline.stream.stream import Stream, Topology
from trainer.tasks.classification.config import ClassifierRunConfig


def training_stream(
    dataset: Dataset,
    config: ClassifierRunConfig,
    cell_types: Sequence[str],
    topology: Topology,
    *,
    augmented: bool = True,
) -> Stream:
    """The images a classifier learns from. augmented=False: each once, as it is, in a fixed order."""
    synthetic, train = config.train.synthetic, config.train

    def real_from(epoch: int) -> int:
        return round(synthetic.until * train.epochs * (train.iterations_per_epoch or epoch))

    return Stream(
        dataset,
        config.data,
        splits=["train"],
        cell_types=cell_types,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=augmented,
        topology=topology,
        generated=GeneratedUse(synthetic.replace, real_from if synthetic.until < 1 else None),
    )


def known_cell_types(dataset: Dataset, config: StreamConfig) -> tuple[str, ...]:
    """The types a classifier learns: those with training images, in the order of CELL_TYPES."""
    rows = dataset.samples(
        splits=["train"], domains=config.domains, cell_types=config.cell_types, columns=["cell_type"]
    )
    present = set(rows["cell_type"])
    missing = [name for name in config.cell_types or [] if name not in present]
    if missing:
        raise UserError(f"{dataset.root}: no training image of {', '.join(missing)}: see data.cell_types")
    known = tuple(name for name in CELL_TYPES if name in present)
    if len(known) < 2:
        raise UserError(
            f"{dataset.root}: training images of {len(known)} cell types in domains {config.domains or 'all'}: "
            "a classifier needs two at least; " + (way_out(dataset, ["train"]) or "see the counts in build_report.json")
        )
    return known
