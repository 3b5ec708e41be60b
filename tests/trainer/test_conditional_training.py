"""If these fail, a run that makes cells is another run on more processes or after a kill, or makes other cells."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages
from data_pipeline.randomness import derive_key
from data_pipeline.stream.config import StreamConfig
from data_pipeline.stream.stream import Stream, Topology
from launchers.console import read_config
from tests.conftest import TINY_TYPES, Launch
from tests.trainer.test_stain_training import assert_same_bits, final_state, joined
from trainer.loop.checkpoint import CheckpointStore
from trainer.loop.fit import _Loop
from trainer.loop.log import read_records
from trainer.runs.configuration import typed
from trainer.runs.provenance import learned_by_run
from trainer.runs.registry import algorithm_class, algorithm_names
from trainer.runs.training import train as train_run
from trainer.runs.validation_distance import FEWEST, ValidationDistance
from trainer.tasks.conditional.config import ConditionalModelConfig, ConditionalRunConfig
from trainer.tasks.conditional.load import load_conditional_model
from trainer.tasks.generation.synthesis import ImageSampler

ALGORITHMS = algorithm_names("conditional")
TINY = (
    "data.image_size=16",
    "data.threads=1",
    "train.global_batch=7",
    "train.iterations_per_epoch=2",
    "train.epochs=1",
    "train.log_every=1",
    "samples_per_type=2",
    "model.generator.width=4",
    "model.generator.latent_size=6",
    "model.generator.blocks=[1,1,1]",
    "model.critic.width=4",
    "model.critic.hidden=8",
    "model.critic.blocks=[1,1,1]",
    "model.classifier.width=4",
    "model.classifier.hidden=8",
    "model.classifier.blocks=[1,1,1]",
)


def named(model: str) -> list[str]:
    """model=, and nothing to be downloaded."""
    return [f"model={model}", *(["model.options.weights=null"] if model == "projected_gan" else [])]


def train(dataset: Dataset, run: Path, *arguments: str) -> Path:
    """What the launcher does, in this process."""
    given = [f"shards={dataset.root}", f"run={run}", *TINY, *arguments]
    return train_run(read_config(ConditionalRunConfig, "train_conditional_gan", given), Topology())


@pytest.mark.parametrize("model", ALGORITHMS)
def test_a_run_of_each_model_makes_cells_of_each_type(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, model: str
) -> None:
    done = launch("train_conditional_gan", f"shards={tiny_dataset.root}", "run=run", *named(model), *TINY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "run" / "report.html")
    steps = [record for record in read_records(tmp_path / "run") if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [1, 2]
    assert {"critic", "adversarial", "gradient_norm/generator", "gradient_norm/critic"} <= steps[0].keys()
    (sheet,) = (tmp_path / "run/samples").iterdir()
    assert sheet.name == "step-000000002.png"
    # Three rows, a column of names, two real and two generated columns of 16 pixels, six times as large.
    with Image.open(sheet) as picture:
        assert picture.size == (130 + 4 * 100, 18 + 3 * 100)
    learned = LearnedImages.load(tmp_path / "run" / FILE)
    trained = learned.table["role"] == "trained"
    assert set(learned.table["id"][trained]) == set(tiny_dataset.samples(splits=["train"])["id"])
    held = set(tiny_dataset.samples(splits=["validation"])["id"])
    assert set(learned.table["id"][~trained]) == (held if len(held) >= FEWEST else set())
    written = (tmp_path / "run" / FILE).read_bytes()
    (tmp_path / "run" / FILE).unlink()
    assert learned_by_run(tmp_path / "run").to_bytes() == written, "a run of before gives another table than one of now"
    sampler: ImageSampler = load_conditional_model(tmp_path / "run")
    domain = tiny_dataset.samples(splits=["train"])["domain"].mode()[0]
    assert (sampler.cell_types, sampler.domain, sampler.image_size) == (TINY_TYPES, domain, 16)
    drawn = [sampler.draw(name, 3, np.arange(2))[0] for name in TINY_TYPES]
    assert all(images.shape == (2, 3, 16, 16) and images.abs().max() <= 1 for images in drawn)
    assert not torch.equal(drawn[0], drawn[1])
    assert sampler.describe()["name"] == model
    assert sampler.describe()["dataset_hash"] == tiny_dataset.content_hash


def test_an_image_follows_from_its_seed_type_and_index_alone(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """It does not depend on its neighbours in the call, and is made with the averaged weights."""
    sampler = load_conditional_model(train(tiny_dataset, tmp_path / "run", "model=cgan"))
    images, latents = sampler.draw("lymphocyte", 5, np.arange(21))
    for indices in ([20], [3, 11, 3], [19, 18, 17, 2, 1, 0, 7, 8, 9, 10]):
        some, their_latents = sampler.draw("lymphocyte", 5, np.array(indices))
        assert torch.equal(some, images[indices])
        assert torch.equal(their_latents, latents[indices])
    assert len(images.flatten(1).unique(dim=0)) == 21
    sampler.truncation = 0.5
    assert torch.equal(sampler.draw("lymphocyte", 5, np.arange(21))[1], latents / 2)
    sampler.truncation = 1.0
    assert not torch.equal(sampler.draw("lymphocyte", 6, np.arange(1))[1], latents[:1])
    assert not torch.equal(sampler.draw("basophil", 5, np.arange(1))[1], latents[:1])
    assert sampler.draw("basophil", 5, np.arange(0))[0].shape == (0, 3, 16, 16)
    with pytest.raises(UserError, match="choose from basophil, eosinophil, lymphocyte"):
        sampler.draw("platelet", 5, np.arange(1))
    state = final_state(tmp_path / "run")["learners"]["generator"]
    assert not torch.equal(state["average"]["linear.weight"], state["module"]["linear.weight"])
    expected = sampler._generator.state_dict()
    assert_same_bits(expected, state["average"])


@pytest.mark.parametrize("model", ALGORITHMS)
def test_two_processes_play_the_algorithm_of_one(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, model: str
) -> None:
    """One step of plain descent; slices of three and four images; batch norms, which mix a slice's images, are off."""
    arguments = ["train.iterations_per_epoch=1", "model.generator.norm=none", "model.critic.norm=none"]
    arguments += [
        f"model.{learner}_optimizer.{setting}"
        for learner in ("generator", "critic", "classifier")
        for setting in ("name=sgd", "momentum=0.0", "learning_rate=0.01", "schedule=constant", "clip_norm=null")
    ]
    alone = final_state(train(tiny_dataset, tmp_path / "alone", *named(model), *arguments))
    shared = {"two": [], "micro": ["train.micro_batch=2"]} if model == "c_wgan_gp" else {"two": []}
    for name, more in shared.items():
        command = [f"shards={tiny_dataset.root}", f"run={name}", *named(model), *TINY, *arguments, *more]
        done = launch("train_conditional_gan", *command, processes=2)
        assert done.returncode == 0, done.stderr
    assert len(alone["learners"]) == (3 if model.startswith("c_wgan_gp") else 2)
    start = first_weights(tmp_path / "alone")
    for name in shared:
        state = final_state(tmp_path / name)
        for learner, begun in start.items():
            moved, expected = joined(state, learner) - begun, joined(alone, learner) - begun
            assert expected.norm() > 0.001
            assert (moved - expected).norm() < 1e-4 * expected.norm(), f"{name}: {learner}"
        torch.testing.assert_close(state["algorithm"], alone["algorithm"])


