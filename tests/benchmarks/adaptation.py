"""A trained classifier in a laboratory that it has not seen: as it is, adapted without labels, and with a few labels.

usage:
  uv run python -m tests.benchmarks.adaptation run=DIR shards=DIR domain=NAME out=FILE.json
      [draws=3] [cells=10] [unlabelled=200] [most=60] [steps=100] [methods=statistics,self_training,head,all]
run: a classifier that has not learned from the domain; shards: a data set that holds the domain's images. In each draw
half of the images of each type that the classifier knows, at most `most`, are scored; types with fewer than four images
are not. Of the other half, which is of other patients or slides, `cells` of each type are the labelled ones of one
adaptation, `unlabelled` of any type the images of another. Balanced accuracy is of one view and of eight, with the gain
over the run as it is on the same images. Nothing is chosen by the images that are scored. methods: what is tried. The
file is written anew after each arm.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold

from data_pipeline.catalog import Dataset
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import Topology
from trainer.experiments.machine import describe_machine
from trainer.learners.choices import VIEWS
from trainer.metrics.classification import score
from trainer.tasks.classification.adaptation.adapt import Adapter
from trainer.tasks.classification.adaptation.choice import paired_gain
from trainer.tasks.classification.adaptation.config import SAME_FEATURES, AdaptConfig
from trainer.tasks.classification.adaptation.laboratory import (
    Images,
    Laboratory,
    crop_of,
    images_of,
    images_of_home,
)
from trainer.tasks.classification.adaptation.methods import (
    HeadImages,
    answers_of,
    features_of,
    few_of_each,
    last_layer,
)
from trainer.tasks.classification.inference.load import TrainedClassifier, load_classifier
from trainer.tasks.classification.reports.adaptation_section import WORDS
from trainer.tasks.classification.uncertainty.views import mean_log_probabilities

LEAST_IMAGES = 4  # of a type that is scored


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    trained, topology = load_classifier(Path(arguments["run"])), Topology()
    every, home = _every_image(trained, Dataset.open(arguments["shards"]), arguments["domain"], topology)
    draws: list[dict[str, Any]] = []
    report = {
        "machine": describe_machine(),
        "settings": {name: Path(value).name for name, value in arguments.items()},
        "trained_on": list(trained.domains),
        "checkpoint": trained.checkpoint.digest,
        "data": every.dataset.content_hash,
        "draws": draws,
    }
    for seed in range(int(arguments.get("draws", "3"))):
        draws.append({"seed": seed, "arms": {}})
        for _ in _draw(trained, every, home, arguments, draws[-1], topology):
            Path(arguments["out"]).write_text(json.dumps(report, indent=1) + "\n")
    for arm in draws[0]["arms"]:
        values = [draw["arms"][arm][VIEWS[-1]]["balanced_accuracy"][0] for draw in draws]
        print(
            f"{arm:<40} " + "  ".join(f"{100 * value:.1f}" for value in values) + f"  mean {100 * np.mean(values):.1f}"
        )


def _every_image(
    trained: TrainedClassifier, dataset: Dataset, domain: str, topology: Topology
) -> tuple[Images, Images | None]:
    """The laboratory's images, with the label -1 where the classifier does not know the type; its training images."""
    rows = dataset.samples(domains=[domain])
    crop = {domain: crop_of(trained, dataset, domain)}
    data = dataclasses.replace(trained.config.data, domains=[domain], cell_types=None, crop=crop, order="global")
    every = images_of(dataset, data, rows[rows["origin"] == "real"], trained.cell_types, topology)
    return every, images_of_home(trained, trained.cell_types, topology)[0]


