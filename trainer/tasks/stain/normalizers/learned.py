"""A trained generator as a stain normaliser."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from data_pipeline.errors import UserError
from models.errors import ModelError
from trainer.runs.configuration import typed
from trainer.runs.registry import algorithm_class
from trainer.tasks.stain.config import StainModelConfig
from trainer.tasks.stain.load import TrainedStainModel


class LearnedNormalizer:
    """The generator of a stain run, `network`, that makes images of one of its two domains.

    Images go through it at the size that it learned at, `image_size`, where cells look as large as they did then.
    """

    def __init__(self, network: nn.Module, identity: Mapping[str, Any], generators: Mapping[str, Tensor]) -> None:
        """identity: what `describe` tells; generators: the weights of the run's module of generators."""
        self.name: str = identity["name"]
        self.image_size: int = identity["image_size"]
        self.network = network.eval()
        self._identity = dict(identity)
        self._generators = generators

    @classmethod
    def of_run(cls, trained: TrainedStainModel, target: str) -> Self:
        """target: the domain whose stain images are given, one of the run's two."""
        identity = {
            "name": trained.config.model.algorithm,
            "target": target,
            "side": "a" if target == trained.a else "b",
            "checkpoint": trained.checkpoint.digest,
            "dataset_hash": trained.dataset_hash,
            "image_size": trained.config.data.image_size,
            "model": dataclasses.asdict(trained.config.model),
        }
        network = trained.to_a if target == trained.a else trained.to_b
        return cls(network, identity, trained.generators.state_dict())

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if next(self.network.parameters()).device != images.device:  # an exporter follows no move that is none
            self.network.to(images.device)
        normalized: Tensor = self.network(images)
        return normalized.float()

    def describe(self) -> dict[str, Any]:
        return {name: value for name, value in self._identity.items() if name not in ("model", "side")}

    def state_dict(self) -> dict[str, Any]:
        return {**self._identity, "generators": dict(self._generators)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        identity = {name: value for name, value in state.items() if name != "generators"}
        model = typed(StainModelConfig, identity["model"], "normaliser")
        try:
            algorithm = algorithm_class("stain", model.algorithm)
            generators = algorithm.build_generators(model, identity["image_size"])
            generators.load_state_dict(state["generators"])
        except (ModelError, RuntimeError) as error:
            raise UserError(f"normaliser {identity['name']}: its weights are not those of its model") from error
        to_a, to_b = algorithm.into_domains(generators)
        return cls(to_a if identity["side"] == "a" else to_b, identity, state["generators"])
