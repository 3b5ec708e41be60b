"""If these fail, a few-shot run on more processes or after a power cut is another run, or makes no cells."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages
from data_pipeline.stream.stream import Topology
from launchers.console import read_config
from tests.conftest import TINY_TYPES, Launch, Start
from tests.generated_images import NoiseSampler
from tests.trainer.test_stain_training import assert_same_bits, final_state
from tests.trainer.test_training import kill_when
from trainer.loop.log import read_records
from trainer.runs.provenance import learned_by_run
from trainer.runs.training import train as train_run
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.few_shot.data import choose_data
from trainer.tasks.few_shot.load import load_few_shot_model
from trainer.tasks.generation.synthesis import synthesize
from trainer.tasks.generation.synthesis_config import SynthesizeConfig

TINY = (
    "rare_types=[lymphocyte]",
    "shots=3",
    "sheet_columns=3",
    "data.image_size=32",
    "data.threads=1",
    "train.global_batch=3",
    "train.iterations_per_epoch=2",
    "train.epochs=1",
    "train.log_every=1",
    "model.generator.width=2",
    "model.generator.latent_size=6",
    "model.encoder.width=2",
    "model.encoder.feature_size=4",
    "model.discriminator.width=2",
    "model.inner.rounds=2",
    "adaptation.images=42",
)
# Rounds of three moves, 9 images, for tests of the loops around them.
SHORT = ("model.inner.discriminator_steps=1", "model.inner.generator_steps=2")
MODELS = {
    "few_shot_meta": {"discriminator", "adversarial", "encoder", "mode_seeking"},
    "few_shot_meta_thesis": {"discriminator", "adversarial", "encoder", "mode_seeking"},
    "few_shot_meta_thesis model.options.adversarial=printed": {"discriminator", "adversarial"},
    "few_shot_projected model.options.weights=null": {"discriminator", "adversarial", "encoder", "perceptual"},
    "figr": {"discriminator", "penalty", "adversarial"},
    "fast_gan": {"discriminator", "reconstruction", "adversarial"},
    "diff_augment": {"discriminator", "adversarial"},
    "mine_gan": {"discriminator", "penalty", "adversarial"},
}


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_to_make_cells_of_a_rare_type(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, model: str
) -> None:
    chosen = f"model={model}".split()
    done = launch("train_few_shot_gan", f"shards={tiny_dataset.root}", "run=run", *chosen, *TINY)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    learns_before = model.startswith(("few_shot_meta", "few_shot_projected", "figr", "mine_gan"))
    steps = [record for record in read_records(run) if record["kind"] == "step"]
    assert len(steps) == (2 if learns_before else 0)
    rounds = [record for record in read_records(run / "adapted/lymphocyte") if record["kind"] == "step"]
    assert len(rounds) == (2 if model.startswith("few_shot_meta") else 7)  # the same 42 images for each
    assert rounds[-1]["images"] == 42
    assert all(MODELS[model] <= record.keys() for record in steps + rounds)
    sheets = {path.name for path in (run / "samples").iterdir()}
    assert f"lymphocyte-round-{len(rounds):09d}.png" in sheets
    assert "lymphocyte-round-000000000.png" in sheets
    assert ("lymphocyte-step-000000000.png" in sheets) == learns_before  # figures 48-50 begin before the training
    assert ("lymphocyte-step-000000002.png" in sheets) == learns_before

    learned = LearnedImages.load(run / FILE)
    shown = TINY_TYPES if learns_before else ["lymphocyte"]
    trained = set(learned.table["id"][learned.table["role"] == "trained"])
    assert trained == set(tiny_dataset.samples(splits=["train"], cell_types=shown)["id"])
    written = (run / FILE).read_bytes()
    (run / FILE).unlink()
    assert learned_by_run(run).to_bytes() == written, "a run of before gives another table than one of now"

    sampler = load_few_shot_model(run)
    assert sampler.cell_types == ("lymphocyte",)
    assert sampler.domain == "giemsa"
    made, latents = sampler.draw("lymphocyte", 3, np.arange(20))
    assert made.shape == (20, 3, 32, 32)
    assert made.abs().max() <= 1
    assert latents.shape == (20, sampler.latent_size)
    some, its_latents = load_few_shot_model(run).draw("lymphocyte", 3, np.array([17, 4]))
    assert torch.equal(its_latents, latents[[17, 4]])
    assert torch.equal(some, made[[17, 4]])  # whatever else is drawn with it
    assert not torch.equal(sampler.draw("lymphocyte", 4, np.arange(20))[1], latents)
    assert len(sampler.draw("lymphocyte", 3, np.arange(0))[0]) == 0
    assert made.std(dim=0).max() > 0
    told = sampler.describe()
    assert (told["name"], told["dataset_hash"]) == (model.split()[0], tiny_dataset.content_hash)
    with pytest.raises(UserError, match=r"no images of 'basophil' from this run: choose from lymphocyte"):
        sampler.draw("basophil", 0, np.arange(1))


def test_two_processes_meta_train_as_one(tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Two episodes for each outer step, one in each process or both in one; then two types, one to each process."""
    plain = ["name=sgd", "momentum=0.0", "learning_rate=0.5", "schedule=constant"]
    arguments = [
        f"shards={tiny_dataset.root}",
        *TINY,
        *SHORT,
        "rare_types=[basophil,lymphocyte]",
        "train.global_batch=6",
        *(f"model.optimizer.{setting}" for setting in plain),
        "model.rate_for_steps=null",
    ]
    for processes in (1, 2):
        done = launch("train_few_shot_gan", *arguments, f"run=run-{processes}", processes=processes)
        assert done.returncode == 0, done.stderr
    alone, together = (final_state(tmp_path / f"run-{processes}")["learners"] for processes in (1, 2))
    for learner in ("encoder", "generator", "discriminator"):
        torch.testing.assert_close(together[learner]["module"], alone[learner]["module"], rtol=1e-4, atol=1e-6)
    for cell_type in ("basophil", "lymphocyte"):
        one, two = (final_state(tmp_path / f"run-{processes}/adapted/{cell_type}") for processes in (1, 2))
        torch.testing.assert_close(two["algorithm"]["features"], one["algorithm"]["features"], rtol=1e-2, atol=1e-3)


