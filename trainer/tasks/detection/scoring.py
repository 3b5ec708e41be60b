"""Scoring a detector on whole fields, beside the finder of nuclei that needs no training."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.images import decode_rgb
from data_pipeline.learned_images import SeenImages
from data_pipeline.progress_bar import track
from data_pipeline.sources.fields import WHITE_CELL
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from trainer.metrics.detection import DetectionEvaluation, ScoredField, average_precisions, score_kinds
from trainer.metrics.evaluation import ScoredCheckpoint, ScoredData, SeenRecord
from trainer.tasks.detection.load import TrainedDetector, detect
from trainer.tasks.detection.nuclei import NucleusFinder
from trainer.tasks.detection.targets import FieldBoxes, fields_of

_BATCH = 8


def field_stream(
    dataset: Dataset, config: StreamConfig, split: str, topology: Topology, left_out: Sequence[str] = ()
) -> Stream:
    """Each whole field of a split once."""
    ids = fields_of(dataset, [split], config.domains)["id"]
    return Stream(
        dataset,
        config,
        splits=[split],
        cell_types=[""],
        ids=ids[~ids.isin(list(left_out))].tolist(),
        global_batch=_BATCH,
        training=False,
        topology=Topology(device=topology.device),  # every rank scores all: fields are few
        pad=True,
    )


def detect_all(network: nn.Module, stream: Stream, dataset: Dataset, kinds: Sequence[str]) -> list[ScoredField]:
    """The fields of a stream, with the boxes that are true and those that the network finds, of any score."""
    truth = FieldBoxes(stream, dataset, kinds, seed=0)
    fields: list[ScoredField] = []
    for batch in stream.read():
        found = detect(network, batch.images, kinds, [truth.squares[row] for row in batch.rows])
        fields += [ScoredField(truth.boxes[row], boxes) for row, boxes in zip(batch.rows, found, strict=True)]
    return fields


def evaluate(
    trained: TrainedDetector, dataset: Dataset, split: str, topology: Topology, seen: SeenImages
) -> DetectionEvaluation:
    """Score a run's detector on a split. seen: its fields are left out."""
    stream = field_stream(dataset, trained.config.data, split, topology, list(seen.through))
    fields = detect_all(trained.network.to(topology.device), stream, dataset, trained.kinds)
    domains = sorted(set(stream.samples["domain"]))
    return DetectionEvaluation(
        ScoredData(dataset.address, dataset.content_hash, split, domains, len(fields)),
        ScoredCheckpoint.of(trained.checkpoint),
        None,
        SeenRecord.of(seen),
        score_kinds(fields, {kind: trained.least_scores.get(kind, 0.5) for kind in trained.kinds}),
        score_kinds(_classical(stream, dataset), {WHITE_CELL: 0.0}) if WHITE_CELL in trained.kinds else {},
    )


def _classical(stream: Stream, dataset: Dataset) -> list[ScoredField]:
    finder, truth = NucleusFinder(), FieldBoxes(stream, dataset, [WHITE_CELL], seed=0)
    rows = dataset.samples().set_index("id", drop=False).loc[stream.samples["id"]].itertuples(index=False)
    pictures = (np.asarray(decode_rgb(dataset.read_encoded(row))) for row in rows)
    tracked = track(pictures, len(stream.samples), "classical finder", "field")
    return [ScoredField(boxes, finder.find(pixels)) for boxes, pixels in zip(truth.boxes, tracked, strict=True)]


def precision_scores(fields: Sequence[ScoredField], kinds: Sequence[str]) -> dict[str, float]:
    """Scores of an epoch: `average_precision`, mean over kinds and IoU 0.5 to 0.95; `ap50_KIND`, of one kind at 0.5."""
    found = {kind: average_precisions(fields, kind) for kind in kinds}
    whole = [each[1] for each in found.values() if not np.isnan(each[1])]
    scores = {
        f"ap50_{kind.replace(' ', '_')}": at_half for kind, (at_half, _) in found.items() if not np.isnan(at_half)
    }
    return {"average_precision": float(np.mean(whole)) if whole else 0.0, **scores}
