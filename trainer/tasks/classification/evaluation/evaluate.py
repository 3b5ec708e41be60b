"""Scoring a trained classifier on a data set; the predictions are kept beside the scores."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import SeenImages
from data_pipeline.lineage import normalization, normalization_needs_label
from data_pipeline.stream.augmentations import Augmentation
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from trainer.metrics.classification import Scores, epoch_scores, score, trust
from trainer.metrics.evaluation import (
    HEAT,
    CalibrationRecord,
    ClassifierEvaluation,
    ScoredCheckpoint,
    ScoredData,
    ScoredMember,
    SeenRecord,
    predictions_frame,
    shown_cells,
)
from trainer.metrics.measures import epoch_measures
from trainer.metrics.uncertainty import COVERAGES, UNFAMILIARITY, UncertaintyRecord, uncertainty_scores
from trainer.tasks.classification.evaluation.corruptions import Corruption, score_corruptions
from trainer.tasks.classification.evaluation.everyday_pictures import unfamiliarity_of_pictures
from trainer.tasks.classification.inference.ensemble import Answering, Ensemble
from trainer.tasks.classification.inference.grad_cam import GradCam, predict_with_heat
from trainer.tasks.classification.inference.logits import predict_all, scoring_stream
from trainer.tasks.classification.inference.scale import nucleus_of_domain
from trainer.tasks.classification.uncertainty.calibration import Calibration, calibrated_probabilities


def validation_scores(classifier: nn.Module, stream: Stream) -> dict[str, float]:
    """The measures computed after each epoch, by their names there, on a stream's samples; NaN for NaN logits."""
    probabilities = calibrated_probabilities(predict_all(classifier, stream), 1.0)
    if not probabilities.isfinite().all():
        return dict.fromkeys(epoch_measures(), math.nan)
    return epoch_scores(probabilities.numpy(), np.array(stream.labels))


@dataclass(frozen=True)
class _Pass:
    """Images that go through the same network: those of some domains."""

    network: nn.Module
    config: StreamConfig


@dataclass(frozen=True)
class _Answers:
    """Answers of an ensemble to the images that are scored."""

    ensemble: Ensemble
    dataset: Dataset
    passes: Sequence[_Pass]
    splits: Sequence[str]
    folds: Sequence[int] | None
    left_out: Collection[str]  # ids
    topology: Topology

    def __call__(
        self, *operations: Augmentation, of: Sequence[str] | None = None, passes: Sequence[_Pass] | None = None
    ) -> tuple[torch.Tensor, pd.DataFrame]:
        """Logits [n, types] of the images changed by these operations, and their rows.

        of: the images' types, default those that the ensemble knows. passes: default all. The rows have a column
        UNFAMILIARITY where the ensemble knows it.
        """
        ensemble, uncertainty = self.ensemble, self.ensemble.uncertainty
        logits, rows = [], []
        for each in self.passes if passes is None else passes:
            stream = scoring_stream(
                self.dataset,
                each.config,
                splits=self.splits,
                cell_types=ensemble.cell_types if of is None else of,
                batch=ensemble.batch,
                topology=self.topology,
                folds=self.folds,
                left_out=self.left_out,
                operations=operations,
            )
            network = each.network if uncertainty is None else uncertainty.added_to(each.network)
            found = predict_all(network.to(self.topology.device), stream)
            types = len(ensemble.cell_types)
            logits.append(found[:, :types])
            beside = {UNFAMILIARITY: found[:, -1].numpy()} if found.shape[1] > types else {}
            rows.append(stream.samples.assign(**beside))
        return torch.cat(logits), pd.concat(rows, ignore_index=True)


