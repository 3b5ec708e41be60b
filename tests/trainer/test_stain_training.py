"""If these fail, a stain run on more processes or after a power cut is another run, or learns the wrong thing."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.catalog import Dataset
from tests.conftest import Launch, Start
from tests.trainer.test_training import kill_when
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.log import read_records
from trainer.tasks.stain.load import load_stain_model

TINY = (
    "a=giemsa",
    "b=violet",
    "data.image_size=32",
    "data.threads=1",
    "train.global_batch=6",
    "train.iterations_per_epoch=3",
    "train.epochs=1",
    "train.log_every=1",
    "samples_per_type=1",
    "model.generator.width=4",
    "model.critic.width=4",
    "model.critic.layers=2",
)
DEPTH = "model.generator.depth=3"
ALGORITHMS = {
    "w_cyclegan_gp": [DEPTH],
    "w_cyclegan_gp_thesis": [DEPTH, "model.critic_steps=2"],
    "cyclegan": ["model.generator.blocks=1", "model.options.pool_size=4"],
    "pix2pix": [DEPTH, "model.generator.norm=instance", "model.critic.norm=instance"],
}


def final_state(run: Path) -> dict[str, Any]:
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    assert checkpoint is not None
    return checkpoint.load()


@pytest.mark.parametrize("model", ALGORITHMS)
def test_two_processes_play_the_algorithm_of_one(
    two_stains: Dataset, launch: Launch, tmp_path: Path, model: str
) -> None:
    """One step of plain gradient descent; the weights' movement agrees to 1e-4 of its length.

    (Later steps see weights that differ in the last bits, which instance norms of almost flat maps amplify.)
    """
    plain = [
        f"model.{learner}_optimizer.{setting}"
        for learner in ("generator", "critic")
        for setting in ("name=sgd", "momentum=0.0", "learning_rate=0.02", "schedule=constant")
    ]
    resting = [f"model.{learner}_optimizer.learning_rate=1e-12" for learner in ("generator", "critic")]
    trainings = {
        "begun": (1, resting),
        "run-10": (1, []),
        "run-20": (2, []),
        "run-21": (2, ["train.micro_batch=2"]),
    }
    for name, (processes, more) in trainings.items():
        done = launch(
            "train_stain_gan",
            f"shards={two_stains.root}",
            f"run={name}",
            f"model={model}",
            *TINY,
            *ALGORITHMS[model],
            "train.iterations_per_epoch=1",
            *plain,
            *more,
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    alone = final_state(tmp_path / "run-10")
    begun = final_state(tmp_path / "begun")
    for name in ("run-20", "run-21"):
        state = final_state(tmp_path / name)
        for learner in ("generators", "critics"):
            start = joined(begun, learner)
            moved, expected = joined(state, learner) - start, joined(alone, learner) - start
            assert expected.norm() > 0.001
            assert (moved - expected).norm() < 1e-4 * expected.norm()
        torch.testing.assert_close(state["algorithm"], alone["algorithm"], rtol=1e-4, atol=1e-5)


def joined(state: dict[str, Any], learner: str) -> torch.Tensor:
    return torch.cat([weights.flatten().double() for weights in state["learners"][learner]["module"].values()])


def test_the_critics_gradient_is_that_of_the_joined_batch(two_stains: Dataset, launch: Launch, tmp_path: Path) -> None:
    """One step of plain descent at rate 1: what the weights lost is the gradient, the last layer's bias included."""
    for processes in (1, 2):
        done = launch(
            "train_stain_gan",
            f"shards={two_stains.root}",
            f"run=run-{processes}",
            *TINY,
            DEPTH,
            "train.iterations_per_epoch=1",
            "model.critic_steps=1",
            "model.critic_optimizer.name=sgd",
            "model.critic_optimizer.momentum=0.0",
            "model.critic_optimizer.learning_rate=1.0",
            processes=processes,
        )
        assert done.returncode == 0, done.stderr
    one, two = (final_state(tmp_path / f"run-{n}")["learners"]["critics"]["module"] for n in (1, 2))
    assert any(name.endswith("bias") for name in one)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-7)


def test_a_killed_run_goes_on_to_the_same_bits_pools_included(
    two_stains: Dataset, launch: Launch, start: Start, tmp_path: Path
) -> None:
    arguments = [
        f"shards={two_stains.root}",
        "model=cyclegan",
        *TINY,
        *ALGORITHMS["cyclegan"],
        "train.epochs=3",
        "train.checkpoint_every=2",
        "model.generator_optimizer.average_decay=0.9",
    ]
    assert launch("train_stain_gan", *arguments, "run=undisturbed").returncode == 0
    run = tmp_path / "killed"

    def at_step(step: int) -> bool:
        return any(record["step"] >= step for record in read_records(run))

    kill_when(start("train_stain_gan", *arguments, "run=killed"), lambda: at_step(3))
    kill_when(start("train_stain_gan", *arguments, "run=killed"), lambda: at_step(7))
    finished = launch("train_stain_gan", *arguments, "run=killed")
    assert finished.returncode == 0, finished.stderr
    expected, found = final_state(tmp_path / "undisturbed"), final_state(run)
    assert len(expected["algorithm"]["a"]["images"]) == 4
    for name in ("learners", "algorithm", "progress"):
        assert_same_bits(found[name], expected[name])
    steps = [(record["kind"], record["step"]) for record in read_records(run)]
    assert len(steps) == len(set(steps))


