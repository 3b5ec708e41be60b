"""If these fail, nobody can check the project's claims about training speed and memory on a machine of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data_pipeline.phantoms.folders import render_phantoms
from launchers.console import CONFIGS
from tests.benchmarks import before_after, memory, training
from tests.benchmarks.memory import launcher_of
from tests.conftest import TINY_TYPES


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_training_benchmark_measures_every_contender(tmp_path: Path) -> None:
    """On phantoms, for an instant each; the phases of a step are told apart and are all of it."""
    render_phantoms(
        tmp_path,
        12,
        slides=4,
        size=40,
        workers=1,
        paired=False,
        cell_types=TINY_TYPES,
        stains=("giemsa",),
        progress=False,
    )
    options = training.Options(
        images=str(tmp_path / "giemsa"),
        model="senet_tiny_ge",
        image_size=32,
        batch=8,
        variants="plain,channels_last+checkpoint_activations",
        count=36,
        stored_size=36,
        repeats=1,
        seconds=0.01,
        profile_steps=4,
    )
    result = json.loads(json.dumps(training.run(options, progress=False)))
    variants = set(options.variants.split(","))
    assert set(result["results"]) == variants | {"timm", "synthetic", "stain"}
    assert all(found["images_per_second"]["median"] > 0 for found in result["results"].values())
    assert all(found["model_flops_utilization"] is None for found in result["results"].values())  # of a CPU
    assert result["ratios"]["plain / timm"]["median"] > 0
    assert {"data", "forward", "backward", "optimizer"} <= set(result["phases"])
    assert sum(result["phases"].values()) == pytest.approx(1, abs=0.01)
    assert any("plain / timm" in line for line in training.table(result))


def test_the_memory_benchmark_measures_a_launcher_s_training(tmp_path: Path) -> None:
    options = memory.Options(
        out=str(tmp_path / "memory.json"),
        models="senet_tiny_ge,naive_bayes",
        settings="data.image_size=32,train.global_batch=4",
        steps=1,
        warm_up=1,
        per_type=20,
        size=32,
    )
    result = json.loads(json.dumps(memory.run(options)))
    assert result["models"]["senet_tiny_ge"]["steps_per_second"] > 0
    assert result["models"]["senet_tiny_ge"]["global_batch"] == 4
    assert result["models"]["naive_bayes"] == {"left_out": "learns without gradients"}


def test_two_checkouts_are_compared_step_by_step(tmp_path: Path) -> None:
    """The same one twice: both contenders take turns, and the first is the base."""
    options = before_after.Options(
        settings="data.image_size=16,train.global_batch=4,model.critic_steps=1",
        variants="new:train.precision=fp32;new:train.precision=bf16",
        rounds=2,
        size=16,
    )
    result = json.loads(json.dumps(before_after.run(options)))
    base, other = result["models"]["c_wgan_gp"].values()
    assert (base["precision"], other["precision"]) == ("fp32", "bf16")
    assert base["times as fast as the first"]["repeats"] == [1.0, 1.0]
    assert all(seconds > 0 for seconds in other["seconds"]["repeats"])
    assert len(before_after.table(result)) == 2


def test_every_model_s_configuration_has_its_launcher() -> None:
    launchers = {path.stem: launcher_of(path) for path in (CONFIGS / "model").glob("*.yaml")}
    assert launchers["senet154_ge"] == launchers["timm"] == "train_classifier"
    assert launchers["cyclegan"] == "train_stain_gan"
    assert launchers["info_gan"] == "train_conditional_gan"
    assert launchers["figr"] == "train_few_shot_gan"
    assert launchers["fcos_lite"] == "train_detector"
