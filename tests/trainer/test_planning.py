"""If these fail, what plan.py says of memory is not what a training takes, or a default run does not fit its GPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from data_pipeline.errors import UserError
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from launchers.plan import LAUNCHERS
from launchers.train_classifier import QuickstartConfig
from trainer.learners.learner import Setting
from trainer.planning.device_memory import GIB, parse_memory
from trainer.planning.micro_batch import plan_request, with_found_micro_batch
from trainer.planning.plan import divide_share, plan_memory, rehearsal_of
from trainer.planning.step_memory import LiveMemory, Rehearsal, rehearse
from trainer.runs import registry
from trainer.runs.config import RunConfig
from trainer.runs.configuration import typed

SMALL_GAN = (
    "data.image_size=32",
    "model.generator.width=32",
    "model.generator.blocks=[1,1,1]",
    "model.critic.width=32",
    "model.critic.blocks=[1,1,1]",
    "model.critic_steps=1",
)


def configured(launcher: str, *arguments: str) -> RunConfig:
    config: RunConfig = read_config(LAUNCHERS[launcher], launcher, arguments)
    return config


def real_peak(config: RunConfig, rehearsal: Rehearsal, images: int, parts: int) -> int:
    """Bytes that torch's own allocator counts at once in the second step, beyond what there was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        setting = Setting("fp32", 100, config.train.global_batch)  # with optimizers that move weights
        algorithm = registry.task(config.kind).build(config, rehearsal.types, setting)
        for _ in range(2):
            algorithm.step(rehearsal.batches(images, parts, algorithm.takes, torch.device("cpu")), detailed=True)
    living = peak = 0
    for event in profiled.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            living += event.nbytes()
            peak = max(peak, living)
    return peak


@pytest.mark.parametrize(
    ("launcher", "arguments", "images", "parts"),
    [
        ("train_classifier", ("model=senet_small_ge", "data.image_size=64"), 16, 1),
        ("train_classifier", ("model=senet_small_ge", "data.image_size=64", "optimizer.average_decay=0.9"), 8, 2),
        ("train_conditional_gan", SMALL_GAN, 16, 1),
        ("train_stain_gan", ("data.image_size=32", "model.generator.depth=4", "model.generator.width=16"), 8, 1),
        ("train_few_shot_gan", ("data.image_size=64", "model.generator.width=16", "model.encoder.width=16"), 8, 1),
    ],
)
def test_the_prediction_is_what_a_real_step_takes(
    launcher: str, arguments: tuple[str, ...], images: int, parts: int
) -> None:
    config = configured(launcher, *arguments)
    rehearsal = rehearsal_of(config, "fp32")
    predicted = rehearse(rehearsal, (parts,)).memory(parts).peak(images)
    measured = real_peak(config, rehearsal, images, parts)
    print(
        f"{launcher} {images}x{parts}: predicted {predicted / 2**20:.1f} MiB, real {measured / 2**20:.1f} MiB, "
        f"{100 * (predicted / measured - 1):+.1f} %"
    )
    assert predicted == pytest.approx(measured, rel=0.1)


def test_memory_is_told_of_any_micro_batch() -> None:
    """A line through two sizes says what a step of a third takes."""
    rehearsal = rehearsal_of(configured("train_classifier", "model=senet_tiny_ge", "data.image_size=64"), "fp16")
    told = rehearse(rehearsal, (1,)).memory(1)
    with LiveMemory() as memory:
        kept = torch.zeros(1000)
        view = kept[:10]  # no memory of its own
        passing = torch.ones(3000)
        del passing
        learned = torch.ones(500, requires_grad=True)
        total = learned.exp().sum()  # its gradient's graph keeps the exponentials
    assert memory.peak == 4 * 4000
    assert sum(memory.live.values()) == 4 * (1000 + 500 + 500 + 1)
    assert len(view) == 10
    assert total > 0
    assert told.peak(200) - told.peak(100) == pytest.approx(told.peak(300) - told.peak(200), rel=1e-6)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    arguments = ("model=senet_small_ge", "data.image_size=64", "train.global_batch=64")
    limit = parse_memory("1.32GiB")
    largest = plan_memory(configured("train_classifier", *arguments), limit).largest
    assert largest is not None
    assert 1 < largest.images < 64
    at_most = plan_memory(configured("train_classifier", *arguments, f"train.micro_batch={largest.images}"), limit)
    assert at_most.fits
    whole = plan_memory(configured("train_classifier", *arguments), limit)
    assert not whole.fits
    assert whole.largest == largest