def test_more_processes_share_out_the_seeds_of_one_type_and_make_the_same_images(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """One rare type on 1, 2 and 4 processes, after one and the same training on the rich types."""
    twelve = ["rare_types=[lymphocyte]", "train.global_batch=12", "train.iterations_per_epoch=1"]
    arguments = [f"shards={tiny_dataset.root}", *TINY, *SHORT, *twelve]
    assert launch("train_few_shot_gan", *arguments, "run=one").returncode == 0
    first = load_few_shot_model(tmp_path / "one").draw("lymphocyte", 3, np.arange(8))
    drawn = []
    for processes in (1, 2, 4):
        run = Path(shutil.copytree(tmp_path / "one", tmp_path / f"run-{processes}"))
        shutil.rmtree(run / "adapted")
        more = (*arguments, f"run={run.name}", "adaptation.seeds=4")
        done = launch("train_few_shot_gan", *more, processes=processes)
        assert done.returncode == 0, done.stderr
        assert len(list((run / "adapted").iterdir())) == 4
        drawn.append(load_few_shot_model(run).draw("lymphocyte", 3, np.arange(8)))
    for images, latents in drawn[1:]:
        assert torch.equal(images, drawn[0][0])
        assert torch.equal(latents, drawn[0][1])
    # The first seed's are those of a run with one; the others have learned something else.
    assert torch.equal(drawn[0][0][::4], first[0][::4])
    assert not any(torch.equal(image, other) for image, other in zip(drawn[0][0][1:4], first[0][1:4], strict=True))
    some = load_few_shot_model(tmp_path / "run-4").draw("lymphocyte", 3, np.array([6, 1]))[0]
    assert torch.equal(some, drawn[0][0][[6, 1]])


def test_a_killed_run_goes_on_to_the_same_bits(
    tiny_dataset: Dataset, launch: Launch, start: Start, tmp_path: Path
) -> None:
    """Killed once in the outer loop and once in the adaptation."""
    arguments = [
        f"shards={tiny_dataset.root}",
        *TINY,
        *SHORT,
        "train.epochs=2",
        "train.checkpoint_every=1",
        "adaptation.images=108",
    ]
    assert launch("train_few_shot_gan", *arguments, "run=undisturbed").returncode == 0
    run = tmp_path / "killed"

    def at_step(folder: Path, step: int) -> bool:
        return any(record["step"] >= step for record in read_records(folder))

    kill_when(start("train_few_shot_gan", *arguments, "run=killed"), lambda: at_step(run, 3))
    kill_when(start("train_few_shot_gan", *arguments, "run=killed"), lambda: at_step(run / "adapted/lymphocyte", 3))
    with pytest.raises(UserError, match="the adaptation to lymphocyte is not finished"):
        load_few_shot_model(run)
    finished = launch("train_few_shot_gan", *arguments, "run=killed")
    assert finished.returncode == 0, finished.stderr
    assert_same_bits(final_state(run)["learners"], final_state(tmp_path / "undisturbed")["learners"])
    expected = final_state(tmp_path / "undisturbed/adapted/lymphocyte")
    found = final_state(run / "adapted/lymphocyte")
    for name in ("learners", "algorithm", "progress"):
        assert_same_bits(found[name], expected[name])
    records = [(record["kind"], record["step"]) for record in read_records(run / "adapted/lymphocyte")]
    assert [step for kind, step in records if kind == "step"] == list(range(1, 13))
    assert len(records) == len(set(records))


def test_without_meta_training_the_same_network_is_adapted(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    arguments = [f"shards={tiny_dataset.root}", "run=run", *TINY, *SHORT, "model.meta=false"]
    assert launch("train_few_shot_gan", *arguments).returncode == 0
    run = tmp_path / "run"
    assert not (run / "checkpoints").exists()
    before = final_state(run / "adapted/lymphocyte")
    done = launch("train_few_shot_gan", *arguments, "model.inner.learning_rate=0.001")
    assert done.returncode == 2
    assert "checkpoint of another run (model.inner.learning_rate was 0.0002, is now 0.001)" in done.stderr
    assert "or delete run/adapted/lymphocyte to adapt anew" in done.stderr
    assert load_few_shot_model(run)  # its config.yaml is still its own
    shutil.rmtree(run / "adapted")
    assert launch("train_few_shot_gan", *arguments).returncode == 0
    assert_same_bits(final_state(run / "adapted/lymphocyte")["learners"], before["learners"])


def test_another_type_is_adapted_to_without_training_anew(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """The rich types stay; what is adapted to and how much are free until it is done."""
    arguments = [f"shards={tiny_dataset.root}", "run=run", *TINY, *SHORT, "rich_types=[eosinophil]"]
    assert launch("train_few_shot_gan", *arguments).returncode == 0
    (checkpoint,) = (tmp_path / "run/checkpoints").glob("step-000000002-*.pt")
    written = checkpoint.stat().st_mtime_ns
    done = launch("train_few_shot_gan", *arguments, "rare_types=[basophil,lymphocyte]")
    assert done.returncode == 0, done.stderr
    assert checkpoint.stat().st_mtime_ns == written
    assert load_few_shot_model(tmp_path / "run").cell_types == ("basophil", "lymphocyte")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rare_types=null"], "no cell type beside the rare ones (basophil, eosinophil, lymphocyte)"),
        (["data.image_size=48"], "give data.image_size a power of two of at least 32"),
        (["train.global_batch=7"], "train.global_batch=7: 1 processes run whole episodes of shots=3 images each"),
        (["model=fast_gan", "model.meta=false"], "model.meta=false: fast_gan is not meta-trained"),
    ],
)
def test_a_mistake_is_one_line(
    tiny_dataset: Dataset, launch: Launch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = launch("train_few_shot_gan", f"shards={tiny_dataset.root}", "run=run", *TINY, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["origins=[painted]"], "give some of real, normalized, synthetic"),
        (["adaptation.images=0"], "adaptation.images=0: must be at least 1"),
        (["shots=0"], "shots=0: must be at least 1"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_config(FewShotRunConfig, "train_few_shot_gan", ["shards=data", "run=run", *arguments])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"rare": ["platelet"]}, "rare_types names platelet, which has no training image there"),
        ({"rare": ["lymphozyte"]}, "rare_types: no cell type 'lymphozyte'"),
        ({"rare": ["lymphocyte"], "rich": ["lymphocyte"]}, "lymphocyte is among rich_types and rare_types"),
        ({"rare": ["lymphocyte"], "rich": ["basophil"], "origins": ["synthetic"]}, "rich_types names basophil"),
        ({"rare": None, "rich": ["basophil", "eosinophil", "lymphocyte"]}, "no cell type has fewer than 100"),
    ],
)
def test_types_without_images_are_refused(tiny_dataset: Dataset, chosen: dict[str, Any], message: str) -> None:
    choice = {"domains": None, "cell_types": None, "rich": None, "origins": ["real"]} | chosen
    with pytest.raises(UserError, match=message):
        choose_data(tiny_dataset, **choice)