def evaluate(
    ensemble: Ensemble,
    dataset: Dataset,
    config: StreamConfig,
    *,
    splits: Sequence[str],
    topology: Topology,
    seen: SeenImages,
    folds: Sequence[int] | None = None,
    corruptions: Sequence[Corruption] = (),
) -> tuple[ClassifierEvaluation, pd.DataFrame]:
    """Score real images of the types the classifier knows; count those of other types.

    Raw images of a normaliser's source domain go through it first. config: domains, and how images are decoded. seen:
    its images are left out. corruptions: the images are scored with each of these, too.
    Returns the record, and one row of probabilities per image; on rank 0 with heat maps of cells that a report shows.
    """
    cell_types = ensemble.cell_types
    everything = dataset.samples(
        splits=splits, domains=config.domains, folds=folds, columns=["id", "cell_type", "origin", "domain"]
    )
    everything = everything[~everything["id"].isin(list(seen.through))]
    _refuse_label_normalized(dataset, everything)
    here = set(everything[everything["cell_type"].isin(cell_types)]["domain"])
    passes = _passes(ensemble, dataset, config, here, topology)
    answer = _Answers(ensemble, dataset, passes, splits, folds, seen.through, topology)
    logits, samples = answer()
    answers, scores, calibrated = _scores(samples, logits, cell_types, ensemble.calibration)
    other = everything.loc[~everything["cell_type"].isin(cell_types), "cell_type"].replace("", "unlabelled")
    split = "+".join(splits) + (f"-folds{'+'.join(map(str, folds))}" if folds is not None else "")
    members = [ScoredMember(str(each.folder), ScoredCheckpoint.of(each.checkpoint)) for each in ensemble.members]
    record = ClassifierEvaluation(
        ScoredData(dataset.address, dataset.content_hash, split, sorted(set(samples["domain"])), len(samples)),
        ScoredCheckpoint.of(ensemble.members[0].checkpoint),
        _normalizer_of(ensemble, dataset, samples, everything),
        SeenRecord.of(seen),
        list(cell_types),
        {str(name): int(count) for name, count in other.value_counts().items()},
        scores,
        calibrated,
        ensemble.views,
        members if len(members) > 1 else [],
        corruptions=score_corruptions(answer, corruptions, cell_types) if corruptions else None,
        uncertainty=_uncertainty(answer, everything, samples, answers),
    )
    frame = predictions_frame(samples, answers, cell_types)
    if topology.rank == 0:
        frame[HEAT] = _heat_of_shown(frame, passes, ensemble, dataset, topology)
    return record, frame


def _uncertainty(
    answer: _Answers, everything: pd.DataFrame, samples: pd.DataFrame, answers: NDArray[np.float64]
) -> UncertaintyRecord | None:
    """How far the sets of types and the unfamiliarity can be trusted; None for an ensemble without them.

    Images of types that it does not know, and everyday pictures, are to be unfamiliar.
    """
    ensemble, uncertainty = answer.ensemble, answer.ensemble.uncertainty
    if uncertainty is None:
        return None
    least = {coverage: uncertainty.least_probability(coverage) for coverage in COVERAGES}
    first = answer.passes[0]
    network, size = uncertainty.added_to(first.network), first.config.image_size
    unknown = [unfamiliarity_of_pictures(network, size, ensemble.batch, answer.topology.device)]
    others = everything[~everything["cell_type"].isin([*ensemble.cell_types, ""])]
    there = [each for each in answer.passes if others["domain"].isin(each.config.domains or others["domain"]).any()]
    if there:
        unknown.append(answer(of=sorted(set(others["cell_type"])), passes=there)[1])
    return uncertainty_scores(samples, answers, ensemble.cell_types, least, pd.concat(unknown))


def _scores(
    samples: pd.DataFrame, logits: torch.Tensor, cell_types: Sequence[str], calibration: Calibration
) -> tuple[NDArray[np.float64], Scores, CalibrationRecord]:
    """Calibrated probabilities [n, types], their scores, and the trust in them and in uncalibrated ones."""
    answers = calibrated_probabilities(logits, calibration.temperature).numpy()
    labels = samples["cell_type"].map({name: number for number, name in enumerate(cell_types)}).to_numpy(np.int64)
    truth = labels, samples["group"].tolist(), cell_types
    uncalibrated = trust(calibrated_probabilities(logits, 1.0).numpy(), *truth)
    record = CalibrationRecord(calibration.temperature, calibration.images, calibration.remark, uncalibrated)
    return answers, score(answers, *truth), record


