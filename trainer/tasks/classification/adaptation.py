"""Adapting a trained classifier to a laboratory with what the laboratory has: images, labelled cells, or both."""

import dataclasses
import functools
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.metrics.classification import epoch_scores
from trainer.tasks.classification.adaptation_choice import Trial, best_method, cross_validate, trial, types_to_label
from trainer.tasks.classification.adaptation_config import WITH_LABELS, AdaptConfig, Method
from trainer.tasks.classification.adaptation_data import Images, Laboratory, Numbers, open_laboratory, seed_of
from trainer.tasks.classification.adaptation_methods import (
    HOME_IMAGES,
    HeadImages,
    confident_labels,
    copy_weights,
    few_of_each,
    fine_tune,
    last_layer,
    logits_of,
    mixed_statistics,
    with_head,
)
from trainer.tasks.classification.adaptation_record import Adaptation, HomeScores, MethodScores, advise, read_adaptation
from trainer.tasks.classification.adaptation_run import command_of, write_adapted_run
from trainer.tasks.classification.load import TrainedClassifier, build_network, load_classifier

# Repeats of the cross-validation of a head, which takes a second.
REPEATS = 3
# Self-training takes unlabelled images with answers of at least this probability.
CONFIDENT = 0.8
# Without labelled cells nothing can be validated.
WITHOUT_LABELS: Method = "statistics"


