"""A small pixelwise network learns what a trained generator does (StainNet, Kang et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_pipeline.errors import UserError
from trainer.learners import losses
from trainer.learners.learner import Setting, Terms, on_device
from trainer.loop.algorithm import Batches, Stateless, StepResult
from trainer.runs.record import RunRecord
from trainer.runs.registry import algorithm_class, registered
from trainer.tasks.stain.algorithm import Pair, StainAlgorithm
from trainer.tasks.stain.config import StainRunConfig
from trainer.tasks.stain.load import load_stain_model


@dataclass(frozen=True)
class StudentOptions:
    """Settings of the student."""

    teacher: str | None = None  # the run that the student imitates: directory of a run of train_stain_gan.py


@registered
class StainStudent(StainAlgorithm, Stateless):
    """Student `a` learns how the teacher gives domain B's images the stain of A, student `b` the reverse."""

    Options = StudentOptions

    def __init__(self, config: StainRunConfig, generators: nn.Module, setting: Setting) -> None:
        super().__init__(config, generators, setting)
        self.learners = {"generators": self._generators}
        self.takes = {"a": 1, "b": 1}
        device = self._generators.device
        self._teacher = [on_device(network, device).eval() for network in self._load_teacher(config, setting)]

    def _load_teacher(self, config: StainRunConfig, setting: Setting) -> tuple[nn.Module, nn.Module]:
        """Networks that give an image the stain of a, and of b."""
        if self.options.teacher is None:
            raise UserError("model=stain_student needs model.options.teacher=RUN, a run of train_stain_gan.py")
        run = Path(self.options.teacher)
        if setting.rehearsal:  # weights do not matter
            taught = RunRecord.read(run, "stain").config
            teacher = algorithm_class("stain", taught.model.algorithm)
            return teacher.into_domains(teacher.build_generators(taught.model, taught.data.image_size))
        trained = load_stain_model(run)
        if (trained.a, trained.b) != (config.a, config.b):
            raise UserError(f"{run}: taught {trained.a} and {trained.b}, not {config.a} and {config.b}: set a= and b=")
        return trained.to_a, trained.to_b

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One move of both students; sums `loss`."""
        self._generators.engine.train()
        pairs = [Pair(a, b) for a, b in zip(next(batches["a"]), next(batches["b"]), strict=True)]
        sums, norm = self._generators.move(pairs, self._terms)
        return StepResult(sums, {"gradient_norm": norm})

    def _terms(self, pair: Pair) -> Terms:
        to_a, to_b = self._teacher
        with torch.no_grad(), self._generators.autocast():
            lessons = to_a(pair.b.images), to_b(pair.a.images)
        with self._generators.autocast():
            answers = self._generators.engine(pair.b.images, pair.a.images)
        both = [losses.reconstruction(*one) for one in zip(lessons, answers, strict=True)]
        return {"loss": (1.0, torch.cat(both))}
