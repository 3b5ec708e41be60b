"""What a classifier makes of cell types that it never saw, and of pictures of no cell.

usage:
  uv run python -m tests.benchmarks.unknown shards=DIR weights=FILE.safetensors work=DIR out=FILE.json
      [epochs=3] [size=96] [threads=1]
shards: a data set of Barcelona's images, at 160 px. weights: timm's ImageNet weights of tf_efficientnet_lite0.
Four classifiers are trained, each without two of the eight types (in the order of the alphabet, so that each type is
left out once). Scores of unfamiliarity are then compared on the test split: images of the six known types, those of the
two others, backgrounds of phantoms, everyday pictures (scikit-image's). So are sets of types at a coverage of 90 %.
Interrupted, the same command goes on.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax

from data_pipeline.catalog import Dataset
from data_pipeline.phantoms.cell import Canvas, Cell
from data_pipeline.phantoms.morphology import Random
from data_pipeline.phantoms.smear import DRAW, Blood, draw_smear
from data_pipeline.phantoms.stain import STAIN_RECIPES, Film, photograph
from data_pipeline.stream.file_stream import FileStream
from data_pipeline.stream.stream import MicroBatch, Topology
from models.classifiers.features import Layers, last_layer
from tests.benchmarks.launch import call
from trainer.experiments.machine import describe_machine
from trainer.metrics.conformal import conformal_quantile
from trainer.metrics.records import to_json
from trainer.metrics.uncertainty import UNFAMILIARITY, auroc
from trainer.tasks.classification.evaluation.everyday_pictures import everyday_pictures
from trainer.tasks.classification.inference.load import TrainedClassifier, load_classifier
from trainer.tasks.classification.inference.logits import predict, scoring_stream
from trainer.tasks.classification.training.uncertainty_fitting import IMAGES_PER_TYPE
from trainer.tasks.classification.uncertainty.training_distance import TrainingDistance

SIDE = 160  # of the pictures that are no cells
COVERAGE = 0.9

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """A classifier's answers to n images."""

    layers: Floats  # [n, d], means of the last stages' maps, and the features
    features: Floats  # [n, c], the last layer's input
    logits: Floats  # [n, types]
    groups: list[str]
    labels: list[str]  # cell types; of no cells, the groups again


Score = Callable[[Answers], Floats]


def main() -> None:
    arguments = dict(argument.split("=", 1) for argument in sys.argv[1:])
    work, dataset = Path(arguments["work"]), Dataset.open(arguments["shards"])
    others = write_pictures(work / "pictures")
    types = sorted(set(dataset.samples(domains=["barcelona"], columns=["cell_type"])["cell_type"]) - {""})
    results = []
    for pair in zip(types[::2], types[1::2], strict=True):
        run = work / f"without_{'_'.join(pair).replace(' ', '_')}"
        kept = run.with_suffix(".json")
        if not kept.exists():
            train(run, arguments, [name for name in types if name not in pair])
            kept.write_text(json.dumps(measure(run, dataset, pair, others)))
        results.append(result := json.loads(kept.read_text()))
        print(f"without {' and '.join(pair)}: accuracy {result['accuracy']:.1%}")
        for name, scores in result["methods"].items():
            print(f"  {name:34s}" + "  ".join(f"{kind} {each['value']:.3f}" for kind, each in scores.items()))
    report = {
        "machine": describe_machine(),
        # Results are committed: where the folders lay does not count.
        "settings": {name: Path(value).name for name, value in arguments.items()},
        "data": {"content_hash": dataset.content_hash},
        "runs": results,
    }
    Path(arguments["out"]).write_text(json.dumps(report, indent=1) + "\n")


def train(run: Path, arguments: Mapping[str, str], types: Sequence[str]) -> None:
    """Train a classifier that knows these types."""
    call(
        "train_classifier",
        f"shards={arguments['shards']}",
        f"run={run}",
        f"data.cell_types=[{','.join(types)}]",
        "data.domains=[barcelona]",
        "model=efficientnet_lite_pretrained",
        f"model.weights={arguments['weights']}",
        "model.stretch=false",
        "optimizer=pretrained",
        "optimizer.learning_rate=0.0005",
        "optimizer.average_decay=0.97",  # of few steps
        f"data.image_size={arguments.get('size', '96')}",
        "data.threads=1",
        "train.global_batch=32",
        f"train.epochs={arguments.get('epochs', '3')}",
        threads=arguments.get("threads", "1"),
    )


