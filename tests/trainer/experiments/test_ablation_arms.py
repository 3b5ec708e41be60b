"""If these fail, an arm of the ablation takes away something else than it says, or trains what another arm has."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.banks.balance import training_counts
from data_pipeline.catalog import Dataset
from data_pipeline.cell_types import CELL_TYPES
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.phantoms.folders import STAINS, render_phantoms
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from launchers.console import read_config
from tests.conftest import TINY_TYPES, Launch
from tests.trainer import test_conditional_training, test_few_shot_training, test_stain_training
from trainer.experiments.ablation import AblationConfig, Arm, ablation_arms, choose_roles
from trainer.experiments.launches import StagePlanner
from trainer.experiments.resources import Resources
from trainer.experiments.stages import Stage, in_order
from trainer.runs.configuration import typed
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.few_shot.config import FewShotRunConfig
from trainer.tasks.generation.synthesis_config import SynthesizeConfig
from trainer.tasks.stain.config import StainRunConfig

# The last of three types is the rare one.
CONFIG = AblationConfig(rare_types=["lymphocyte"], per_type=60, conditional=["train.epochs=2"], few_shot=["shots=4"])
FILLING = ["train_conditional_gan", "synthesize", "balance", "train_few_shot_gan", "synthesize", "balance"]
PLANNER = StagePlanner(Path("sweep.yaml"), Resources(), in_store=False)
CLASSIFIER = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=1")
# Table 6 of the thesis, times 0.63.
THESIS_COUNTS = (771, 2229, 975, 1848, 3174, 16, 1627, 1956, 6769, 1474, 55, 9)


def arms_of(config: AblationConfig, shards: Path) -> dict[str, Arm]:
    return {arm.name: arm for arm in ablation_arms(config, shards, PLANNER)}


def stages_of(*arms: Arm) -> list[Stage]:
    return in_order(arm.dataset for arm in arms if isinstance(arm.dataset, Stage))


def of_launcher(stages: list[Stage], launcher: str) -> list[Stage]:
    return [stage for stage in stages if stage.launcher == launcher]


def few_shot_config(stage: Stage) -> FewShotRunConfig:
    return read_config(FewShotRunConfig, "train_few_shot_gan", stage.arguments)


def counted(**counts: int) -> dict[str, dict[str, int]]:
    return {name: {"real": counts.get(name.replace(" ", "_"), 0), "synthetic": 0} for name in CELL_TYPES}


def test_the_full_arm_is_the_thesis_from_raw_images_to_a_balanced_data_set(two_stains: Dataset) -> None:
    full = arms_of(CONFIG, two_stains.root)["full"]
    stages = stages_of(full)
    assert [stage.launcher for stage in stages] == ["train_stain_gan", "normalize_stains", *FILLING]
    stain, normalized, cells, moderate_bank, filled, few_shot, rare_bank, balanced = stages
    raw = two_stains.root
    assert [stage.inputs for stage in stages] == [
        {"shards": raw},
        {"shards": raw, "run": stain},
        {"shards": normalized},
        {"run": cells},
        {"shards": normalized, "banks": (moderate_bank,)},
        {"shards": filled},
        {"run": few_shot},
        {"shards": filled, "banks": (rare_bank,)},
    ]
    assert (full.dataset, full.overrides) == (balanced, ())
    config = read_config(StainRunConfig, "train_stain_gan", stain.arguments)
    assert (config.a, config.b) == ("giemsa", "violet")
    assert "data.cell_types=[basophil,eosinophil]" in cells.arguments
    assert "train.epochs=2" in cells.arguments
    learned = few_shot_config(few_shot)
    assert (learned.rich_types, learned.rare_types, learned.shots) == (["basophil", "eosinophil"], ["lymphocyte"], 4)
    counts = {name: count["real"] for name, count in training_counts(two_stains).items()}
    for bank, types in ((moderate_bank, ["basophil", "eosinophil"]), (rare_bank, ["lymphocyte"])):
        drawn = read_config(SynthesizeConfig, "synthesize", bank.arguments)
        assert drawn.cell_types == types
        assert drawn.count == 60 - min(counts[name] for name in types)
    assert balanced.arguments == filled.arguments == ("per_type=60",)


def test_each_other_arm_lacks_its_one_thing(two_stains: Dataset) -> None:
    arms = arms_of(CONFIG, two_stains.root)
    assert list(arms) == [
        "full",
        "without_ge",
        "without_normalization",
        "few_shot_only",
        "conditional_only",
        "original",
        "class_balanced",
    ]
    full = stages_of(arms["full"])

    assert arms["without_ge"].dataset == arms["full"].dataset
    without, whole = (
        read_config(ClassifierRunConfig, "train_classifier", arms[name].overrides).model
        for name in ("without_ge", "full")
    )
    assert dataclasses.replace(without, ge=True) == whole
    assert not without.ge

    unnormalized = stages_of(arms["without_normalization"])
    assert [stage.launcher for stage in unnormalized] == FILLING
    assert not set(unnormalized) & set(full)
    assert unnormalized[0].inputs == {"shards": two_stains.root}
    assert [stage.arguments for stage in unnormalized] == [stage.arguments for stage in full[2:]]

    few_shot = stages_of(arms["few_shot_only"])
    assert few_shot[:2] == full[:2]
    assert not of_launcher(few_shot, "train_conditional_gan")
    trainings = of_launcher(few_shot, "train_few_shot_gan")
    assert all(stage.inputs == {"shards": full[1]} for stage in trainings)
    learned = [few_shot_config(stage) for stage in trainings]
    # From whom, for whom: each rich type is left out once.
    assert [(config.rich_types, config.rare_types) for config in learned] == [
        (["basophil", "eosinophil"], ["lymphocyte"]),
        (["eosinophil"], ["basophil"]),
        (["basophil"], ["eosinophil"]),
    ]
    banks = of_launcher(few_shot, "synthesize")
    assert [bank.inputs["run"] for bank in banks] == trainings
    assert few_shot[-1].inputs == {"shards": full[1], "banks": tuple(banks)}

    conditional = stages_of(arms["conditional_only"])
    assert conditional[:2] == full[:2]
    assert [stage.launcher for stage in conditional[2:]] == FILLING[:3]
    assert "data.cell_types=[basophil,eosinophil,lymphocyte]" in conditional[2].arguments

    assert (arms["original"].dataset, arms["original"].overrides) == (two_stains.root, ())
    control = arms["class_balanced"]
    assert (control.dataset, control.overrides) == (two_stains.root, ("data.sampling=class_balanced",))


def test_what_arms_share_is_one_stage_and_what_they_do_not_has_a_name_of_its_own(two_stains: Dataset) -> None:
    arms = ablation_arms(CONFIG, two_stains.root, PLANNER)
    stages = stages_of(*arms)
    assert len(of_launcher(stages, "train_stain_gan")) == len(of_launcher(stages, "normalize_stains")) == 1
    assert len(stages) == 2 + 6 + 6 + 7 + 3
    assert len({stage.name for stage in stages}) == len(stages)


def test_folds_share_out_the_types_that_lack_images_and_learn_from_all_others() -> None:
    counts = counted(basophil=50, eosinophil=50, erythroblast=50, lymphocyte=50, neutrophil=90, smudge_cell=5)
    config = AblationConfig(rare_types=["smudge cell"], folds=3)
    roles = choose_roles(config, counts, Path("data"))
    assert roles.folds(3) == [("basophil", "lymphocyte"), ("eosinophil",), ("erythroblast",)]
    assert roles.folds(2) == [("basophil", "erythroblast"), ("eosinophil", "lymphocyte")]
    assert [fold for fold in roles.folds(9) if len(fold) != 1] == []
    assert "neutrophil" in roles.rich
    # One that has enough is learned from and not made.
    named = dataclasses.replace(config, moderate_types=["basophil", "neutrophil"])
    assert choose_roles(named, counts, Path("data")).lacking == {"basophil": 40, "smudge cell": 85}
    assert choose_roles(named, counts, Path("data")).folds(3) == [("basophil",)]


def test_by_count_the_thesis_data_give_the_types_of_the_thesis() -> None:
    counts = {name: {"real": count, "synthetic": 0} for name, count in zip(CELL_TYPES, THESIS_COUNTS, strict=True)}
    for per_type in (None, 4000):
        roles = choose_roles(AblationConfig(per_type=per_type), counts, Path("data"))
        assert roles.rare == ("monoblast", "promyelocyte", "smudge cell")
        assert set(CELL_TYPES) - {*roles.rare, *roles.moderate} == {"neutrophil"}
        assert roles.rich == (*roles.moderate[:7], "neutrophil", "platelet")
        assert roles.per_type == (per_type or 6769)
        assert roles.lacking["smudge cell"] == roles.per_type - 9


def test_only_what_follows_from_a_change_is_made_again(two_stains: Dataset) -> None:
    before = arms_of(CONFIG, two_stains.root)

    def kept(**changes: Any) -> list[str]:
        after = arms_of(dataclasses.replace(CONFIG, **changes), two_stains.root)
        there = set(stages_of(*before.values()))
        return [stage.launcher for stage in stages_of(after["full"]) if stage in there]

    start = ["train_stain_gan", "normalize_stains"]
    assert kept(few_shot=["shots=2"]) == [*start, *FILLING[:3]]
    assert kept(conditional=["train.epochs=3"]) == start
    assert kept(per_type=61) == [*start, FILLING[0]]
    assert kept(folds=2) == kept(conditional=["train.epochs=2", "data.threads=1"]) == [*start, *FILLING]
    # A default that is said is still the default.
    assert kept(conditional=["samples_per_type=4", "train.epochs=2"], generator_seeds=[0]) == [*start, *FILLING]
    assert kept(generator_seeds=[1]) == []
    assert kept(stain=["train.epochs=3"]) == kept(stain_to="violet", stain_from="giemsa") == []
    changed = arms_of(dataclasses.replace(CONFIG, stain=["train.epochs=3"]), two_stains.root)
    assert changed["without_normalization"].dataset == before["without_normalization"].dataset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rare_types": None}, "C-WGAN-GP needs two cell types at least, and has none"),
        ({"rare_types": ["platelet"]}, "ablation.rare_types names platelet, which has no training image"),
        ({"per_type": 1}, r"none of the rare types \(lymphocyte\) has fewer than per_type=1 training images"),
        ({"moderate_types": ["basophil"]}, "C-WGAN-GP needs two cell types at least, and has basophil"),
        ({"rich_types": ["basophil"]}, "no rich type beside basophil for few-shot generation to learn from"),
        (
            {"stain_to": "pink", "stain_from": "violet"},
            "no stain 'pink' here: name two of giemsa, violet as ablation.stain_to=",
        ),
    ],
)
def test_a_data_set_that_an_arm_cannot_be_made_of_is_refused_before_anything_runs(
    two_stains: Dataset, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        ablation_arms(dataclasses.replace(CONFIG, **changes), two_stains.root, PLANNER)
    assert "\n" not in str(refused.value)


def test_without_a_second_stain_or_a_rare_type_there_is_nothing_to_take_away(tmp_path: Path) -> None:
    table = render_phantoms(
        tmp_path / "raw", 4, stains=STAINS[:1], slides=4, size=16, workers=1, cell_types=TINY_TYPES, progress=False
    )
    build_dataset(tmp_path / "data", [SourceDeclaration("table", "phantom", table, "phantom")], progress=False)
    with pytest.raises(UserError, match=r"images of one stain only .* no stain normalisation to go without"):
        ablation_arms(CONFIG, tmp_path / "data", PLANNER)
    with pytest.raises(UserError, match="no cell type has fewer than 100 training images"):
        choose_roles(AblationConfig(), counted(basophil=100, eosinophil=150, lymphocyte=200), tmp_path)
    named = AblationConfig(moderate_types=["basophil", "eosinophil"], per_type=100)
    with pytest.raises(UserError, match=r"none of the types for C-WGAN-GP .* has fewer than per_type=100"):
        choose_roles(named, counted(basophil=100, eosinophil=150, monoblast=9), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "ablation.folds=1: must be at least 2"),
        ({"per_type": 0}, "ablation.per_type=0: must be at least 1, or null"),
        ({"stain_to": "giemsa"}, "ablation.stain_to=giemsa: name two stains"),
        ({"rich_types": ["basophile"]}, "ablation.rich_types=basophile: no cell type"),
        ({"rare_types": ["basophil"], "moderate_types": ["basophil"]}, "is among moderate_types too"),
        ({"stain": ["run=elsewhere"]}, "ablation.stain=run=elsewhere: run is for the ablation to set"),
        ({"conditional": ["data.cell_types=[basophil]"]}, "is for the ablation to set"),
        ({"few_shot": ["shots"]}, "ablation.few_shot=shots: write arguments as key=value"),
        ({"few_shots": []}, "few_shots"),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        typed(AblationConfig, values, "sweep.yaml")
    assert str(refused.value).startswith("sweep.yaml: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.fixture
def scarce_type(tmp_path: Path) -> Path:
    """Four types in two stains, 32 px: three of some hundred training images and one of a dozen."""
    sources = []
    for name, per_type, types in (("rich", 85, TINY_TYPES), ("rare", 10, ("smudge cell",))):
        table = render_phantoms(
            tmp_path / name, per_type, slides=10, size=32, workers=1, cell_types=types, progress=False
        )
        sources.append(SourceDeclaration("table", name, table, "phantom"))
    build_dataset(tmp_path / "data", sources, settings=ShardSettings(max_samples=64), progress=False)
    return tmp_path / "data"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_runs_from_raw_images_to_a_scored_classifier(
    scarce_type: Path, launch: Launch, tmp_path: Path
) -> None:
    """All stages of all arms by the real launchers: types by count, and each takes what the one before has written."""
    config = AblationConfig(
        per_type=140,
        folds=2,
        stain=[*test_stain_training.TINY[2:], test_stain_training.DEPTH],
        conditional=list(test_conditional_training.TINY),
        few_shot=[*test_few_shot_training.TINY[1:], *test_few_shot_training.SHORT],
    )
    arms, root = ablation_arms(config, scarce_type, PLANNER), tmp_path / "stages"
    for stage in stages_of(*arms):
        done = launch(stage.launcher, *stage.command(root, Resources())[2:])
        assert done.returncode == 0, f"{stage.name}: {done.stderr}"
    raw = Dataset.open(scarce_type)
    parents = raw.samples(splits=["test"]).set_index("id")
    for arm in arms:
        shards = arm.dataset.folder(root) if isinstance(arm.dataset, Stage) else arm.dataset
        dataset = Dataset.open(shards)
        counts = {name: sum(count.values()) for name, count in training_counts(dataset).items() if any(count.values())}
        assert len(counts) == 4
        assert (min(counts.values()) == 140) == (arm.name not in ("original", "class_balanced"))
        held_out = dataset.samples(splits=["test"])
        assert set(held_out["origin"]) <= {"real", "normalized"}
        assert {row.parent or row.id for row in held_out.itertuples()} == set(parents.index)
        normalized = "violet_as_giemsa" in set(held_out["domain"])
        assert normalized == (arm.name not in ("without_normalization", "original", "class_balanced"))
    full, few_shot_only, conditional_only = (
        set(Dataset.open(arm.dataset.folder(root)).samples(splits=["train"])["source"])
        for arm in arms
        if isinstance(arm.dataset, Stage) and arm.name in ("full", "few_shot_only", "conditional_only")
    )
    assert (len(full), len(few_shot_only), len(conditional_only)) == (2 + 2, 2 + 3, 2 + 1)
    for arm in arms[:2]:
        assert isinstance(arm.dataset, Stage)
        arguments = (f"shards={arm.dataset.folder(root)}", f"run={arm.name}", *CLASSIFIER, *arm.overrides)
        done = launch("train_classifier", *arguments)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / arm.name / "evaluation/metrics.json").exists()