def _draw(
    trained: TrainedClassifier,
    every: Images,
    home: Images | None,
    arguments: dict[str, str],
    result: dict[str, Any],
    topology: Topology,
) -> Iterator[None]:
    """Fill in the arms of one draw of images, and what each was chosen by; yields after each arm."""
    cells, unlabelled = int(arguments.get("cells", "10")), int(arguments.get("unlabelled", "200"))
    most = int(arguments.get("most", "60"))
    methods = ("as_is", *arguments.get("methods", "statistics,self_training,head,all").split(","))
    # Halves of all types, patients and slides apart; each in a random order.
    random = np.random.default_rng(derive_key(result["seed"], "laboratory"))
    halves = StratifiedGroupKFold(2, shuffle=True, random_state=result["seed"])
    groups = np.unique(np.array(every.groups), return_inverse=True)[1]
    rest, held = map(random.permutation, next(halves.split(groups, every.labels, groups)))
    few = np.flatnonzero(np.bincount(every.labels[every.labels >= 0]) < LEAST_IMAGES)
    held = held[(every.labels[held] >= 0) & ~np.isin(every.labels[held], few)]
    scored, none = every.chosen(few_of_each(every.labels, most, held)), every.chosen(rest[:0])
    known = rest[every.labels[rest] >= 0]
    labelled, shown = every.chosen(few_of_each(every.labels, cells, known)), every.chosen(rest[:unlabelled])
    result |= {"scored": len(scored), "labelled": len(labelled), "unlabelled": len(shown)}
    config = AdaptConfig(run=str(trained.folder), seed=result["seed"], steps=int(arguments.get("steps", "100")))
    seen = features_of(trained.network, scored, VIEWS[-1])
    features = HeadImages(seen, scored.labels, seen[:0, 0], scored.labels[:0])
    before = features.answers(last_layer(trained.network))
    result["arms"]["as is"] = _scores(before, before, scored, trained.cell_types)
    yield
    for what, laboratory in (
        (f"{unlabelled} unlabelled", Laboratory(trained.cell_types, none, shown, home, None)),
        (f"{cells} labelled of each type", Laboratory(trained.cell_types, labelled, none, home, None)),
    ):
        adapter = Adapter(config, trained, laboratory, topology)
        adapter.methods = [each for each in adapter.methods if each in methods]
        if adapter.methods == ["as_is"]:
            continue
        network, record, _ = adapter.run()
        result[f"{what}: chosen"] = record.method
        result[f"{what}: reasons"] = [dataclasses.asdict(each) for each in record.methods or record.evidence]
        for method in (record.method, *(each for each in adapter.methods if each not in ("as_is", record.method))):
            if method != record.method:
                network = adapter.adapted(method, np.arange(len(laboratory.labelled)))
            same = method in SAME_FEATURES
            answers = features.answers(last_layer(network)) if same else answers_of(network, scored)
            arm = _scores(answers, before, scored, trained.cell_types)
            if method == record.method:
                result["arms"][f"{what}: chosen"] = arm
            if method != "as_is":
                result["arms"][f"{what}: {WORDS[method]}"] = arm
            yield


def _scores(
    answers: torch.Tensor, before: torch.Tensor, images: Images, cell_types: tuple[str, ...]
) -> dict[int, dict[str, Any]]:
    """For one view and for all: balanced accuracy, its gain over `before`, with intervals; sensitivities.

    answers, before: log probabilities of each view of the same images.
    """
    result: dict[int, dict[str, Any]] = {}
    for views in (1, VIEWS[-1]):
        new, old = (
            mean_log_probabilities(each[:, :views]).double().softmax(dim=1).numpy() for each in (answers, before)
        )
        scores = score(new, images.labels, images.groups, cell_types)
        found = scores["balanced_accuracy"]
        right, was_right = (each.argmax(axis=1) == images.labels for each in (new, old))
        gain, error = paired_gain(right.astype(float) - was_right, images.labels)
        result[views] = {
            "balanced_accuracy": [found.value, found.low, found.high],
            "gain": [gain, gain - 1.96 * error, gain + 1.96 * error],
            "sensitivity": {name: row["sensitivity"].value for name, row in scores.per_type.items() if row.count},
        }
    return result


if __name__ == "__main__":
    main()
