"""Adapting a trained classifier to a laboratory with what the laboratory has: images, labelled cells, or both."""

import dataclasses
import functools
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from trainer.metrics.classification import epoch_scores
from trainer.runs.shipped import run_or_shipped
from trainer.tasks.classification.adaptation_choice import (
    Trial,
    best_method,
    cross_validate,
    possible_methods,
    require_adaptable,
    trial,
    types_to_label,
)
from trainer.tasks.classification.adaptation_config import WITH_LABELS, AdaptConfig, Method
from trainer.tasks.classification.adaptation_data import Images, Laboratory, Numbers, open_laboratory, seed_of
from trainer.tasks.classification.adaptation_evidence import (
    IMAGES,
    VIEWS_COMPARED,
    ZOOMS,
    best_by_evidence,
    best_zoom,
    evidence_of,
    probabilities_of,
    unsure_types,
)
from trainer.tasks.classification.adaptation_methods import (
    HOME_IMAGES,
    HeadImages,
    answers_of,
    copy_weights,
    few_of_each,
    fine_tune,
    last_layer,
    mixed_statistics,
    with_head,
)
from trainer.tasks.classification.adaptation_record import (
    Adaptation,
    Evidence,
    HomeScores,
    MethodScores,
    advise,
    read_adaptation,
)
from trainer.tasks.classification.adaptation_run import command_of, write_adapted_run
from trainer.tasks.classification.calibration import load_calibration
from trainer.tasks.classification.export import written_aside
from trainer.tasks.classification.load import TrainedClassifier, build_network, load_classifier

# Repeats of the cross-validation of a head, which takes a second.
REPEATS = 3
# Most unlabelled images that a network follows; ids are hashes, so the first are a random draw.
LEARNED_FROM = 2000
# Self-training takes unlabelled images with answers of at least this probability.
CONFIDENT = 0.8


def adapt(config: AdaptConfig, topology: Topology) -> Path:
    """Adapt the run of `config` and write the new one, whole or not at all; returns its folder.

    UserError where the run cannot be adapted, the laboratory's images cannot be used, or `out` is there already.
    """
    out, source = Path(str(config.out)), run_or_shipped(str(config.run))
    if out.exists():
        _require_this(out, config)
        return out
    trained = load_classifier(source)
    require_adaptable(trained)
    with written_aside(out) as folder:
        laboratory = open_laboratory(trained, config, folder, topology)
        network, record, chosen = Adapter(config, trained, laboratory, topology).run()
        write_adapted_run(folder, out, trained, laboratory, network, record, chosen)
    return out


def _require_this(out: Path, config: AdaptConfig) -> None:
    """UserError unless the folder holds the run of this command, which is then finished."""
    before = read_adaptation(out)
    if before is None or before.command != command_of(config):
        raise UserError(f"{out}: there already, and not of this command: name another out=DIR, or remove it")