def test_rare_types_are_those_with_few_images_and_rich_ones_the_others(tiny_dataset: Dataset) -> None:
    every = choose_data(
        tiny_dataset, domains=None, cell_types=None, rich=["eosinophil"], rare=None, origins=["real", "synthetic"]
    )
    assert (every.rich, every.rare) == (("eosinophil",), ("basophil", "lymphocyte"))
    samples = tiny_dataset.samples(splits=["train"])
    assert set(every.rich_ids) == set(samples["id"][samples["cell_type"] == "eosinophil"])
    assert set(every.rare_ids) == set(samples["id"][samples["cell_type"] != "eosinophil"])


@pytest.mark.parametrize("model", ["few_shot_meta", "few_shot_meta_thesis", "figr"])
def test_meta_training_is_the_thesiss(model: str) -> None:
    """Section 3.6 and table 22: 20,000 episodes, an outer Adam of 1e-5 that is constant."""
    config = read_config(FewShotRunConfig, "train_few_shot_gan", ["shards=data", "run=run", f"model={model}"])
    steps = config.train.epochs * (config.train.iterations_per_epoch or 0)
    assert steps == 20_000
    optimizer = config.model.scaled_optimizer(steps)
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ("adam", 1e-5, "constant")
    assert (optimizer.weight_decay, optimizer.warmup, optimizer.clip_norm) == (0.0, 0.0, None)