def first_weights(run: Path) -> dict[str, torch.Tensor]:
    """The weights that a run began with."""
    content = yaml.safe_load((run / "config.yaml").read_text())
    model = typed(ConditionalModelConfig, content["model"], "config.yaml")
    torch.manual_seed(derive_key(content["seed"], "weights"))
    algorithm = algorithm_class("conditional", model.algorithm)
    networks = algorithm.build_networks(model, content["data"]["image_size"], len(content["cell_types"]))
    return {
        name: torch.cat([weights.flatten().double() for weights in network.state_dict().values()])
        for name, network in networks.items()
    }


@pytest.mark.parametrize("model", ["c_wgan_gp", "info_gan"])
def test_a_run_taken_up_again_ends_with_the_same_bits(tiny_dataset: Dataset, tmp_path: Path, model: str) -> None:
    """From the checkpoint in the middle of an epoch, as a killed run would; InfoGAN's table of codes included."""
    arguments = [f"model={model}", "train.epochs=3", "train.checkpoint_every=1", "train.keep_checkpoints=9"]
    run = train(tiny_dataset, tmp_path / "run", *arguments)
    expected = final_state(run)
    kept = [file for file in (run / "checkpoints").iterdir() if not file.name.startswith("step-000000003-")]
    assert len([file for file in kept if file.name.startswith("step-")]) == 5
    for file in kept:
        file.unlink()
    found = final_state(train(tiny_dataset, run, *arguments))
    assert found["progress"]["step"] == 6
    for name in ("learners", "algorithm", "progress"):
        assert_same_bits(found[name], expected[name])
    if model == "info_gan":
        assert found["algorithm"]["answers"].sum() > 7