def _passes(
    ensemble: Ensemble, dataset: Dataset, config: StreamConfig, domains: Collection[str], topology: Topology
) -> list[_Pass]:
    """One pass for all domains that go through the same network; crops may differ in it."""
    known = set(dataset.samples(columns=["domain"])["domain"])
    alike: dict[Any, dict[str, Answering]] = {}
    for domain in sorted(domains) or config.domains or [""]:
        measured = domain in known and ensemble.takes_nucleus_of(domain)
        nucleus = nucleus_of_domain(dataset, domain, by_labels=False) if measured else None
        answering = ensemble.answering([domain] * len(ensemble.members), nucleus)
        through = tuple(each and each.source for each in answering.normalizers)
        alike.setdefault((answering.image_size, answering.shares, through), {})[domain] = answering
    passes = []
    for (image_size, *_), group in alike.items():
        crop = {domain: each.crop for domain, each in group.items() if domain in known and each.crop != 1}
        network = next(iter(group.values())).network.to(topology.device)
        only = sorted(known & set(group)) or config.domains
        passes.append(_Pass(network, replace(config, cell_types=None, domains=only, image_size=image_size, crop=crop)))
    return passes


def _heat_of_shown(
    frame: pd.DataFrame,
    passes: Sequence[_Pass],
    ensemble: Ensemble,
    dataset: Dataset,
    topology: Topology,
) -> "pd.Series[Any]":
    """Heat map of each row; None where a report does not show it, and for several views, runs or no feature maps."""
    shown = pd.concat(shown_cells(frame, ensemble.cell_types))
    heat: dict[str, bytes] = {}
    for each in passes:
        domains = set(shown["domain"]) & set(each.config.domains or shown["domain"])
        for domain in sorted(domains):
            try:
                grad_cam = GradCam(each.network, ensemble.plain, each.config.image_size, topology.device)
            except UserError:
                return frame["id"].map({}).astype(object)
            crop = each.config.crop.get(domain, 1.0)
            stream = Stream(
                dataset,
                replace(each.config, domains=[domain], crop={domain: crop}),
                splits=None,
                cell_types=ensemble.cell_types,
                ids=shown.loc[shown["domain"] == domain, "id"].tolist(),
                global_batch=ensemble.batch,
                training=False,
                topology=Topology(device=topology.device),
            )
            _, rows, found = predict_with_heat(grad_cam, stream.read(), crop)
            heat |= dict(zip(stream.samples["id"].iloc[rows.numpy()], found, strict=True))
    return frame["id"].map(heat).astype(object)


def _normalizer_of(
    ensemble: Ensemble, dataset: Dataset, samples: pd.DataFrame, everything: pd.DataFrame
) -> dict[str, Any] | None:
    """The normaliser of the scored images: on the way to the classifier, or in the data set.

    Of an ensemble those of its members, by the members' folders; of one of both directions each, by its source.
    """
    domains, found = set(samples["domain"]), {}
    for member in ensemble.members:
        directions = [] if member.normalizer is None else member.normalizer.directions
        for through in (each for each in directions if each.source in domains):
            names = [str(member.folder)] * (len(ensemble.members) > 1) + [through.source] * (len(directions) > 1)
            seen = through.count_seen(dataset, samples)
            found[" ".join(names)] = through.describe() | {"images_it_learned_from": seen}
    if found:
        return found.get("", found)
    if (everything["origin"] == "normalized").any():
        return dict(normalization(dataset))
    return None


def _refuse_label_normalized(dataset: Dataset, rows: pd.DataFrame) -> None:
    if normalization_needs_label(dataset) and (rows["origin"] == "normalized").any():
        raise UserError(
            f"{dataset.root}: images of this split were normalised by policy=thesis, which needed their labels: they "
            "are never scored; score split=test, or a data set normalised by policy=to_a"
        )