def measure(run: Path, dataset: Dataset, left_out: tuple[str, ...], others: Mapping[str, list[Path]]) -> dict[str, Any]:
    """AUROC of every method by what is unknown; coverage and size of every kind of set."""
    trained = load_classifier(run)
    training, validation, test = (
        _answers(trained, dataset, split, trained.cell_types) for split in ("train", "validation", "test")
    )
    groups = {f"left out: {name}": [_answers(trained, dataset, "test", [name])] for name in left_out}
    groups["left out: both"] = [part for parts in groups.values() for part in parts]
    groups |= {name: [_answers_to_files(trained, paths)] for name, paths in others.items()}
    scores = {
        name: {kind: to_json(auroc(_frame(score, [test]), _frame(score, parts))) for kind, parts in groups.items()}
        for name, score in methods(trained, training, validation).items()
    }
    answers = np.array(trained.cell_types)[test.logits.argmax(axis=1)]
    accuracy = float((answers == np.array(test.labels)).mean())
    held = sets(trained, validation, test)
    return {"left_out": list(left_out), "accuracy": accuracy, "methods": scores, "sets": held}


def methods(trained: TrainedClassifier, training: Answers, validation: Answers) -> dict[str, Score]:
    """Scores that are higher for less familiar images, by the name and the paper of the method."""
    labels = np.array([trained.cell_types.index(name) for name in training.labels])
    layer = last_layer(trained.network)
    weight, bias = (value.detach().double().numpy() for value in (layer.weight, layer.bias))  # type: ignore[operator, union-attr]
    sizes = Layers(trained.network, trained.config.data.image_size).sizes
    layers = [torch.from_numpy(each.layers).float() for each in (training, validation)]
    stages = TrainingDistance.fit(layers[0], torch.from_numpy(labels), layers[1], sizes)
    points = mahalanobis(training.features, labels)
    every = mahalanobis(training.features, np.zeros_like(labels))
    return {
        "max softmax (Hendrycks 2017)": lambda images: -softmax(images.logits, axis=1).max(axis=1),
        "max logit (Hendrycks 2022)": lambda images: -images.logits.max(axis=1),
        "energy (Liu 2020)": lambda images: -logsumexp(images.logits, axis=1),
        "k nearest (Sun 2022)": k_nearest(training.features, 10),
        "ViM (Wang 2022)": virtual_logit(training, weight, bias, min(64, weight.shape[1] // 2)),
        "Mahalanobis (Lee 2018)": points,
        "relative Mahalanobis (Ren 2021)": lambda images: points(images) - every(images),
        "relative Mahalanobis, last stages": lambda images: stages(torch.from_numpy(images.layers).float()).numpy(),
    }


def _unit(features: Floats) -> Floats:
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12))


def k_nearest(features: Floats, neighbours: int) -> Score:
    """Distance from the k-th nearest training image, of features of unit length."""
    stored = _unit(features)
    return lambda images: -np.sort(_unit(images.features) @ stored.T, axis=1)[:, -neighbours]


def virtual_logit(training: Answers, weight: Floats, bias: Floats, dimensions: int) -> Score:
    """ViM: the part of the features outside their principal space as one more logit, less the energy."""
    origin = -np.linalg.pinv(weight) @ bias
    centred = training.features - origin
    rest = np.linalg.eigh(centred.T @ centred)[1][:, :-dimensions]
    rest *= training.logits.max(axis=1).mean() / np.linalg.norm(centred @ rest, axis=1).mean()
    return lambda images: np.linalg.norm((images.features - origin) @ rest, axis=1) - logsumexp(images.logits, axis=1)


def mahalanobis(features: Floats, labels: NDArray[np.int64]) -> Score:
    """Distance from the nearest type's mean under the types' common covariance."""
    mean = features.mean(axis=0)
    directions = np.linalg.svd(features - mean, full_matrices=False)[2][:128].T
    points = (features - mean) @ directions
    centres = np.stack([points[labels == label].mean(axis=0) for label in np.unique(labels)])
    variances, axes = np.linalg.eigh(np.cov((points - centres[labels]).T))
    whitening = axes / np.sqrt(variances.clip(variances.max() * 1e-6))
    whitened = directions @ whitening, centres @ whitening
    return lambda images: cdist((images.features - mean) @ whitened[0], whitened[1], "sqeuclidean").min(axis=1)


def sets(trained: TrainedClassifier, validation: Answers, test: Answers) -> dict[str, dict[str, float]]:
    """Coverage and mean size of sets of three kinds on test images, fitted on validation images."""
    labels = [np.array(list(map(trained.cell_types.index, each.labels))) for each in (validation, test)]
    probabilities = [softmax(each.logits / trained.calibration.temperature, axis=1) for each in (validation, test)]
    draws = [np.random.default_rng(seed).random(len(each)) for seed, each in enumerate(labels)]
    kinds: dict[str, Callable[[Floats, Floats], Floats]] = {
        "LAC (Sadinle 2019)": lambda table, _: 1 - table,
        "APS (Romano 2020)": lambda table, draw: _adaptive(table, draw, 0.0, 0),
        "RAPS (Angelopoulos 2021)": lambda table, draw: _adaptive(table, draw, 0.1, 1),
    }
    found = {}
    for name, score in kinds.items():
        fitted, new = (score(table, draw) for table, draw in zip(probabilities, draws, strict=True))
        held = new <= conformal_quantile(fitted[np.arange(len(labels[0])), labels[0]], COVERAGE)
        covered, sizes = held[np.arange(len(labels[1])), labels[1]], held.sum(axis=1)
        empty = float((sizes == 0).mean())
        found[name] = {"coverage": float(covered.mean()), "size": float(sizes.mean()), "empty": empty}
    return found


