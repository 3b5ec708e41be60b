"""What a run learned from and was chosen by, itself and through the runs that it began with."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.catalog import Dataset
from data_pipeline.dataset_config import SeenChoice
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages, SeenImages, learned_by_makers
from trainer.loop.checkpoint import CheckpointStore
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.conditional import load as conditional_run
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.few_shot import load as few_shot_run
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episodes import data_of_run
from trainer.tasks.stain.config import StainRunConfig

# What config.yaml says beside the settings.
_FACTS = ("kind", "cell_types", "dataset_hash", "storage", "normalizer", "domain")


def learned_by_classifier(config: ClassifierRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
    """Training images, and validation images by which the best checkpoint and the temperature are chosen."""
    trained, chosen = (
        dataset.samples(splits=[split], domains=config.data.domains, cell_types=cell_types, columns=["id"])["id"]
        for split in ("train", "validation")
    )
    own = LearnedImages.of(dataset, {"trained": trained.tolist(), "chosen": chosen.tolist()})
    return LearnedImages.joined([own, learned_by_weights(config.model.weights), learned_by_makers(dataset)])


def learned_by_stain_model(config: StainRunConfig, dataset: Dataset, cell_types: tuple[str, ...]) -> LearnedImages:
    """Images of both domains, and what the teacher of a student learned from."""
    ids: list[str] = []
    for domain in (str(config.a), str(config.b)):
        folds = config.folds.get(domain)
        splits = ["train"] if folds is None else None
        rows = dataset.samples(splits=splits, domains=[domain], cell_types=cell_types, folds=folds, columns=["id"])
        ids += rows["id"].tolist()
    parts = [LearnedImages.of(dataset, {"trained": ids}), learned_by_makers(dataset)]
    if config.model.teacher is not None:
        parts.append(learned_by_run(Path(config.model.teacher)).through(f"{config.model.teacher} (model.teacher=)"))
    return LearnedImages.joined(parts)


def learned_by_conditional_model(
    config: ConditionalRunConfig, dataset: Dataset, cell_types: tuple[str, ...]
) -> LearnedImages:
    """Training images of the types that it makes."""
    rows = dataset.samples(
        splits=["train"], domains=config.data.domains, cell_types=cell_types, columns=["id", "origin"]
    )
    own = LearnedImages.of(dataset, {"trained": rows["id"][rows["origin"] != "synthetic"].tolist()})
    return LearnedImages.joined([own, learned_by_makers(dataset)])


def learned_by_few_shot_model(config: FewShotRunConfig, dataset: Dataset) -> LearnedImages:
    """Training images of rich and rare types."""
    data = data_of_run(config, dataset)
    own = LearnedImages.of(dataset, {"trained": [*data.rich_ids, *data.rare_ids]})
    return LearnedImages.joined([own, learned_by_makers(dataset)])


def learned_at_start(run: Path, dataset: Dataset, compute: Callable[[], LearnedImages]) -> LearnedImages:
    """What a run that is about to train learns from; of one that has begun on this data set, what it wrote then."""
    begun = CheckpointStore(run / "checkpoints").latest() is not None and (run / FILE).exists()
    if begun and read_run_config(run).get("dataset_hash") == dataset.content_hash:
        return LearnedImages.load(run / FILE)
    return compute()


def learned_by_weights(weights: str | None) -> LearnedImages:
    """What `model.weights=` learned from; timm's weights have seen no blood cells. A file may lie in a run's folder."""
    if weights is None or weights == "pretrained":
        return LearnedImages()
    path, name = Path(weights).resolve(), f"{weights} (model.weights=)"
    for folder in (path, *path.parents[:2]):
        if (folder / FILE).exists() or (folder / CONFIG_FILE).exists():
            return learned_by_run(folder).through(name)
    reason = "a file of weights says nothing of the images that it learned from"
    return LearnedImages.unknown_because(reason).through(name)


def learned_by_run(run: Path) -> LearnedImages:
    """What a run wrote when it began; of a run made before that was written, what its data set says where it is.

    UserError where the folder is no run.
    """
    if (run / FILE).exists():
        return LearnedImages.load(run / FILE)
    content = read_run_config(run)
    before = "made before runs kept what they learned from"
    try:
        dataset = Dataset.read_catalog(str(content["shards"]))
        if dataset.content_hash != content["dataset_hash"]:
            return LearnedImages.unknown_because(f"{before}, and its data set {dataset.address} has changed since")
    except KeyError as error:
        raise UserError(f"{run / CONFIG_FILE}: not written by a launcher that trains ({error} is missing)") from None
    except UserError:
        return LearnedImages.unknown_because(f"{before}, and its data set is not at {content['shards']}")
    return _computed(content, dataset, str(run / CONFIG_FILE))


def _computed(content: dict[str, Any], dataset: Dataset, where: str) -> LearnedImages:
    """What a run of this config.yaml learned from of its data set."""
    kind, cell_types = content.get("kind"), tuple(content.get("cell_types", ()))
    values = {name: value for name, value in content.items() if name not in _FACTS}
    if kind == conditional_run.KIND:
        return learned_by_conditional_model(typed(ConditionalRunConfig, values, where), dataset, cell_types)
    if kind == few_shot_run.KIND:
        return learned_by_few_shot_model(typed(FewShotRunConfig, values, where), dataset)
    if "algorithm" in content.get("model", {}):
        return learned_by_stain_model(typed(StainRunConfig, values, where), dataset, cell_types)
    return learned_by_classifier(typed(ClassifierRunConfig, values, where), dataset, cell_types)


def unseen(
    learned: LearnedImages, dataset: Dataset, ids: list[str], choice: SeenChoice, place: str, remedy: str
) -> SeenImages:
    """Which of these images may not be scored. UserError where `choice` is to refuse them, or none would be left."""
    seen = learned.seen_among(dataset, ids)
    seen.require_unseen(choice, f"{place} of {dataset.root}", remedy)
    return seen


def say(seen: SeenImages, what: str) -> None:
    """Tell the user what a score leaves out, and what about it could not be checked."""
    if seen.through:
        print(
            f"{what}: {len(seen.through)} of {seen.count} images left out, seen before ({seen.words})", file=sys.stderr
        )
    for line in seen.unchecked:
        print(f"{what}: not checked whether all images are unseen: {line}", file=sys.stderr)
