"""If these fail, a corruption score is of other images than its table says, or of none."""

from collections import defaultdict

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.stream.augmentations import Augmentation
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from trainer.metrics.corruption import format_corruptions
from trainer.tasks.classification.evaluation.corruptions import CORRUPTIONS, Corruption, score_corruptions

TYPES = ("basophil", "eosinophil", "lymphocyte")


def images(dataset: Dataset, *operations: Augmentation, batch: int = 4) -> npt.NDArray[np.float32]:
    stream = Stream(
        dataset,
        StreamConfig(image_size=96, threads=1, prefetch=1),
        splits=["test"],
        cell_types=TYPES,
        ids=dataset.samples(splits=["test"])["id"].tolist()[:8],
        global_batch=batch,
        training=False,
        operations=operations,
    )
    return torch.cat([part.images for part in stream.read()]).numpy()


def test_a_higher_severity_is_further_from_the_clean_images(tiny_dataset: Dataset) -> None:
    clean = images(tiny_dataset)
    change: dict[str, list[float]] = defaultdict(list)
    for corruption in CORRUPTIONS:
        change[corruption.kind].append(float(np.abs(images(tiny_dataset, corruption) - clean).mean()))
    for kind, by_severity in change.items():
        assert len(by_severity) == 3
        assert 0.001 < by_severity[0] < by_severity[1] < by_severity[2], kind


def test_the_corrupted_images_do_not_depend_on_the_batch(tiny_dataset: Dataset) -> None:
    """Else a score changes with the memory of the machine that computes it."""
    for kind in ("noise", "JPEG"):
        corruption = next(each for each in CORRUPTIONS if each.kind == kind)
        assert np.array_equal(images(tiny_dataset, corruption), images(tiny_dataset, corruption, batch=3))


def test_the_score_is_the_mean_over_kinds_and_severities() -> None:
    samples = pd.DataFrame({"cell_type": ["basophil", "basophil", "basophil", "eosinophil"]})

    def answer(corruption: Augmentation) -> tuple[torch.Tensor, pd.DataFrame]:
        """Right for all basophils; for the eosinophil at severity 1 only."""
        assert isinstance(corruption, Corruption)
        eosinophil = [0.0, 5.0, 0.0] if corruption.severity == 1 else [5.0, 0.0, 0.0]
        return torch.tensor([[5.0, 0.0, 0.0]] * 3 + [eosinophil]), samples

    record = score_corruptions(answer, CORRUPTIONS, TYPES)
    kinds = len(CORRUPTIONS) // 3
    assert [each.balanced_accuracy for each in record.scores] == [1.0, 0.5, 0.5] * kinds
    assert np.isclose(record.balanced_accuracy, 2 / 3)
    assert np.isclose(record.accuracy, (1 + 2 * 0.75) / 3)
    table = format_corruptions(record).splitlines()
    assert table[1].split() == ["defocus", "100.0", "50.0", "50.0"]
    assert table[-1].split() == ["mean", "66.7", "(accuracy", "83.3)"]
