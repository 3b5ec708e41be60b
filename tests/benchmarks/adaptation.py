"""A trained classifier in a laboratory that it has not seen: as it is, adapted without labels, and with a few labels.

usage:
  uv run python -m tests.benchmarks.adaptation run=DIR shards=DIR domain=NAME out=FILE.json
      [draws=3] [cells=10] [unlabelled=200] [most=60] [steps=100] [methods=statistics,self_training,head,all]
run: a classifier that has not learned from the domain; shards: a data set that holds the domain's images. In each draw
`cells` cells of each type (of a type with fewer than twice as many, half of them) are taken as labelled, and another
`unlabelled` images, of any type, as unlabelled. Scored are the other images of the types that the classifier knows, at
most `most` of a type, by balanced accuracy. Nothing is chosen by the images that are scored. Other zooms are always
tried; methods: what else is. The file is written anew after each draw.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import Topology
from trainer.experiments.machine import describe_machine
from trainer.metrics.classification import score
from trainer.tasks.classification.adaptation import Adapter
from trainer.tasks.classification.adaptation_config import WITH_LABELS, WITH_UNLABELLED, AdaptConfig, Method
from trainer.tasks.classification.adaptation_data import Images, Laboratory, Numbers, images_of, images_of_home
from trainer.tasks.classification.adaptation_evidence import evidence_of
from trainer.tasks.classification.adaptation_methods import answers_of, few_of_each
from trainer.tasks.classification.load import TrainedClassifier, load_classifier
from trainer.tasks.classification.views import mean_log_probabilities


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
        draws.append(_draw(trained, every, home, arguments, seed, topology))
        Path(arguments["out"]).write_text(json.dumps(report, indent=1) + "\n")
    for arm in draws[0]["arms"]:
        values = [draw["arms"][arm]["balanced_accuracy"][0] for draw in draws]
        print(
            f"{arm:<40} " + "  ".join(f"{100 * value:.1f}" for value in values) + f"  mean {100 * np.mean(values):.1f}"
        )


def _every_image(
    trained: TrainedClassifier, dataset: Dataset, domain: str, topology: Topology
) -> tuple[Images, Images | None]:
    """The laboratory's images, with the label -1 where the classifier does not know the type; its training images."""
    rows = dataset.samples(domains=[domain])
    crop = {domain: trained.crop_of(domain)}
    data = dataclasses.replace(trained.config.data, domains=[domain], cell_types=None, crop=crop, order="global")
    every = images_of(dataset, data, rows[rows["origin"] == "real"], trained.cell_types, topology)
    return every, images_of_home(trained, trained.cell_types, topology)[0]


