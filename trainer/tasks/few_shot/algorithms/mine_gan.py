"""MineGAN (Wang et al. 2020), the thesis's rival: a miner in front of a generator trained on the rich types."""

from collections.abc import Iterator

import torch

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch
from models.few_shot.networks import Generator
from trainer.learners import losses
from trainer.learners.learner import Learner
from trainer.loop.fit import Batches, Stateless, StepResult
from trainer.tasks.few_shot.algorithms.figr import Figr
from trainer.tasks.few_shot.config import FewShotWeights
from trainer.tasks.few_shot.episode import Draw, Shown, judge


class MineGan(Figr):
    """A Wasserstein GAN whose noise goes through a miner; for the first half of the rounds the generator rests."""

    generators = ("miner", "generator")

    def play_round(self, shown: Iterator[Shown], key: int, number: int, rounds: int) -> dict[str, torch.Tensor]:
        """See Episode.play_round. First the miner alone, then both (Wang et al. 2020, section 4.2)."""
        generator, learns = self.networks["generator"], 2 * number >= rounds
        generator.train(learns)  # a generator that rests keeps its batch norms' statistics
        for parameter in generator.parameters():
            parameter.requires_grad_(learns)
        return super().play_round(shown, key, number, rounds)

    def _generate(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        generator = self.networks["generator"]
        assert isinstance(generator, Generator)
        mined = self.networks["miner"](draw.normal("z", generator.in_size, images.device))
        made: torch.Tensor = generator(mined)
        return made


class Pretraining(Stateless):
    """A Wasserstein GAN of all rich types together: the generator that miners then look into."""

    def __init__(
        self,
        generator: Learner,
        discriminator: Learner,
        weights: FewShotWeights,
        *,
        discriminator_steps: int,
        global_batch: int,
        seed: int,
        world_size: int,
    ) -> None:
        self.learners = {"generator": generator, "discriminator": discriminator}
        self.takes = {"train": discriminator_steps}
        self._generator, self._discriminator, self._weights = generator, discriminator, weights
        self._discriminator_steps, self._seed = discriminator_steps, seed
        # An image's share of the joined batch's mean, whatever the sizes of the processes' slices.
        self._share = world_size / global_batch

    def step(self, batches: Batches, *, detailed: bool) -> StepResult:
        """The discriminator's moves, then one of the generator; sums `discriminator`, `penalty`, `adversarial`."""
        device = self._generator.device
        sums = {name: torch.zeros((), device=device) for name in ("discriminator", "penalty", "adversarial")}
        self._generator.engine.train()
        self._discriminator.engine.train()
        parts: list[MicroBatch] = []
        norm = torch.zeros((), device=device)
        for _ in range(self._discriminator_steps):
            parts = list(next(batches["train"]))
            for number, part in enumerate(parts, start=1):
                with self._discriminator.part_of_step(last=number == len(parts)):
                    self._judge(part, sums)
            norm = self._discriminator.step()
        for number, part in enumerate(parts, start=1):
            with self._generator.part_of_step(last=number == len(parts)), self._discriminator.frozen() as critic:
                with self._generator.autocast():
                    logits = critic(self._generator.engine(self._noise(part, "generator")))
                loss = losses.wasserstein_generator(logits).sum()
                self._generator.backward(loss * self._share)
            sums["adversarial"] += loss.detach()
        norms = {"gradient_norm/discriminator": norm, "gradient_norm/generator": self._generator.step()}
        return StepResult(sums, norms)

    def _judge(self, part: MicroBatch, sums: dict[str, torch.Tensor]) -> None:
        """The discriminator's gradient over one micro-batch."""
        with torch.no_grad(), self._generator.autocast():
            generated = self._generator.module(self._noise(part, "discriminator"))
        with self._discriminator.autocast():
            real, made = judge(self._discriminator.engine, part.images, generated)
        distance = losses.wasserstein_critic(real, made).sum()
        points = to_device(self._draw(part).uniform("penalty", 1)[:, 0], part.images.device)
        penalty = losses.gradient_penalty(
            # Past the data-parallel wrapper: it allows no gradient of a gradient (contract C10).
            self._discriminator.module,
            part.images,
            generated,
            points,
            self._weights.penalty_metric,
        ).sum()
        self._discriminator.backward((distance + self._weights.penalty * penalty) * self._share)
        sums["discriminator"] += distance.detach() / self._discriminator_steps
        sums["penalty"] += penalty.detach() / self._discriminator_steps

    def _noise(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        generator = self._generator.module
        assert isinstance(generator, Generator)
        return self._draw(part).normal(purpose, generator.in_size, part.images.device)

    def _draw(self, part: MicroBatch) -> Draw:
        return Draw(derive_key(self._seed, "pretraining"), part.positions)