def _adaptive(table: Floats, draw: Floats, penalty: float, free: int) -> Floats:
    """Probability of all more likely types and of a random part of the type's own; RAPS: a penalty on its rank."""
    order = (-table).argsort(axis=1)
    ordered = np.take_along_axis(table, order, axis=1)
    scores = ordered.cumsum(axis=1) - draw[:, None] * ordered
    scores = scores + penalty * (np.arange(1, table.shape[1] + 1) - free).clip(0)
    found = np.empty_like(scores)
    np.put_along_axis(found, order, scores, axis=1)
    return found


def _frame(score: Score, parts: Sequence[Answers]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({UNFAMILIARITY: score(each), "group": each.groups}) for each in parts])


def _answers(trained: TrainedClassifier, dataset: Dataset, split: str, types: Sequence[str]) -> Answers:
    """To images of a split; of the training split, to those that the product takes."""
    config = replace(trained.config.data, cell_types=None)
    rows = dataset.samples(splits=[split], domains=config.domains, cell_types=types).sort_values("id")
    beyond = rows[rows.groupby("cell_type").cumcount() >= IMAGES_PER_TYPE]["id"] if split == "train" else ()
    stream = scoring_stream(
        dataset, config, splits=[split], cell_types=types, batch=64, topology=Topology(), left_out=list(beyond)
    )
    return _taken(trained, stream.read(), stream.samples["group"], stream.samples["cell_type"])


def _answers_to_files(trained: TrainedClassifier, paths: list[Path]) -> Answers:
    groups = pd.Series([path.stem.partition("-")[0] for path in paths])
    stream = FileStream(paths, trained.storage, trained.config.data, 64, Topology())
    return _taken(trained, stream.read(), groups, groups)


def _taken(
    trained: TrainedClassifier, batches: Iterable[MicroBatch], groups: "pd.Series[str]", labels: "pd.Series[str]"
) -> Answers:
    network = Layers(trained.network, trained.config.data.image_size)
    layers, rows = predict(network, batches)
    features = layers[:, -network.sizes[-1] :]
    with torch.no_grad():
        logits = last_layer(trained.network)(features)
    numbers = (each.double().numpy() for each in (layers, features, logits))
    return Answers(*numbers, *(each.iloc[rows.numpy()].tolist() for each in (groups, labels)))


def write_pictures(folder: Path, slides: int = 40) -> dict[str, list[Path]]:
    """Pictures of no cell, by kind; the name of a file begins with its group: a slide, a picture of scikit-image."""
    kinds = {"backgrounds of phantoms": _backgrounds(slides), "everyday pictures": _everyday()}
    paths: dict[str, list[Path]] = {}
    for kind, pictures in kinds.items():
        place = folder / kind.replace(" ", "_")
        place.mkdir(parents=True, exist_ok=True)
        paths[kind] = []
        for name, picture in pictures:
            paths[kind].append(place / f"{name}.png")
            picture.save(paths[kind][-1])
    return paths


def _backgrounds(slides: int) -> Iterator[tuple[str, Image.Image]]:
    """Red cells and platelets of phantom slides in two stains, with no labelled cell among them."""

    def nothing(canvas: Canvas, rng: Random) -> Cell:
        cell = Cell(canvas, rng, 1.0)
        cell.cover[:] = 0
        return cell

    with patch.dict(DRAW, {"nothing": nothing}):
        for slide in range(slides):
            blood = Blood.of_slide(np.random.default_rng((0, slide)))
            for number in range(3):
                layers = draw_smear("nothing", SIDE, blood, np.random.default_rng((1, slide, number)))
                for stain, recipe in STAIN_RECIPES.items():
                    film = Film.of_slide(recipe, np.random.default_rng((2, slide)))
                    picture = photograph(layers, film, np.random.default_rng((3, slide, number)))
                    yield f"{slide}-{number}-{stain}", Image.fromarray(picture)


def _everyday() -> Iterator[tuple[str, Image.Image]]:
    """Of each picture that scikit-image brings along, the middle square and six quarters."""
    for name, picture in everyday_pictures().items():
        (width, height), side = picture.size, min(picture.size)
        corners = [((width - side) // 2, (height - side) // 2, side)]
        half = side // 2
        corners += [(x, y, half) for x in (0, (width - half) // 2, width - half) for y in (0, height - half)]
        for number, (x, y, length) in enumerate(corners):
            cut = picture.crop((x, y, x + length, y + length)).resize((SIDE, SIDE))
            yield f"{name.replace('-', '_')}-{number}", cut


if __name__ == "__main__":
    main()