def _draw(
    trained: TrainedClassifier,
    every: Images,
    home: Images | None,
    arguments: dict[str, str],
    seed: int,
    topology: Topology,
) -> dict[str, Any]:
    """The arms of one draw of images, and what each was chosen by."""
    cells, unlabelled = int(arguments.get("cells", "10")), int(arguments.get("unlabelled", "200"))
    methods = arguments.get("methods", "statistics,self_training,head,all").split(",")
    order = np.random.default_rng(derive_key(seed, "laboratory")).permutation(len(every))
    taken = _cells(every.labels, order, cells)
    others = order[~np.isin(order, taken)]
    known = np.sort(others[every.labels[others] >= 0])
    scored = every.chosen(known[few_of_each(every.labels[known], int(arguments.get("most", "60")))])
    labelled, shown, none = (every.chosen(rows) for rows in (taken, others[:unlabelled], order[:0]))
    config = AdaptConfig(run=str(trained.folder), seed=seed, steps=int(arguments.get("steps", "100")))
    arms: dict[str, Any] = {}

    def score_arm(name: str, adapter: Adapter, method: Method) -> None:
        images = scored.zoomed(1.0 if method == "as_is" else adapter.zoom)
        rows = np.arange(len(labelled) if method in WITH_LABELS else 0)
        arms[name] = _scores(answers_of(adapter.adapted(method, rows), images), scored, trained.cell_types)

    def adapter_of(laboratory: Laboratory) -> Adapter:
        adapter = Adapter(config, trained, laboratory, topology)
        adapter.methods = [each for each in adapter.methods if each in ("as_is", "scale", *methods)]
        return adapter

    without = adapter_of(Laboratory(trained.cell_types, none, shown, home, None))
    found = without.run()[1]
    score_arm("as is", without, "as_is")
    zoom, without.zoom = without.zoom, 1.0
    for method in (each for each in WITH_UNLABELLED if each in methods):
        score_arm(f"{unlabelled} unlabelled: {method}", without, method)
    chosen, without.zoom = f"{unlabelled} unlabelled: chosen", zoom
    if zoom != 1:
        score_arm(chosen, without, found.method)
    else:
        arms[chosen] = arms["as is" if found.method == "as_is" else f"{unlabelled} unlabelled: {found.method}"]
    result: dict[str, Any] = {
        "seed": seed,
        "scored": len(scored),
        "chosen_without_labels": found.method,
        "zoom_without_labels": zoom,
        "zooms": _zooms(without, trained, scored),
        "evidence": [dataclasses.asdict(each) for each in found.evidence],
    }
    if cells:
        adapter = adapter_of(Laboratory(trained.cell_types, labelled, none, home, None))
        found = adapter.run()[1]
        for method in (each for each in WITH_LABELS if each in methods):
            score_arm(f"{cells} labelled of each type: {method}", adapter, method)
        score_arm(f"{cells} labelled of each type: chosen", adapter, found.method)
        result |= {
            "labelled": len(labelled),
            "chosen_with_labels": found.method,
            "zoom_with_labels": adapter.zoom,
            "cross_validated": {each.method: each.balanced_accuracy.value for each in found.methods},
        }
    return {**result, "arms": arms}


def _cells(labels: Numbers, order: Numbers, most: int) -> Numbers:
    """The first `most` rows of each known type in this order, of a rare type half of its rows."""
    found = [order[:0]]
    for label in np.unique(labels[labels >= 0]):
        rows = order[labels[order] == label]
        found.append(rows[: min(most, len(rows) // 2)])
    return np.sort(np.concatenate(found))


def _zooms(adapter: Adapter, trained: TrainedClassifier, scored: Images) -> list[dict[str, float]]:
    """For each zoom what the answers to unlabelled images say, and the balanced accuracy on the others."""
    rows = []
    for zoom in adapter.zooms:
        answers = adapter.answers_as_is(zoom)
        (facts,) = evidence_of({"as_is": answers}, adapter.looked_at.groups, trained.cell_types, adapter.temperature)
        right = _scores(answers_of(trained.network, scored.zoomed(zoom), 1), scored, trained.cell_types)
        said = {name: getattr(facts, name) for name in ("information", "confidence", "agreement")}
        rows.append({"zoom": zoom, **said, "balanced_accuracy": right["balanced_accuracy"][0]})
    return rows


def _scores(answers: torch.Tensor, images: Images, cell_types: tuple[str, ...]) -> dict[str, Any]:
    """Balanced accuracy with its interval, of one view and of all; sensitivities. answers: of each view."""
    result: dict[str, Any] = {}
    for name, views in (("balanced_accuracy", 1), ("balanced_accuracy_views8", answers.shape[1])):
        probabilities = mean_log_probabilities(answers[:, :views]).double().softmax(dim=1).numpy()
        scores = score(probabilities, images.labels, images.groups, cell_types)
        found = scores["balanced_accuracy"]
        result[name] = [found.value, found.low, found.high]
        if views == 1:
            result["sensitivity"] = {
                name: row["sensitivity"].value for name, row in scores.per_type.items() if row.count
            }
    return result


if __name__ == "__main__":
    main()