def test_an_episode_is_whole_in_one_process(tiny_dataset: Dataset, launch: Launch) -> None:
    arguments: list[Any] = [f"shards={tiny_dataset.root}", "run=run", *TINY]
    done = launch("train_few_shot_gan", *arguments, processes=2)
    assert done.returncode == 2
    assert "give a multiple of 6" in done.stderr


def test_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("model: {algorithm: cyclegan}\nkind: stain\n")
    with pytest.raises(UserError, match=r"not a run of train_few_shot_gan\.py"):
        load_few_shot_model(tmp_path)


def test_a_variation_lies_near_its_parent_and_the_bank_names_it(tiny_dataset: Dataset, tmp_path: Path) -> None:
    arguments = [f"shards={tiny_dataset.root}", f"run={tmp_path / 'run'}", *TINY, *SHORT, "model.meta=false"]
    run = train_run(read_config(FewShotRunConfig, "train_few_shot_gan", arguments), Topology())
    sampler = load_few_shot_model(run)
    ids = tiny_dataset.samples(splits=["train"], cell_types=["lymphocyte"])["id"].tolist()
    assert sampler.parents == {"lymphocyte": tuple(ids)}
    indices, latents = np.arange(2 * len(ids)), {}
    for strength in (0.0, 0.1, 1.0):
        sampler.strength = strength
        images, latents[strength] = sampler.draw("lymphocyte", 0, indices)
        some, _ = sampler.draw("lymphocyte", 0, indices[3:5])
        assert torch.equal(some, images[3:5]), "an image depends on its index alone"
    assert torch.equal(latents[0.0][: len(ids)], latents[0.0][len(ids) :]), "of strength 0, the same reconstruction"
    moved = [(latents[strength] - latents[0.0]).norm() for strength in (0.1, 1.0)]
    torch.testing.assert_close(10 * moved[0], moved[1])
    config = SynthesizeConfig(str(run), str(tmp_path / "bank"), count=len(ids) + 1, variations=True)
    bank = synthesize(load_few_shot_model(run), config, Topology(), LearnedImages())
    assert [bank.parent(row) for row in range(len(bank))] == [*ids, ids[0]]
    other = dataclasses.replace(config, strength=0.5)
    with pytest.raises(UserError, match="holds images of another generator"):
        synthesize(load_few_shot_model(run), other, Topology(), LearnedImages())


def test_only_a_run_with_an_encoder_makes_variations(tmp_path: Path) -> None:
    config = SynthesizeConfig("run", str(tmp_path / "bank"), count=1, variations=True)
    with pytest.raises(UserError, match="encodes no training image of lymphocyte"):
        synthesize(NoiseSampler(("lymphocyte",)), config, Topology(), LearnedImages())
