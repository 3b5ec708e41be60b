"""The thesis's protocol as a control: balance first, split afterwards. Not a score of a classifier.

All images of a balanced data set, synthetic and normalised ones too, are dealt to training, validation and test at
random, whatever their patient, parent or generator. So the test images are copies of a kind of those that were trained
on.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.curate import split_of
from data_pipeline.learned_images import LearnedImages, Role, SeenImages
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.metrics.classification import format_scores, score
from trainer.metrics.evaluation import ScoredData
from trainer.metrics.records import to_json, write_json
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.inference.logits import predict_all, scoring_batch
from trainer.tasks.classification.reports.control_record import FILE, ControlRecord, words_of
from trainer.tasks.classification.training.session import ClassifierSession
from trainer.tasks.classification.uncertainty.calibration import calibrated_probabilities


def dealt(dataset: Dataset, config: StreamConfig, split: str, cell_types: Sequence[str]) -> pd.DataFrame:
    """The images, of all splits of the data set, that the control deals to a split by the hash of their id."""
    rows = dataset.samples(domains=config.domains, cell_types=cell_types, columns=["id", "origin", "group"])
    return rows[rows["id"].map(split_of) == split]


def own_images(config: ClassifierRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
    """The images of the data set that a run is trained on and chosen by, under either protocol."""
    roles: dict[Role, list[str]] = {"trained": [], "chosen": []}
    for role, split in zip(roles, ("train", "validation"), strict=True):
        if config.protocol == "balance_first":
            rows = dealt(dataset, config.data, split, cell_types)
        else:
            rows = dataset.samples([split], config.data.domains, cell_types, columns=["id"])
        roles[role] = rows["id"].tolist()
    return LearnedImages.of(dataset, roles)


class BalanceFirstSession(ClassifierSession):
    """A classifier's training under the thesis's protocol."""

    def _training(self) -> Stream:
        return self._stream("train", training=True)

    def _held_out(self, split: str) -> tuple[Stream, SeenImages]:
        return self._stream(split, training=False), SeenImages(0, 0, {}, ())

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm | None:
        algorithm = super().build(setting, fresh=fresh)
        if algorithm is None:
            raise UserError(f"protocol=balance_first: {self.config.model.name} is not trained in steps: name another")
        return algorithm

    def _dealt(self, split: str) -> pd.DataFrame:
        return dealt(self.dataset, self.config.data, split, self.cell_types)

    def _stream(self, split: str, *, training: bool) -> Stream:
        config, train = self.config, self.config.train
        batch = train.global_batch if training else scoring_batch(train) * self.topology.world_size
        return Stream(
            self.dataset,
            config.data,
            splits=None,
            cell_types=self.cell_types,
            ids=self._dealt(split)["id"].tolist(),
            global_batch=batch,
            micro_batch=train.micro_batch if training else None,
            seed=config.seed,
            training=training,
            topology=self.topology,
        )

    def finish(self) -> None:
        stream = self._test[0]
        network = load_classifier(self._run).network.to(self.topology.device)
        answers = calibrated_probabilities(predict_all(network, stream), 1.0).numpy()
        if self.topology.rank == 0:
            rows, dataset = stream.samples, self.dataset
            origins = self._dealt("test").set_index("id").loc[rows["id"], "origin"]
            known = set(self._dealt("train")["group"])
            right = pd.Series(answers.argmax(axis=1) == np.array(stream.labels)).groupby(origins.to_numpy()).mean()
            # Each image by itself: the protocol takes them for independent.
            scores = score(answers, np.array(stream.labels), rows["id"].tolist(), self.cell_types)
            domains = sorted(set(rows["domain"]))
            record = ControlRecord(
                self.config.protocol,
                ScoredData(dataset.address, dataset.content_hash, "control", domains, len(rows)),
                {str(name): int(count) for name, count in origins.value_counts().items()},
                int(rows["group"].isin(known).sum()),
                scores,
                {str(name): float(share) for name, share in right.items()},
            )
            write_json(self._run / FILE, to_json(record))
            print(f"{words_of(record)}\n{format_scores(scores)}")