def test_a_share_is_cut_as_the_stream_cuts_it() -> None:
    assert (divide_share(64, None).images, divide_share(64, None).parts) == (64, 1)
    assert (divide_share(64, 16).images, divide_share(64, 16).parts) == (16, 4)
    assert (divide_share(64, 22).images, divide_share(64, 22).parts) == (22, 3)


def test_sizes_are_read() -> None:
    assert parse_memory("8GiB") == parse_memory("8") == 8 * GIB
    assert parse_memory("8GB") == 8 * 10**9
    with pytest.raises(UserError, match="gpu_memory=much"):
        parse_memory("much")


def test_the_tour_s_configuration_is_planned_as_a_classifier_s(tmp_path: Path) -> None:
    """A launcher's subclass of the configuration has settings of its own, which the planning process does not know."""
    arguments = ("train.find_micro_batch=true", "train.global_batch=8", f"run={tmp_path / 'run'}", "data.image_size=32")
    config = read_config(QuickstartConfig, "quickstart", arguments)
    found = with_found_micro_batch(config, Topology())
    assert isinstance(found, QuickstartConfig)
    assert (found.train.micro_batch, found.train.find_micro_batch) == (8, False)
    assert found.phantom == config.phantom


def test_a_model_that_cannot_be_planned_is_one_line(tmp_path: Path) -> None:
    arguments = ("model=naive_bayes", "train.find_micro_batch=true", f"run={tmp_path / 'run'}")
    config = configured("train_classifier", *arguments)
    with pytest.raises(UserError, match=r"find_micro_batch=true: model=naive_bayes .* nothing to plan"):
        with_found_micro_batch(config, Topology())


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_s_settings_reach_the_planning_process(launcher: str) -> None:
    config = configured(launcher, "run=x")
    request = json.loads(json.dumps(dataclasses.asdict(plan_request(config, GIB, 2))))
    assert typed(registry.task(request["task"]).config, request["settings"], "") == config


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Every launcher with each model of its own at the defaults, and README's commands and sweeps for 8 GB."""
    accumulated = ("train.global_batch=64", "train.micro_batch=16")
    classifiers = (
        *("senet154_ge", "senet154", "vgg19", "resnet50", "inception_v3", "xception", "efficientnet", "resnext101"),
        *("se_resnext50", "sequential_cnn", "senet_small_ge", "senet_tiny_ge"),
    )
    stain = ("w_cyclegan_gp", "w_cyclegan_gp_thesis", "cyclegan", "pix2pix")
    few_shot = ("few_shot_meta", "few_shot_meta_thesis", "figr", "mine_gan", "fast_gan", "diff_augment")
    conditional = ("c_wgan_gp", "cwgan_gp", "ac_gan", "cgan", "info_gan")
    return [
        *(("train_classifier", (f"model={model}", *accumulated)) for model in classifiers),
        *(("train_stain_gan", (f"model={model}",)) for model in stain),
        ("train_stain_gan", ("data.image_size=256",)),  # configs/sweeps/ablation.yaml
        *(("train_conditional_gan", (f"model={model}",)) for model in conditional),
        *(("train_few_shot_gan", (f"model={model}",)) for model in few_shot),
    ]


def in_eight_gigabytes(launcher: str, arguments: tuple[str, ...]) -> Any:
    plan = plan_memory(configured(launcher, *arguments, "train.precision=fp16"), 8 * GIB, search=False)
    print(f"{launcher} {' '.join(arguments)}: {plan.needed / GIB:.2f} GiB")
    return plan


@pytest.mark.parametrize("launcher", ["train_classifier", "train_stain_gan", "train_conditional_gan"])
def test_the_thesis_s_own_models_fit_eight_gigabytes(launcher: str) -> None:
    """The slow test goes over all runs."""
    assert in_eight_gigabytes(*next(command for command in commands() if command[0] == launcher)).fits


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "arguments"), commands())
def test_every_default_run_fits_eight_gigabytes(launcher: str, arguments: tuple[str, ...]) -> None:
    assert in_eight_gigabytes(launcher, arguments).fits