def adapt(config: AdaptConfig, topology: Topology) -> Path:
    """Adapt the run of `config` and write the new one, whole or not at all; returns its folder.

    UserError where the run cannot be adapted, the laboratory's images cannot be used, or `out` is there already.
    """
    out, source = Path(str(config.out)), Path(str(config.run))
    if out.exists():
        _require_this(out, config)
        return out
    trained = load_classifier(source)
    if trained.normalizer is not None:
        raise UserError(f"{source}: adapt.py takes a classifier of raw images, without a normaliser")
    last_layer(trained.network)
    aside = out.with_name(f".{out.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
    folder = aside / out.name  # the model card and the report have the folder's name
    folder.mkdir(parents=True)
    try:
        laboratory = open_laboratory(trained, config, folder, topology)
        network, record, chosen = _Adapter(config, trained, laboratory, topology).run()
        write_adapted_run(folder, out, trained, laboratory, network, record, chosen)
        folder.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out


def _require_this(out: Path, config: AdaptConfig) -> None:
    """UserError unless the folder holds the run of this command, which is then finished."""
    before = read_adaptation(out)
    if before is None or before.command != command_of(config):
        raise UserError(f"{out}: there already, and not of this command: name another out=DIR, or remove it")


class _Adapter:
    """One adaptation: the methods that its images allow, their validation and the choice."""

    def __init__(
        self, config: AdaptConfig, trained: TrainedClassifier, laboratory: Laboratory, topology: Topology
    ) -> None:
        self._config, self._trained, self._laboratory = config, trained, laboratory
        types = laboratory.cell_types
        model = dataclasses.replace(trained.config.model, weights=None)
        network = build_network(model, len(types), trained.config.data.image_size)
        copy_weights(trained.network, network, trained.cell_types, types)
        self._network = network.to(topology.device).eval()
        home = laboratory.home
        self._home = None if home is None else home.chosen(few_of_each(home.labels, HOME_IMAGES))

    def run(self) -> tuple[nn.Module, Adaptation, Trial | None]:
        """The adapted network, how it was chosen, and its method's answers to held-out cells."""
        labelled = self._laboratory.labelled
        trials = self._trials() if len(labelled) else {}
        method, chosen_by = self._choose(trials)
        network = self._adapted(method, np.arange(len(labelled)))
        return network, self._record(method, chosen_by, trials, network), trials.get(method)

    def _trials(self) -> dict[Method, Trial]:
        """Each method's answers to labelled cells that it did not learn from; as many methods as the images allow."""
        laboratory, asked = self._laboratory, self._config.method
        methods: list[Method] = ["as_is"]
        if len(laboratory.unlabelled):
            methods += ["statistics", "self_training"]
        methods += ["head", "all"]
        if asked != "auto":
            methods = [method for method in methods if method in ("as_is", asked)]
        trials: dict[Method, Trial] = {}
        labelled, every = laboratory.labelled, np.arange(len(laboratory.labelled))
        for method in methods:
            if method in WITH_LABELS:
                repeats = REPEATS if method == "head" else 1
                found = cross_validate(partial(self._answers, method), labelled, laboratory.cell_types, repeats)
                if found is not None:
                    trials[method] = found
            else:
                logits = logits_of(self._adapted(method, every[:0]), labelled)
                trials[method] = trial(logits, labelled, every, laboratory.cell_types)
        return trials

    def _choose(self, trials: Mapping[Method, Trial]) -> tuple[Method, str]:
        """The method, and what it was chosen by."""
        laboratory, asked = self._laboratory, self._config.method
        if asked != "auto":
            if asked in WITH_LABELS and not len(laboratory.labelled):
                raise UserError(f"method={asked} needs labelled cells: give labelled=FOLDER")
            if asked in ("statistics", "self_training") and not len(laboratory.unlabelled):
                raise UserError(f"method={asked} needs unlabelled images: give images=FOLDER")
            return asked, f"method={asked}"
        if not trials:
            return WITHOUT_LABELS, "default without labelled cells"
        if not set(WITH_LABELS) & set(trials):
            return "head", "default for labelled cells of one patient or slide, of which none can be held out"
        return best_method(trials), "cross-validation on the labelled cells"

    def _answers(self, method: Method, rest: Numbers, held: Numbers) -> torch.Tensor:
        return logits_of(self._adapted(method, rest), self._laboratory.labelled.chosen(held))

    def _adapted(self, method: Method, rows: Numbers) -> nn.Module:
        """The network adapted by a method to these rows of the labelled cells, or to the unlabelled images."""
        if method == "head":
            return with_head(self._network, self._heads.fit(rows, last_layer(self._network)))
        if method == "all":
            begun = self._adapted("head", rows)
            return self._tuned(begun, self._laboratory.labelled.chosen(rows), f"all layers, {len(rows)} labelled cells")
        if method == "as_is":
            return self._network
        unlabelled = self._laboratory.unlabelled
        labels, confidence = confident_labels(self._network, unlabelled, self._trained.calibration.temperature)
        if method == "statistics":
            return mixed_statistics(self._network, unlabelled, labels, seed_of(self._config, method))
        rows = np.flatnonzero(confidence >= CONFIDENT)
        if not len(rows):
            return self._network
        rows = rows[few_of_each(labels[rows], -(-len(rows) // len(np.unique(labels[rows]))))]
        return self._tuned(self._network, unlabelled.chosen(rows).labelled_as(labels[rows]), "self-training")

    def _tuned(self, network: nn.Module, images: Images, description: str) -> nn.Module:
        config = self._config
        seed = seed_of(config, description, len(images))
        return fine_tune(
            network,
            images,
            self._home,
            steps=config.steps,
            learning_rate=config.learning_rate,
            seed=seed,
            description=description,
        )

    @functools.cached_property
    def _heads(self) -> HeadImages:
        return HeadImages.of(self._network, self._laboratory.labelled, self._home, seed_of(self._config, "head"))

    def _record(self, method: Method, chosen_by: str, trials: Mapping[Method, Trial], network: nn.Module) -> Adaptation:
        laboratory, trained = self._laboratory, self._trained
        counts = np.bincount(laboratory.labelled.labels, minlength=len(laboratory.cell_types))
        labelled = {name: int(count) for name, count in zip(laboratory.cell_types, counts, strict=True)}
        scores = [
            MethodScores(
                name,
                each.scores["balanced_accuracy"],
                {cell_type: row["sensitivity"] for cell_type, row in each.scores.per_type.items()},
            )
            for name, each in trials.items()
        ]
        to_label = types_to_label(laboratory.labelled, trials.get(method), laboratory.cell_types)
        return Adaptation(
            source=str(self._config.run),
            source_checkpoint=trained.checkpoint.digest,
            method=method,
            chosen_by=chosen_by,
            labelled=labelled,
            unlabelled=len(laboratory.unlabelled),
            methods=scores,
            home=self._home_scores(network),
            home_shown=self._home is not None and method in ("head", "all", "self_training"),
            advice=advise(method, scores, labelled, to_label),
            command=command_of(self._config),
        )

    def _home_scores(self, network: nn.Module) -> HomeScores | None:
        """Balanced accuracy on the run's own validation images before and after."""
        images = self._laboratory.home_validation
        if images is None:
            return None
        images = images.chosen(few_of_each(images.labels, HOME_IMAGES))
        before, after = (
            epoch_scores(logits_of(each, images).double().softmax(dim=1).numpy(), images.labels)["balanced_accuracy"]
            for each in (self._network, network)
        )
        return HomeScores(len(images), before, after)
