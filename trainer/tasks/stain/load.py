"""The networks of a stain run: built for training, and taken up again from its newest checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data_pipeline.errors import UserError
from models.errors import ModelError
from models.stain.build import build_critic, build_generator
from models.stain.grey import ColourGrey
from models.stain.two_way import DomainPair, TwoWay
from trainer.loop.checkpoint import Checkpoint, CheckpointStore
from trainer.runs.configuration import typed
from trainer.runs.run_directory import CONFIG_FILE, read_run_config
from trainer.tasks.stain.config import StainModelConfig, StainRunConfig


@dataclass(frozen=True)
class TrainedStainModel:
    """What a stain run has learned, on the CPU in evaluation mode, and what from.

    generators: the algorithm's module. to_a, to_b: what gives an image the stain of domain a or b, float
    [n, 3, S, S] in [-1, 1] to the same.
    a, b: the domains' names. cell_types: those it was shown. dataset_hash: of the data set that it learned from.
    """

    generators: nn.Module
    to_a: nn.Module
    to_b: nn.Module
    config: StainRunConfig
    a: str
    b: str
    cell_types: tuple[str, ...]
    dataset_hash: str
    checkpoint: Checkpoint


def build_generators(model: StainModelConfig, image_size: int) -> nn.Module:
    """The generators' module of an algorithm: a TwoWay for the two with cycles, else a DomainPair."""
    try:
        pair = [build_generator(model.generator, image_size) for _ in range(2)]
    except ModelError as error:
        raise UserError(str(error)) from error
    if model.algorithm in ("w_cyclegan_gp", "cyclegan"):
        return TwoWay(a_to_b=pair[0], b_to_a=pair[1])
    return DomainPair(a=pair[0], b=pair[1])


def build_critics(model: StainModelConfig, image_size: int) -> DomainPair:
    """Both domains' critics; pix2pix's see the grey image beside the coloured one."""
    channels = 6 if model.algorithm == "pix2pix" else 3
    try:
        return DomainPair(*(build_critic(model.critic, image_size, channels) for _ in range(2)))
    except ModelError as error:
        raise UserError(str(error)) from error


def into_domains(model: StainModelConfig, generators: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(to_a, to_b): what gives any image the stain of a domain, from an algorithm's generators."""
    if isinstance(generators, TwoWay):
        return generators.b_to_a, generators.a_to_b
    assert isinstance(generators, DomainPair)
    if model.algorithm == "pix2pix":
        return ColourGrey(generators.a), ColourGrey(generators.b)
    return generators.a, generators.b


def load_stain_model(run: Path) -> TrainedStainModel:
    """The newest checkpoint of a stain run. UserError for a folder that holds none, or another kind of run."""
    content = read_run_config(run)
    if "kind" in content or "algorithm" not in content.get("model", {}):
        raise UserError(f"{run}: not a run of train_stain_gan.py: give the folder of one")
    try:
        facts = {name: content.pop(name) for name in ("cell_types", "dataset_hash")}
    except KeyError as error:
        raise UserError(f"{run / CONFIG_FILE}: not written by train_stain_gan.py ({error} is missing)") from error
    config = typed(StainRunConfig, content, str(run / CONFIG_FILE))
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    if checkpoint is None:
        raise UserError(f"{run}: no checkpoint yet: let train_stain_gan.py go on first")
    state = checkpoint.load()["learners"]["generators"]
    generators = build_generators(config.model, config.data.image_size)
    checkpoint.fill(generators, state["average"] or state["module"], run / CONFIG_FILE)
    to_a, to_b = into_domains(config.model, generators.eval())
    return TrainedStainModel(
        generators,
        to_a,
        to_b,
        config,
        str(config.a),
        str(config.b),
        tuple(facts["cell_types"]),
        facts["dataset_hash"],
        checkpoint,
    )