def test_an_epoch_shows_every_model_as_many_real_images(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Five critic's moves or one, a step takes as many batches: rivals are compared on equal terms."""
    images = len(tiny_dataset.samples(splits=["train"]))
    for model in ("c_wgan_gp", "cgan"):
        settings = ["train.iterations_per_epoch=null", "train.global_batch=3"]
        run = train(tiny_dataset, tmp_path / model, f"model={model}", *settings)
        seen = max(record.get("images", 0) for record in read_records(run))
        assert images - 15 < seen <= images


def test_the_settings_of_a_launch_are_those_that_the_thesis_names() -> None:
    config = read_config(ConditionalRunConfig, "train_conditional_gan", ["shards=x", "run=y"])
    assert config.model == ConditionalModelConfig()
    for optimizer in (
        config.model.generator_optimizer,
        config.model.critic_optimizer,
        config.model.classifier_optimizer,
    ):
        assert (optimizer.name, optimizer.learning_rate, optimizer.betas) == ("adam", 2e-4, [0.0, 0.9])
        assert (optimizer.weight_decay, optimizer.warmup, optimizer.clip_norm) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.image_size=30"], "data.image_size=30: images of 30 pixels: the side must be a multiple of 4"),
        (["data.cell_types=[basophil]"], "needs two types at least"),
        (["data.cell_types=[basophil,platelet]"], "no training image of platelet"),
        (["data.cell_types=[basophil,plate]"], "no cell type 'plate' here"),
        (["data.domains=[purple]"], "no domain 'purple' here"),
        (["model.critic.norm=batch"], "gradient penalty of c_wgan_gp"),
        (["model.critic_steps=0"], "model.critic_steps=0: must be at least 1"),
        (["model.options.penalty=-1"], "model.options: penalty=-1.0: must be at least 0"),
        (["model=projected_gan", "model.options.weights=none.pt"], "model.options.weights=none.pt: no such file"),
        (["samples_per_type=0"], "samples_per_type=0: must be at least 1"),
        (["data.order=windowed"], "needs data.order=global"),
    ],
)
def test_a_mistake_is_one_line(tiny_dataset: Dataset, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        train(tiny_dataset, tmp_path / "run", *arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_killed_at_its_last_checkpoint_leaves_no_old_one(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Nothing is left to be trained then, and so no later checkpoint that would drop the oldest."""
    arguments = ["model=dcgan", "train.epochs=2", "train.checkpoint_every=1"]
    run = train(tiny_dataset, tmp_path / "run", *arguments, "train.keep_checkpoints=9")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert [name.split("-")[0] for name in names] == ["best", *["step"] * 4]
    (run / "checkpoints/partial-1").write_bytes(b"half")
    train(tiny_dataset, run, *arguments, "train.keep_checkpoints=2")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [names[0], *names[3:]]


def test_a_wrong_run_is_refused_in_one_line(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    run = train(tiny_dataset, tmp_path / "run", "model=dcgan")
    changed = launch("train_conditional_gan", f"shards={tiny_dataset.root}", "run=run", "model=cgan", *TINY)
    assert changed.returncode == 2
    assert "checkpoint of another run" in changed.stderr.strip().splitlines()[-1]
    content: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    del content["checksum"]

    def refused(message: str, **changes: Any) -> None:
        gone = {name for name, value in changes.items() if value is None}
        kept = {name: value for name, value in (content | changes).items() if name not in gone}
        (run / "config.yaml").write_text(yaml.safe_dump(kept))
        with pytest.raises(UserError, match=message):
            load_conditional_model(run)

    refused("not a run of train_conditional_gan.py", kind=None)
    refused("damaged .'domain'.: train again", domain=None)
    wider = content["model"] | {"generator": content["model"]["generator"] | {"width": 5}}
    refused("checkpoint of another model", model=wider)
    for file in (run / "checkpoints").iterdir():
        file.unlink()
    refused("no checkpoint yet")


def scripted_distances(monkeypatch: pytest.MonkeyPatch, distances: list[float]) -> None:
    """Epoch after epoch the validation images are so far away."""
    left = iter(distances)

    def kernel(*_: Any, **__: Any) -> tuple[float, float]:
        return next(left), 0.0

    monkeypatch.setattr("trainer.runs.validation_distance.kernel_distance", kernel)


def test_images_come_from_the_epoch_nearest_to_validation_images_and_a_training_ends_there(
    tiny_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a run that was killed and resumed; else a night's training ends with its last, worse weights."""
    monkeypatch.setattr("trainer.runs.validation_distance.FEWEST", 2)
    arguments = ["model=c_wgan_gp", "train.epochs=9", "train.patience=2"]
    scripted_distances(monkeypatch, [0.5, 0.2, 0.4, 0.3])
    whole = train(tiny_dataset, tmp_path / "whole", *arguments)
    store = CheckpointStore(whole / "checkpoints")
    best, latest = store.best(), store.latest()
    assert best is not None
    assert latest is not None
    assert (best.step, latest.step) == (4, 8), "patience of two epochs after the second"
    assert load_conditional_model(whole).describe()["step"] == 4
    assert "Distance to validation images" in (whole / "report.html").read_text()
    scripted_distances(monkeypatch, [0.5, 0.2, math.inf])
    with monkeypatch.context() as killed:
        killed.setattr("trainer.loop.fit._Loop._save", fails_at(6))
        with pytest.raises(InterruptedError):
            train(tiny_dataset, tmp_path / "resumed", *arguments)
    scripted_distances(monkeypatch, [0.4, 0.3])
    resumed = CheckpointStore(train(tiny_dataset, tmp_path / "resumed", *arguments) / "checkpoints")
    assert [resumed.best().digest, resumed.latest().digest] == [best.digest, latest.digest]  # type: ignore[union-attr]
    assert (final_state(whole)["progress"]["best_epoch"], final_state(whole)["progress"]["best_score"]) == (1, -0.2)


def fails_at(step: int) -> Any:
    """A `_save` of the loop during which the process is killed at this step."""
    whole = _Loop._save

    def save(loop: Any, *, best: bool) -> None:
        if loop._progress.step == step:
            raise InterruptedError
        whole(loop, best=best)

    return save


def test_the_distance_is_of_validation_images_alone(tiny_dataset: Dataset) -> None:
    """To the validation images themselves it is least, and a classifier's agreement counts the types asked for."""
    data = StreamConfig(image_size=16, threads=1)
    distance = ValidationDistance(tiny_dataset, data, TINY_TYPES, None, Topology())
    held = tiny_dataset.samples(splits=["validation"], cell_types=TINY_TYPES, columns=["id", "cell_type"])
    assert distance.counts == held["cell_type"].value_counts().to_dict()

    def validation(cell_type: str, count: int) -> torch.Tensor:
        stream = Stream(
            tiny_dataset, data, splits=["validation"], cell_types=[cell_type], global_batch=count, training=False
        )
        return next(iter(stream.read())).images

    def noise(cell_type: str, count: int) -> torch.Tensor:
        return torch.rand(count, 3, 16, 16) * 2 - 1

    near, far = (distance._compare(make)["kernel_distance"] for make in (validation, noise))
    assert near < 0 < far


def test_an_augmented_critic_sees_changed_images_and_the_penalty_is_taken_there(
    tiny_dataset: Dataset, tmp_path: Path
) -> None:
    options = "model.options={augment: [colour, translation, cutout], penalty_share: 0.5}"
    plain, changed = (train(tiny_dataset, tmp_path / name, *more) for name, more in (("a", []), ("b", [options])))
    terms = [next(record for record in read_records(run) if record["kind"] == "step") for run in (plain, changed)]
    assert terms[0]["penalty"] != terms[1]["penalty"]
    assert joined(final_state(plain), "classifier").equal(joined(final_state(changed), "classifier"))
    with pytest.raises(UserError, match="augment=blur is none of colour"):
        train(tiny_dataset, tmp_path / "c", "model.options={augment: [blur]}")
