"""Finding cells in whole fields: a detector is trained, its bounds are chosen, it is scored and reported."""

from collections.abc import Mapping
from pathlib import Path

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages, learned_by_makers
from data_pipeline.stream.stream import Stream, Topology
from trainer.learners.learner import Setting
from trainer.loop.algorithm import Algorithm
from trainer.loop.selection import Selection
from trainer.runs import registry
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.runs.provenance import learned_by_run, say, unseen
from trainer.runs.task import Session, Task
from trainer.tasks.detection.config import DetectorRunConfig
from trainer.tasks.detection.load import build_network, load_detector, save_bounds
from trainer.tasks.detection.targets import FieldBoxes, fields_of, kinds_of


class DetectorSession(Session[DetectorRunConfig]):
    """A detector's training."""

    def __init__(self, config: DetectorRunConfig, dataset: Dataset, topology: Topology) -> None:
        self.config, self.dataset, self.topology = config, dataset, topology
        self._run = Path(str(config.run))
        stream = training_stream(dataset, config, topology)
        self.streams: Mapping[str, Stream] = {"train": stream}
        self.cell_types = kinds_of(fields_of(dataset, ["train"], config.data.domains))
        self.epoch_steps = config.train.iterations_per_epoch or stream.batches_per_epoch
        for split in ("validation", "test"):  # that one of them is empty is better known before the training
            fields_of(dataset, [split], config.data.domains)

    def build(self, setting: Setting, *, fresh: bool) -> Algorithm:
        config = self.config
        network = build_network(config.model, len(self.cell_types), fresh=fresh)
        boxes = FieldBoxes(self.streams["train"], self.dataset, self.cell_types, config.seed)
        algorithm = registry.algorithm_class(config.kind, config.model.algorithm)
        built: Algorithm = algorithm(network, config, setting, boxes)
        self._detector = built.learners["detector"]
        return built

    def score_epoch(self, step: int) -> dict[str, float]:
        from trainer.tasks.detection.scoring import detect_all, field_stream, precision_scores

        self._detector.share_buffers()
        stream = field_stream(self.dataset, self.config.data, "validation", self.topology)
        with self._detector.autocast():
            fields = detect_all(self._detector.average, stream, self.dataset, self.cell_types)
        return precision_scores(fields, self.cell_types)

    def finish(self) -> None:
        """Choose the least score of a counted box on validation fields, score the best checkpoint on test fields."""
        if self.topology.rank != 0:
            return
        from trainer.metrics.detection import choose_least_score
        from trainer.tasks.detection.scoring import detect_all, field_stream

        trained, data = load_detector(self._run), self.config.data
        stream = field_stream(self.dataset, data, "validation", self.topology)
        fields = detect_all(trained.network.to(self.topology.device), stream, self.dataset, trained.kinds)
        bounds = {kind: choose_least_score(fields, kind) for kind in trained.kinds}
        save_bounds(self._run, trained.checkpoint, bounds)
        score(self._run, self.dataset, "test", self.learned, EvaluateConfig(), self.topology)


class Detection(Task[DetectorRunConfig]):
    """A detector that finds cells in whole fields."""

    kind = "detection"
    launcher = "train_detector.py"
    config = DetectorRunConfig
    whole_fields = True
    session = DetectorSession
    load = staticmethod(load_detector)

    def build(self, config: DetectorRunConfig, types: int, setting: Setting) -> Algorithm:
        raise UserError("the memory of a detector depends on the boxes of its fields: it cannot be planned")

    def selection(self, config: DetectorRunConfig, dataset: Dataset) -> Selection:
        return Selection("average_precision")

    def learned(self, config: DetectorRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
        """Training fields, and validation fields, by which checkpoint and bounds are chosen."""
        trained, chosen = (
            fields_of(dataset, [split], config.data.domains)["id"].tolist() for split in ("train", "validation")
        )
        own = LearnedImages.of(dataset, {"trained": trained, "chosen": chosen})
        return LearnedImages.joined([own, learned_by_makers(dataset)])

    def evaluate(self, run: Path, config: EvaluateConfig, topology: Topology) -> None:
        if topology.world_size > 1:
            raise UserError(
                "a detector is scored by one process: start evaluate.py with python, not accelerate or torchrun"
            )
        if config.split == "all" or config.domain is not None or config.folds is not None:
            raise UserError(f"{run}: a detector is scored on one split: leave out domain= and folds=")
        dataset = config.open_dataset(load_detector(run).config)
        score(run, dataset, config.split, learned_by_run(run), config, topology)
        print(self.write_report(run).resolve())

    def write_report(self, run: Path) -> Path:
        from trainer.tasks.detection.report import write_detector_report

        return write_detector_report(run)


TASK = Detection()


def training_stream(dataset: Dataset, config: DetectorRunConfig, topology: Topology) -> Stream:
    """The fields that a detector learns from, padded to squares."""
    return Stream(
        dataset,
        config.data,
        splits=["train"],
        cell_types=[""],
        ids=fields_of(dataset, ["train"], config.data.domains)["id"].tolist(),
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        seed=config.seed,
        training=True,
        topology=topology,
        pad=True,
    )


def score(
    run: Path, dataset: Dataset, split: str, learned: LearnedImages, config: EvaluateConfig, topology: Topology
) -> None:
    """Score a run on a split without fields that it has seen, and save the record."""
    from trainer.metrics.evaluation import save_record
    from trainer.metrics.records import to_json
    from trainer.tasks.detection.scoring import evaluate

    trained = load_detector(run)
    ids = fields_of(dataset, [split], trained.config.data.domains)["id"].tolist()
    remedy = "score split=test, or fields that the run has not seen"
    seen = unseen(learned, dataset, ids, config.seen_images, f"split {split}", remedy)
    say(seen, split)
    record = evaluate(trained, dataset, split, topology, seen)
    own_test = dataset.content_hash == trained.dataset_hash and split == "test"
    save_record(run, to_json(record), own_test=own_test)
