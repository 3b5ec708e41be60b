"""A small pixelwise network learns what a trained generator does (StainNet, Kang et al. 2021)."""

import torch

from models.stain.two_way import DomainPair
from trainer.learners import losses
from trainer.learners.learner import Learner, on_device
from trainer.loop.fit import Batches, Stateless, StepResult


class StainStudent(Stateless):
    """Student `a` learns how the teacher gives domain B's images the stain of A, student `b` the reverse."""

    def __init__(
        self, students: Learner, to_a: torch.nn.Module, to_b: torch.nn.Module, *, global_batch: int, world_size: int
    ) -> None:
        """students: a learner of a DomainPair; to_a, to_b: the teacher, networks that make images of a domain."""
        assert isinstance(students.module, DomainPair)
        self.learners = {"generators": students}
        self.takes = {"a": 1, "b": 1}
        self._students = students
        self._to_a, self._to_b = (on_device(network, students.device).eval() for network in (to_a, to_b))
        # An image's share of the joined batch's mean, whatever the sizes of the processes' slices.
        self._share = world_size / global_batch

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """One move of both students; sums `loss`."""
        self._students.engine.train()
        total = torch.zeros((), device=self._students.device)
        pairs = list(zip(next(batches["a"]), next(batches["b"]), strict=True))
        for number, (a, b) in enumerate(pairs, start=1):
            with torch.no_grad(), self._students.autocast():
                lessons = self._to_a(b.images), self._to_b(a.images)
            with self._students.part_of_step(last=number == len(pairs)):
                with self._students.autocast():
                    answers = self._students.engine(b.images, a.images)
                both = [losses.reconstruction(*pair) for pair in zip(lessons, answers, strict=True)]
                loss = torch.cat(both).sum()
                self._students.backward(loss * self._share)
            total += loss.detach()
        return StepResult({"loss": total}, {"gradient_norm": self._students.step()})
