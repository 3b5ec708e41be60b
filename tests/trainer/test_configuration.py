"""If these fail, a setting that the documentation shows is refused, or a wrong one is taken."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_pipeline.errors import UserError
from data_pipeline.stream.config import StreamConfig
from launchers.console import read_config
from models.detection.fcos import build_fcos
from models.stain.build import build_critic
from trainer.runs.configuration import typed
from trainer.runs.registry import algorithm_class, algorithm_names
from trainer.runs.run_directory import read_run_config, write_run_config
from trainer.tasks.conditional.config import ConditionalRunConfig
from trainer.tasks.detection.config import DetectorRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.episode import episode_class
from trainer.tasks.stain.config import StainRunConfig


@dataclass(frozen=True)
class RunConfig:
    """A run's settings, of which only the data's are looked at."""

    data: StreamConfig = field(default_factory=StreamConfig)


@dataclass(frozen=True)
class PortionConfig:
    """How much."""

    size: int = 1


@dataclass(frozen=True)
class MealConfig:
    """Two portions, one with a default of the meal's own."""

    first: PortionConfig = field(default_factory=PortionConfig)
    second: PortionConfig = field(default_factory=lambda: PortionConfig(size=7))


def test_a_nested_dataclass_has_the_default_that_its_parent_gives_it() -> None:
    assert typed(MealConfig, {}, "here") == MealConfig()
    assert typed(MealConfig, {"first": {"size": 2}}, "here") == MealConfig(PortionConfig(2), PortionConfig(7))


def test_the_thesis_preset_learns_by_the_optimiser_that_the_thesis_names() -> None:
    model = read_config(StainRunConfig, "train_stain_gan", ["model=w_cyclegan_gp_thesis"]).model
    for optimizer in (model.generator_optimizer, model.critic_optimizer):
        assert (optimizer.name, optimizer.learning_rate, optimizer.betas) == ("adam", 1e-4, [0.5, 0.9])
        assert (optimizer.weight_decay, optimizer.warmup, optimizer.schedule) == (0.0, 0.0, "linear")
        assert optimizer.clip_norm is None


@pytest.fixture
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """configs/run.yaml, with Barcelona's images cropped."""
    monkeypatch.setattr("trainer.runs.composition.CONFIGS", tmp_path)
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  crop:\n    barcelona: 0.8\n")
    return file


@pytest.mark.parametrize(
    ("overrides", "crop"),
    [
        ([], {"barcelona": 0.8}),
        (["data.crop={munich:1}"], {"barcelona": 0.8, "munich": 1.0}),
        (["data.crop.barcelona=0.5"], {"barcelona": 0.5}),
        (["data.crop.munich=0.5"], {"barcelona": 0.8, "munich": 0.5}),
        (["data.crop.10.50=0.5"], {"barcelona": 0.8, "10.50": 0.5}),
        (["data.crop={'a, b': .5}"], {"barcelona": 0.8, "a, b": 0.5}),
    ],
)
def test_a_table_of_names_is_read_from_file_and_command_line(
    config_file: Path, overrides: list[str], crop: dict[str, float]
) -> None:
    found = read_config(RunConfig, "run", overrides).data.crop
    assert found == crop
    assert all(type(share) is float for share in found.values())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.crop={munich:x}", "data.crop=x: write a number"),
        ("data.crop=0.5", "data.crop=0.5: write {name: value"),
        ("data.crop={munich:1", "write {name: value"),
        ("data.crop={'munich:1}", "the quote ' is not closed"),
        ("data.crop.munich=2", "data.crop.munich=2.0: must be above 0 and at most 1"),
        ("data.crops={munich:1}", "data.crops: no such key; the nearest is data.crop$"),
    ],
)
def test_a_wrong_entry_in_a_table_is_one_line(config_file: Path, override: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_config(RunConfig, "run", [override])
    assert "\n" not in str(caught.value)


def test_a_stored_table_comes_back_and_defaults_stay_apart() -> None:
    assert typed(RunConfig, {"data": {"crop": {"a": 1, "b": 0.5}}}, "config.yaml").data.crop == {"a": 1.0, "b": 0.5}
    assert typed(RunConfig, {}, "config.yaml").data.crop == {}
    with pytest.raises(UserError, match=r"config.yaml: data.crop.a=x: write a number"):
        typed(RunConfig, {"data": {"crop": {"a": "x"}}}, "config.yaml")


ALGORITHMS = {
    path.stem: content.get("model", content)["algorithm"]
    for path in sorted((Path(__file__).parents[2] / "configs/model").glob("*.yaml"))
    if "algorithm" in (content := yaml.safe_load(path.read_text())).get("model", content)
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_model_config_names_a_algorithm_that_can_be_built(name: str) -> None:
    """`model=NAME` on the command line must not fail for a file that ships with the project."""
    networks: list[torch.nn.Module]
    with torch.device("meta"):
        if ALGORITHMS[name] in algorithm_names("stain"):
            stain = read_config(StainRunConfig, "train_stain_gan", [f"model={name}"])
            size, algorithm = stain.data.image_size, algorithm_class("stain", stain.model.algorithm)
            networks = [algorithm.build_generators(stain.model, size)]
            build_critic(stain.model.critic, size, getattr(algorithm, "critic_channels", 3))
        elif ALGORITHMS[name] in algorithm_names("conditional"):
            conditional = read_config(ConditionalRunConfig, "train_conditional_gan", [f"model={name}"])
            algorithm = algorithm_class("conditional", conditional.model.algorithm)
            download_nothing(conditional.model.options)
            networks = list(algorithm.build_networks(conditional.model, conditional.data.image_size, 8).values())
        elif ALGORITHMS[name] in algorithm_names("detection"):
            detector = read_config(DetectorRunConfig, "train_detector", [f"model={name}"])
            networks = [build_fcos(dataclasses.replace(detector.model.network, weights=None), 3)]
        else:
            few_shot = read_config(FewShotRunConfig, "train_few_shot_gan", [f"model={name}"])
            download_nothing(few_shot.model.options)
            networks = list(
                episode_class(few_shot.model).build_networks(few_shot.model, few_shot.data.image_size).values()
            )
    assert all(sum(parameter.numel() for parameter in network.parameters()) > 1000 for network in networks)


def download_nothing(options: dict[str, Any]) -> None:
    """An algorithm's options, whose pretrained network becomes a random one."""
    if options.get("weights"):
        options["weights"] = None


def test_a_run_configuration_that_was_changed_is_refused(tmp_path: Path) -> None:
    """Whatever bit of it: another size or type of images would be taken, and other scores come out."""
    content = {"data": {"image_size": 96, "crop": {"munich": 0.8}}, "rate": 1e-5, "types": ["basophil"], "none": None}
    write_run_config(tmp_path, content)
    assert read_run_config(tmp_path) == content
    path = tmp_path / "config.yaml"
    written, told = path.read_bytes(), []
    for place in range(0, len(written), 3):
        for bit in (0, 7):
            changed = bytearray(written)
            changed[place] ^= 1 << bit
            path.write_bytes(changed)
            try:
                assert {name: read_run_config(tmp_path)[name] for name in content} == content
            except UserError as error:
                told.append(str(error))
    assert len(told) > 100
    assert all(str(path) in line and "\n" not in line for line in told)
