"""MineGAN (Wang et al. 2020), the thesis's rival: a miner in front of a generator trained on the rich types."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from data_pipeline.device import to_device
from data_pipeline.randomness import derive_key
from data_pipeline.stream.stream import MicroBatch
from models.few_shot.networks import Generator, Miner
from trainer.learners import losses
from trainer.learners.learner import Learner, Setting, Terms
from trainer.loop.algorithm import Adversarial, Algorithm, Batches
from trainer.runs.registry import read_options, registered
from trainer.tasks.few_shot.algorithms.figr import Figr
from trainer.tasks.few_shot.config import FewShotModelConfig, FewShotRunConfig
from trainer.tasks.few_shot.episode import Draw, Shown, judge


@registered
class MineGan(Figr):
    """A Wasserstein GAN whose noise passes through a miner; the generator is frozen in the first half of the rounds."""

    generators = makers = ("miner", "generator")
    meta_trained = False

    @classmethod
    def learns_from_rich(cls, model: FewShotModelConfig) -> bool:
        return True

    @classmethod
    def _build_networks(cls, model: FewShotModelConfig, image_size: int) -> dict[str, nn.Module]:
        return super()._build_networks(model, image_size) | {"miner": Miner(cls.latent_size(model))}

    @classmethod
    def make(cls, makers: Mapping[str, nn.Module], latents: torch.Tensor) -> torch.Tensor:
        return super().make(makers, makers["miner"](latents))

    @classmethod
    def training_on_rich(
        cls, config: FewShotRunConfig, networks: Mapping[str, nn.Module], setting: Setting
    ) -> Algorithm:
        return Pretraining(config, networks, setting)

    def run_round(self, shown: Iterator[Shown], key: int, number: int, rounds: int) -> dict[str, torch.Tensor]:
        """See Episode.run_round. First the miner alone, then both (Wang et al. 2020, section 4.2)."""
        generator, learns = self.networks["generator"], 2 * number >= rounds
        generator.train(learns)  # batch norm keeps its running statistics while the generator rests
        for parameter in generator.parameters():
            parameter.requires_grad_(learns)
        return super().run_round(shown, key, number, rounds)

    def _generate(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        generator = self.networks["generator"]
        assert isinstance(generator, Generator)
        mined = self.networks["miner"](draw.normal("z", generator.in_size, images.device))
        return generator(mined)


class Pretraining(Adversarial[MicroBatch]):
    """A Wasserstein GAN of all rich types together: the generator that miners then look into."""

    def __init__(self, config: FewShotRunConfig, networks: Mapping[str, nn.Module], setting: Setting) -> None:
        model, steps = config.model, config.model.inner.discriminator_steps
        self._options = read_options("few_shot", model.algorithm, model.options)
        optimizer = model.scaled_optimizer(setting.total_steps)
        self._discriminator = Learner("discriminator", networks["discriminator"], optimizer, setting, moves=steps)
        self._generator = Learner("generator", networks["generator"], optimizer, setting)
        learners = {"discriminator": self._discriminator, "generator": self._generator}
        super().__init__(learners, setting, critic_steps=steps, streams=("train",))

    def moves(self) -> dict[str, Callable[[MicroBatch], Terms]]:
        return {"discriminator": self._judge, "generator": self._generate}

    def _parts(self, batches: Batches) -> list[MicroBatch]:
        return list(next(batches["train"]))

    def _generate(self, part: MicroBatch) -> Terms:
        with self._generator.autocast():
            logits = self._discriminator.module(self._generator.engine(self._noise(part, "generator")))
        return {"adversarial": (1.0, losses.wasserstein_generator(logits))}

    def _judge(self, part: MicroBatch) -> Terms:
        with torch.no_grad(), self._generator.autocast():
            generated = self._generator.module(self._noise(part, "discriminator"))
        with self._discriminator.autocast():
            real, made = judge(self._discriminator.engine, part.images, generated)
        points = to_device(self._draw(part).uniform("penalty", 1)[:, 0], part.images.device)
        penalty = losses.gradient_penalty(
            # Past the data-parallel wrapper: it allows no gradient of a gradient.
            self._discriminator.module,
            part.images,
            generated,
            points,
            self._options.penalty_metric,
        )
        distance = losses.wasserstein_critic(real, made)
        return {"discriminator": (1.0, distance), "penalty": (self._options.penalty, penalty)}

    def _noise(self, part: MicroBatch, purpose: str) -> torch.Tensor:
        generator = self._generator.module
        assert isinstance(generator, Generator)
        return self._draw(part).normal(purpose, generator.in_size, part.images.device)

    def _draw(self, part: MicroBatch) -> Draw:
        return Draw(derive_key(self.setting.seed, "pretraining"), part.positions)