def assert_same_bits(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same_bits(found[name], value)
    elif isinstance(expected, list | tuple):
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def test_a_run_writes_sheets_losses_and_pulls_and_a_student_learns_from_it(
    two_stains: Dataset, launch: Launch, tmp_path: Path
) -> None:
    run = tmp_path / "teacher"
    arguments = [f"shards={two_stains.root}", *TINY, DEPTH]
    assert launch("train_stain_gan", *arguments, "run=teacher").returncode == 0
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    named = {"critic", "penalty", "adversarial", "cycle", "identity", "gradient_norm/critics"}
    named |= {"detail/pull_adversarial", "detail/pull_cycle", "detail/pull_identity"}
    named |= {f"detail/{name}_{domain}" for name in ("critic", "adversarial") for domain in ("a", "b")}
    assert all(named <= record.keys() for record in steps)
    for name in ("critic", "adversarial"):  # each network's own part of the sum (figure 40)
        parts = [sum(record[f"detail/{name}_{domain}"] for domain in ("a", "b")) for record in steps]
        assert parts == pytest.approx([record[name] for record in steps], rel=1e-4)
        assert all(record[f"detail/{name}_a"] != record[f"detail/{name}_b"] for record in steps)
    assert "Figure 40: the loss of each network" in (run / "report.html").read_text()
    sheets = sorted(path.name for path in (run / "samples").iterdir())
    assert sheets == ["step-000000003-giemsa-to-violet.png", "step-000000003-violet-to-giemsa.png"]
    student = ["model=stain_student", "model.options.teacher=teacher", "model.generator.width=8", "train.epochs=20"]
    done = launch("train_stain_gan", f"shards={two_stains.root}", *TINY, *student, "run=student")
    assert done.returncode == 0, done.stderr
    lessons = [record["loss"] for record in read_records(tmp_path / "student") if record["kind"] == "step"]
    assert lessons[-1] < 0.5 * lessons[0]
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        assert load_stain_model(tmp_path / "student").to_a(images).shape == images.shape
    score = launch("evaluate", "run=student")
    assert score.returncode == 2
    assert "give features=RUN" in score.stderr


def test_scores_know_the_truth_and_name_their_features(two_stains: Dataset, launch: Launch, tmp_path: Path) -> None:
    """A run that has learned nothing yet is the identity: before and after are then the same image."""
    resting = [f"model.{learner}_optimizer.learning_rate=1e-12" for learner in ("generator", "critic")]
    resting.append("model.generator.start=identity")
    assert launch("train_stain_gan", f"shards={two_stains.root}", "run=run", *TINY, DEPTH, *resting).returncode == 0
    classifier = ["model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=1"]
    arguments = ["train_classifier", f"shards={two_stains.root}", "run=judge", "train.global_batch=12", *classifier]
    assert launch(*arguments).returncode == 0
    done = launch("evaluate", "run=run", "features=judge")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run/evaluation/metrics.json").read_text())
    scores = record["directions"]["violet_as_giemsa"]
    assert scores["count"] == len(two_stains.samples(splits=["test"], domains=["violet"]))
    assert all(name.endswith("]") and "[classifier senet_tiny_ge" in name for name in scores["generated"]["scores"])
    assert scores["truth_ciede2000_before"]["mean"] > 5
    for name in ("psnr", "ssim", "ciede2000"):
        before, after = (scores[f"truth_{name}_{when}"]["mean"] for when in ("before", "after"))
        assert after == pytest.approx(before, rel=0.02)
    assert scores["structure"]["mean"] > 0.99
    report = (tmp_path / "run/report.html").read_text()
    assert report.count("data:image/png;base64") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b=purple"], "no domain 'purple' here; use one of giemsa, violet"),
        (["a=violet"], "name two different domains"),
        (["data.image_size=36"], "each side must be a multiple of 8"),
        (["model=stain_student"], "needs model.options.teacher=RUN"),
        (["folds={violet: [7]}"], "no fold 7 here"),
    ],
)
def test_a_mistake_is_one_line(two_stains: Dataset, launch: Launch, arguments: list[str], message: str) -> None:
    done = launch("train_stain_gan", f"shards={two_stains.root}", "run=run", *TINY, DEPTH, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_one_domain_only_is_one_line(tiny_dataset: Dataset, launch: Launch, two_stains: Dataset) -> None:
    domains = set(two_stains.samples()["domain"])
    assert len(domains) == 2
    one = launch(
        "train_stain_gan", f"shards={two_stains.root}", "run=run", *TINY, DEPTH, "data.cell_types=[neutrophil]"
    )
    assert one.returncode == 2
    assert "no cell type has training images in both giemsa and violet" in one.stderr
