"""If these fail, a setting that should save memory or time changes what a classifier learns."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.stream import MicroBatch
from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from tests.conftest import Launch
from tests.trainer.test_training import TINY, final_state, losses
from trainer.learners.choices import NetworkChoices
from trainer.learners.learner import Learner, Setting
from trainer.learners.optimizer_config import OptimizerConfig
from trainer.loop.checkpoint import CheckpointStore
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.classification.config import ClassifierFitConfig, ClassifierRunConfig

SENET = ClassifierConfig(
    timm_name="",
    block="basic",
    layers=(2, 2),
    widths=(8, 16),
    groups=1,
    reduction=4,
    stem_widths=(8,),
    shortcut="average",
    ge_kernel=4,
)
RESNET = ClassifierConfig(architecture="timm", timm_name="test_resnet")
OPTIMIZER = OptimizerConfig(name="sgd", learning_rate=0.05, average_decay=0.9)


def train(config: ClassifierConfig, choices: NetworkChoices, steps: int = 3) -> tuple[list[float], Learner]:
    """A few steps on two micro-batches each."""
    torch.manual_seed(0)
    network = build_classifier(config, 3, 32)
    fit = ClassifierFitConfig(label_smoothing=0.1, **vars(choices))
    run = ClassifierRunConfig(optimizer=OPTIMIZER, train=fit)
    algorithm = CrossEntropy(network, run, Setting("fp32", steps, global_batch=8))
    learner = algorithm.learners["classifier"]
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.randint(3, (8,))
        rows = np.arange(4)
        parts = [MicroBatch(images[s], labels[s], rows, rows, step, 2) for s in (slice(0, 4), slice(4, 8))]
        found.append(algorithm.step({"train": iter([parts])}, detailed=False).sums["loss"].item())
    return found, learner


def assert_alike(learner: Learner, other: Learner, tolerance: float) -> None:
    """Weights, running statistics and averages, under the same names."""
    state, expected = learner.state_dict(), other.state_dict()
    torch.testing.assert_close(state, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("config", [SENET, RESNET], ids=["senet", "timm"])
def test_checkpointed_activations_are_computed_again_and_nothing_else_changes(config: ClassifierConfig) -> None:
    """To the last bit: also the batch norms' running statistics, which the second computation must not move."""
    expected, plain = train(config, NetworkChoices())
    runs: list[type[nn.Module]] = []
    hook = nn.modules.module.register_module_forward_hook(lambda module, *_: runs.append(type(module)))
    found, learner = train(config, NetworkChoices(checkpoint_activations=True))
    hook.remove()
    assert found == expected
    assert_alike(learner, plain, 0.0)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in plain.module.modules())
    assert runs.count(nn.Conv2d) > 3 * 2 * convolutions, "nothing was computed again"


def test_dropout_is_the_same_when_it_is_computed_again() -> None:
    config = dataclasses.replace(RESNET, dropout=0.5)
    assert train(config, NetworkChoices(checkpoint_activations=True))[0] == train(config, NetworkChoices())[0]


def test_a_network_that_cannot_checkpoint_says_so() -> None:
    with pytest.raises(UserError, match=r"^train.checkpoint_activations=true: this model cannot"):
        train(ClassifierConfig(architecture="sequential", timm_name=""), NetworkChoices(checkpoint_activations=True))


def test_channels_last_changes_the_layout_and_not_the_losses() -> None:
    expected, plain = train(SENET, NetworkChoices(channels_last=False))
    found, learner = train(SENET, NetworkChoices())  # the default on a CPU
    assert found == pytest.approx(expected, rel=1e-4)
    assert_alike(learner, plain, 1e-3)
    weights = [weight for weight in learner.module.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("checkpointed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_compiled_network_learns_what_a_plain_one_does(checkpointed: bool) -> None:
    # As little as can be: compiling for a CPU takes half a minute for a few layers.
    config = dataclasses.replace(SENET, layers=(1,), widths=(8,), ge=False, dropout=0.0)  # its masks differ
    expected, plain = train(config, NetworkChoices())
    found, learner = train(config, NetworkChoices(checkpoint_activations=checkpointed, compile=True))
    assert found == pytest.approx(expected, rel=1e-3)
    assert_alike(learner, plain, 1e-2)
    assert isinstance(learner.engine, torch._dynamo.OptimizedModule)


def test_without_a_compiler_a_run_ends_in_one_line(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "run=run", "train.compile=true", *TINY]
    refused = launch("train_classifier", *arguments, CXX="no-such-compiler")
    assert refused.returncode == 2
    assert "train.compile=true needs a C++ compiler, and no-such-compiler is not" in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_checkpointed_activations(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """They are no part of what a run is: it may turn them on half way, and ends with the same bits."""
    arguments = [f"shards={tiny_dataset.root}", "model=senet_tiny_ge", "train.checkpoint_every=2", *TINY]
    whole = launch("train_classifier", *arguments, "train.epochs=1", "run=whole")
    assert whole.returncode == 0, whole.stderr
    latest = CheckpointStore(tmp_path / "whole/checkpoints").latest()
    assert latest is not None
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for path in (tmp_path / "again/checkpoints").glob(f"*{latest.step}*"):
        path.unlink()
    again = launch("train_classifier", *arguments, "train.epochs=1", "run=again", "train.checkpoint_activations=true")
    assert again.returncode == 0, again.stderr
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    assert all(
        torch.equal(value, final_state(tmp_path / "whole")["module"][name])
        for name, value in final_state(tmp_path / "again")["module"].items()
    )