class Adapter:
    """One adaptation: the methods that its images allow, their validation and the choice."""

    def __init__(
        self, config: AdaptConfig, trained: TrainedClassifier, laboratory: Laboratory, topology: Topology
    ) -> None:
        self._config, self._trained, self._laboratory = config, trained, laboratory
        types = laboratory.cell_types
        model = dataclasses.replace(trained.config.model, weights=None)
        network = build_network(model, len(types), trained.config.data.image_size)
        copy_weights(trained.network, network, trained.cell_types, types)
        # On a CPU, convolutions are faster in this memory format.
        form = torch.channels_last if topology.device.type == "cpu" else torch.preserve_format
        self._network = network.to(topology.device, memory_format=form).eval()  # type: ignore[call-overload]
        home = laboratory.home
        self._home = None if home is None else home.chosen(few_of_each(home.labels, HOME_IMAGES))
        self.methods = possible_methods(trained, config.method, len(laboratory.labelled), len(laboratory.unlabelled))
        images = laboratory.unlabelled if len(laboratory.unlabelled) else laboratory.labelled
        self.looked_at = images.chosen(np.arange(min(len(images), IMAGES)))
        self.zoom = 1.0  # of every method but as_is
        self._as_is: dict[float, torch.Tensor] = {}

    def run(self) -> tuple[nn.Module, Adaptation, Trial | None]:
        """The adapted network, how it was chosen, and its method's answers to held-out cells."""
        labelled = self._laboratory.labelled
        # Without labels, the zoom with the most information was a harmful one on one laboratory (tests/benchmarks).
        if "scale" in self.methods and (len(labelled) or self._config.method == "scale"):
            self.zoom = self._best_zoom()
        trials = self._trials() if len(labelled) else {}
        evidence = [] if trials else self._evidence()
        method, chosen_by = self._choose(trials, evidence)
        if method == "as_is":
            self.zoom = 1.0
        network = self.adapted(method, np.arange(len(labelled)))
        return network, self._record(method, chosen_by, trials, evidence, network), trials.get(method)

    def _best_zoom(self) -> float:
        """The zoom that the answers to the images speak for; their labels are not looked at."""
        answers = {zoom: self.answers_as_is(zoom) for zoom in self.zooms}
        return best_zoom(answers, self.looked_at.groups, self.temperature)

    def _evidence(self) -> list[Evidence]:
        """What the unlabelled images say of each method. A zoom other than 1 has been chosen by the same."""
        answers: dict[Method, torch.Tensor] = {"as_is": self.answers_as_is(1.0)}
        for method in self.methods:
            # Self-training makes a network sure of its answers, right or wrong: that says nothing for it.
            skipped = method == "self_training" and self._config.method == "auto"
            if not skipped and method not in answers and (method != "scale" or self.zoom != 1):
                answers[method] = self.answers_to(self.adapted(method, np.arange(0)), self.zoom)
        return evidence_of(answers, self.looked_at.groups, self._laboratory.cell_types, self.temperature)

    @property
    def zooms(self) -> list[float]:
        """Those that the images' borders allow."""
        return [zoom for zoom in ZOOMS if zoom >= self.looked_at.least_zoom - 1e-6]

    def answers_as_is(self, zoom: float) -> torch.Tensor:
        """Those of the network as it is, computed once for each zoom."""
        if zoom not in self._as_is:
            self._as_is[zoom] = self.answers_to(self._network, zoom)
        return self._as_is[zoom]

    def answers_to(self, network: nn.Module, zoom: float) -> torch.Tensor:
        """The answers to the images that are looked at without their labels."""
        return answers_of(network, self.looked_at.zoomed(zoom), VIEWS_COMPARED)

    @functools.cached_property
    def temperature(self) -> float:
        trained = self._trained
        return load_calibration(trained.folder, trained.checkpoint.digest, VIEWS_COMPARED).temperature

    def _trials(self) -> dict[Method, Trial]:
        """Each method's answers to labelled cells that it did not learn from."""
        labelled, cell_types = self._laboratory.labelled, self._laboratory.cell_types
        trials: dict[Method, Trial] = {}
        for method in self.methods:
            if method in WITH_LABELS:
                repeats = REPEATS if method == "head" else 1
                found = cross_validate(partial(self._answers, method), labelled, cell_types, repeats)
                if found is not None:
                    trials[method] = found
            elif method != "scale" or self.zoom != 1:
                every = np.arange(len(labelled))
                zoom = 1.0 if method == "as_is" else self.zoom
                answers = answers_of(self.adapted(method, every[:0]), labelled.zoomed(zoom))
                trials[method] = trial(answers, labelled, every, cell_types)
                if method == "scale" and self._config.method == "auto" and best_method(trials) == "as_is":
                    self.zoom = 1.0  # the labels speak against it
        return trials

    def _choose(self, trials: Mapping[Method, Trial], evidence: list[Evidence]) -> tuple[Method, str]:
        """The method, and what it was chosen by."""
        asked = self._config.method
        if asked != "auto":
            return "as_is" if asked == "scale" and self.zoom == 1 else asked, f"method={asked}"
        if not trials:
            return best_by_evidence(evidence), "the answers to unlabelled images"
        if not set(WITH_LABELS) & set(trials):
            return "head", "default for labelled cells of one patient or slide, of which none can be held out"
        return best_method(trials), "cross-validation on the labelled cells"

    def _answers(self, method: Method, rest: Numbers, held: Numbers) -> torch.Tensor:
        held_out = self._laboratory.labelled.zoomed(self.zoom).chosen(held)
        return answers_of(self.adapted(method, rest), held_out)

    def adapted(self, method: Method, rows: Numbers) -> nn.Module:
        """The network adapted by a method to these rows of the labelled cells, or to the unlabelled images."""
        if method in ("as_is", "scale"):
            return self._network
        if method == "head":
            return with_head(self._network, self._heads.fit(rows, last_layer(self._network)))
        if method == "all":
            begun, cells = self.adapted("head", rows), self._laboratory.labelled.zoomed(self.zoom).chosen(rows)
            return self._tuned(begun, cells, f"all layers, {len(rows)} labelled cells")
        unlabelled = self._laboratory.unlabelled.zoomed(self.zoom)
        unlabelled = unlabelled.chosen(np.arange(min(len(unlabelled), LEARNED_FROM)))
        probabilities = probabilities_of(answers_of(self._network, unlabelled, VIEWS_COMPARED), self.temperature)
        labels, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
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
        """At the zoom that stands when the first head is fitted; it does not change afterwards."""
        labelled = self._laboratory.labelled.zoomed(self.zoom)
        return HeadImages.of(self._network, labelled, self._home, seed_of(self._config, "head"))

    def _record(
        self,
        method: Method,
        chosen_by: str,
        trials: Mapping[Method, Trial],
        evidence: list[Evidence],
        network: nn.Module,
    ) -> Adaptation:
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
        if len(laboratory.unlabelled):
            probabilities = probabilities_of(self.answers_to(network, self.zoom), self.temperature)
            to_label = unsure_types(probabilities, laboratory.cell_types) | to_label
        return Adaptation(
            source=str(trained.folder),
            source_checkpoint=trained.checkpoint.digest,
            method=method,
            chosen_by=chosen_by,
            zoom=self.zoom,
            labelled=labelled,
            unlabelled=len(laboratory.unlabelled),
            methods=scores,
            evidence=evidence,
            home=self._home_scores(network),
            home_shown=self._home is not None and method in ("head", "all", "self_training"),
            advice=advise(method, scores, evidence, to_label),
            command=command_of(self._config),
        )

    def _home_scores(self, network: nn.Module) -> HomeScores | None:
        """Balanced accuracy on the run's own validation images before and after."""
        images = self._laboratory.home_validation
        if images is None:
            return None
        images = images.chosen(few_of_each(images.labels, HOME_IMAGES))
        before, after = (
            epoch_scores(answers_of(each, images, 1)[:, 0].double().exp().numpy(), images.labels)["balanced_accuracy"]
            for each in (self._network, network)
        )
        return HomeScores(len(images), before, after)
