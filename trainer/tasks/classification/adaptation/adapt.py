"""Adapting a trained classifier to a laboratory with what the laboratory has: images, labelled cells, or both."""

import copy
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
from trainer.learners.choices import VIEWS
from trainer.metrics.classification import epoch_scores
from trainer.runs.shipped import run_or_shipped
from trainer.tasks.classification.adaptation.choice import (
    Trial,
    advise,
    best_method,
    cross_validate,
    possible_methods,
    require_adaptable,
    trial,
    types_to_label,
)
from trainer.tasks.classification.adaptation.config import OWN_HEAD, SAME_FEATURES, WITH_LABELS, AdaptConfig
from trainer.tasks.classification.adaptation.evidence import (
    IMAGES,
    best_by_evidence,
    evidence_of,
    probabilities_of,
    unsure_types,
)
from trainer.tasks.classification.adaptation.laboratory import Images, Laboratory, Numbers, open_laboratory, seed_of
from trainer.tasks.classification.adaptation.methods import (
    HOME_IMAGES,
    HeadImages,
    answers_of,
    copy_weights,
    features_of,
    few_of_each,
    fine_tune,
    last_layer,
    mixed_statistics,
    with_head,
)
from trainer.tasks.classification.adaptation.run import command_of, write_adapted_run
from trainer.tasks.classification.inference.export import written_aside
from trainer.tasks.classification.inference.load import TrainedClassifier, build_network, load_classifier
from trainer.tasks.classification.reports.adaptation_record import (
    Adaptation,
    Evidence,
    HomeScores,
    Method,
    MethodScores,
    read_adaptation,
)
from trainer.tasks.classification.training.heads import Features
from trainer.tasks.classification.uncertainty.calibration import load_calibration
from trainer.tasks.classification.uncertainty.reference import load_reference

# Repeats of the cross-validation of a head, which takes a second.
REPEATS = 3


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
        images = laboratory.unlabelled
        self._looked_at = images.chosen(np.arange(min(len(images), IMAGES)))

    def run(self) -> tuple[nn.Module, Adaptation, Trial | None]:
        """The adapted network, how it was chosen, and its method's answers to held-out cells."""
        labelled = self._laboratory.labelled
        trials = self._trials() if len(labelled) else {}
        evidence = [] if trials else self._evidence()
        method, chosen_by = self._choose(trials, evidence)
        network = self.adapted(method, np.arange(len(labelled)))
        return network, self._record(method, chosen_by, trials, evidence, network), trials.get(method)

    def _evidence(self) -> list[Evidence]:
        """What the unlabelled images say of each method."""
        none = np.arange(0)
        answers = {method: self._to_unlabelled(method, self.adapted(method, none)) for method in self.methods}
        return evidence_of(answers, self._looked_at.groups, self._laboratory.cell_types, self._temperature)

    def _to_unlabelled(self, method: Method, network: nn.Module) -> torch.Tensor:
        """Answers of an adapted network to the unlabelled images."""
        if method in SAME_FEATURES:
            return self._unlabelled.answers(last_layer(network))
        return answers_of(network, self._looked_at)

    @functools.cached_property
    def _temperature(self) -> float:
        trained = self._trained
        return load_calibration(trained.folder, trained.checkpoint.digest, VIEWS[-1]).temperature

    def _trials(self) -> dict[Method, Trial]:
        """Each method's answers to labelled cells that it did not learn from."""
        labelled, cell_types = self._laboratory.labelled, self._laboratory.cell_types
        every, trials = np.arange(len(labelled)), dict[Method, Trial]()
        for method in self.methods:
            if method in WITH_LABELS:
                repeats = REPEATS if method == "head" else 1
                found = cross_validate(partial(self._answers, method), labelled, cell_types, repeats)
                if found is not None:
                    trials[method] = found
            else:
                trials[method] = trial(self._answers(method, every[:0], every), labelled, every, cell_types)
        return trials

    def _choose(self, trials: Mapping[Method, Trial], evidence: list[Evidence]) -> tuple[Method, str]:
        """The method, and what it was chosen by."""
        asked = self._config.method
        if asked != "auto":
            return asked, f"method={asked}"
        if not trials:
            return best_by_evidence(evidence, len(self._home_features[1]) > 0), "the answers to unlabelled images"
        if not set(WITH_LABELS) & set(trials):
            return "head", "default for labelled cells of one patient or slide, of which none can be held out"
        return best_method(trials, self._laboratory.labelled.labels), "cross-validation on the labelled cells"

    def _answers(self, method: Method, rest: Numbers, held: Numbers) -> torch.Tensor:
        """Answers to the labelled cells `held`, of which the method does not learn."""
        if method in SAME_FEATURES:
            return self._labelled.answers(self._head(method, rest))[held]
        return answers_of(self.adapted(method, rest), self._laboratory.labelled.chosen(held))

    def adapted(self, method: Method, rows: Numbers) -> nn.Module:
        """The network adapted by a method to these rows of the labelled cells, or to the unlabelled images."""
        if method in SAME_FEATURES:
            return with_head(self._network, self._head(method, rows))
        if method == "all":
            begun, cells = self.adapted("head", rows), self._laboratory.labelled.chosen(rows)
            return fine_tune(
                begun,
                cells,
                self._home,
                steps=self._config.steps,
                learning_rate=self._config.learning_rate,
                seed=seed_of(self._config, "all", len(rows)),
                description=f"all layers, {len(rows)} labelled cells",
            )
        answers = self._unlabelled.answers(self._own_head).mean(dim=1).argmax(dim=1).numpy()
        return mixed_statistics(self._network, self._looked_at, answers, seed_of(self._config, method))

    def _head(self, method: Method, rows: Numbers) -> nn.Linear:
        """The last layer by a method that changes no other, on the CPU."""
        if method == "head":
            return self._labelled.fit(rows, self._own_head)
        if method == "self_training":
            return self._unlabelled.self_trained(self._own_head, self._temperature)
        return self._own_head

    @functools.cached_property
    def _own_head(self) -> nn.Linear:
        return copy.deepcopy(last_layer(self._network)).cpu()

    @functools.cached_property
    def _labelled(self) -> HeadImages:
        return self._features(self._laboratory.labelled)

    @functools.cached_property
    def _unlabelled(self) -> HeadImages:
        return self._features(self._looked_at)

    def _features(self, images: Images) -> HeadImages:
        return HeadImages(features_of(self._network, images, VIEWS[-1]), images.labels, *self._home_features)

    @functools.cached_property
    def _home_features(self) -> tuple[Features, Numbers]:
        """Features [m, d] and types [m]: means of each type that the run keeps, else those of its training images."""
        types, trained = self._laboratory.cell_types, self._trained
        reference = load_reference(trained.folder, trained.checkpoint.digest)
        if reference is not None:
            known = np.array([types.index(name) for name in trained.cell_types])
            return reference.distance.type_means().numpy(), known
        if self._home is not None:
            return features_of(self._network, self._home)[:, 0], self._home.labels
        return np.empty((0, self._own_head.in_features), np.float32), np.empty(0, np.int64)

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
            temperature = self._temperature if method in OWN_HEAD else 1.0
            probabilities = probabilities_of(self._to_unlabelled(method, network), temperature)
            to_label = unsure_types(probabilities, laboratory.cell_types) | to_label
        return Adaptation(
            source=str(trained.folder),
            source_checkpoint=trained.checkpoint.digest,
            method=method,
            chosen_by=chosen_by,
            labelled=labelled,
            unlabelled=len(laboratory.unlabelled),
            methods=scores,
            evidence=evidence,
            home=self._home_scores(network),
            home_shown=self._home is not None and method not in OWN_HEAD,
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
