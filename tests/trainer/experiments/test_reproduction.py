"""If these fail, the whole experiment compares other things than it says, or a laboratory's labels reach the other."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.ingest.label_counts import thesis_counts
from launchers import reproduce
from launchers.console import CONFIGS, read_config
from tests.conftest import Launch
from tests.forged_catalog import full_downloads
from tests.launchers.test_launchers import assert_refused
from trainer.experiments.ablation import AblationConfig, is_thesis
from trainer.experiments.reproduction import Reproduction, plan_reproduction
from trainer.experiments.reproduction_cells import draw_cells
from trainer.experiments.reproduction_config import ReproductionConfig, read_preset
from trainer.experiments.reproduction_stages import CONTROL_ARMS, SITE_ARMS
from trainer.experiments.stages import Stage, in_order
from trainer.reports.thesis_tables import thesis_name
from trainer.runs.evaluation_config import EvaluateConfig

PRESETS = ("phantom", "small", "thesis", "thesis_small", "best")
THESIS = ("w_cyclegan_gp_thesis", "c_wgan_gp_thesis", "few_shot_meta_thesis")
BEST = ("w_cyclegan_gp", "c_wgan_gp", "few_shot_meta")
ROLES = ("ablation.rare_types=[lymphocyte]", "ablation.per_type=60")
CONFIG = ReproductionConfig(
    # Of three types in two stains with 60 images the last is the rare one.
    ablation=AblationConfig(stain_to="giemsa", stain_from="violet", rare_types=["lymphocyte"], per_type=60),
    stain_models={"cyclegan": ["model.generator.blocks=2"]},
    conditional_models={"ac_gan": []},
    few_shot_models={"without_meta": ["model=few_shot_meta", "model.meta=false"], "figr": []},
    classifier=["model=senet_tiny_ge", "data.image_size=32"],
    judge=["model=senet_tiny_ge", "data.image_size=32"],
    models=["senet_tiny_ge", "naive_bayes"],
)


@pytest.fixture(scope="module")
def planned(two_stains: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    folder = tmp_path_factory.mktemp("reproduction")
    return plan_reproduction(CONFIG, Path("preset.yaml"), folder, two_stains.root)


def behind(stage: Stage) -> list[Stage]:
    """The stage and all that it follows from."""
    return in_order([stage])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_every_rival_of_the_thesis(preset: str) -> None:
    config = read_preset(CONFIGS / "reproduce" / f"{preset}.yaml", [])
    assert {"cyclegan", "pix2pix"} <= config.stain_models.keys()
    assert {"ac_gan", "cwgan_gp", "info_gan", "dcgan", "cgan"} <= config.conditional_models.keys()
    assert {"figr", "fast_gan", "diff_augment", "mine_gan"} <= config.few_shot_models.keys()
    assert len(config.models) == 10 + preset.startswith("thesis")
    own, rivals = (
        config.ablation.models.values(),
        (config.stain_models, config.conditional_models, config.few_shot_models),
    )
    # The thesis's own models, whose rows have its numbers, and this project's, whose rows have none, in every preset.
    for thesis, best, method, others in zip(THESIS, BEST, own, rivals, strict=True):
        assert {thesis, best} <= {method, *others}
        assert method == (thesis if preset.startswith("thesis") else best)
        assert thesis_name(thesis)
        assert thesis_name(best) is None
    assert is_thesis(config.ablation, config.classifier) == preset.startswith("thesis")


def test_the_thesis_on_the_full_downloads_is_planned_as_it_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Munich is the larger set before the removals; A is Barcelona all the same."""
    for excluded in (False, True):
        dataset = full_downloads(tmp_path / f"excluded {excluded}", excluded=excluded)
        reproduce.main(["preset=thesis", f"run={tmp_path}/run", f"shards={dataset.root}", "plan=true"])
        shown = capsys.readouterr().out
        lines = shown.splitlines()
        assert lines[0] == (
            "A=barcelona, B=munich; by the type that a first classifier names: basophil, eosinophil, erythroblast, "
            "immature granulocyte, monocyte of munich take the stain of barcelona, lymphocyte of barcelona that of "
            "munich (so says section 4.1, whose reason its tables 2 and 3 contradict), all others stay as they are"
        )
        assert lines[2] == "sizes: stored 128, stain 128, conditional 128, few shot 128, classifier 224"
        assert "warning" not in lines[3]
        counts = thesis_counts()
        if excluded:
            types = ", ".join(f"{name} {count}" for name, count in counts.items())
            assert lines[1] == f"images: {types}; 33178 in all"
        else:
            assert lines[1].endswith("; 35457 in all")
        (normalize,) = (line for line in lines if "normalize_stains.py" in line)
        assert "policy=thesis_predicted" in normalize
        assert "classifier=" in normalize
        trainings = [line for line in lines if "train_" in line and "data/augment=none" not in line]
        # Judges and rivals too; only this project's own variants augment.
        assert all("data/augment=flip" in line or "data/augment=quarter_turns" in line for line in trainings)
        assert len(trainings) == 3


def test_rivals_differ_from_the_proposed_model_in_the_model_alone(planned: Reproduction) -> None:
    for kind, name in (("stain", "cyclegan"), ("conditional", "ac_gan"), ("few_shot", "figr")):
        proposed, rival = (planned.models[kind][each].run for each in (next(iter(planned.models[kind])), name))
        assert proposed.inputs == rival.inputs
        for section in ("data", "train"):
            assert getattr(proposed.settings, section) == getattr(rival.settings, section)
        assert proposed.settings.model.algorithm != rival.settings.model.algorithm
    without = planned.models["few_shot"]["without_meta"].run.settings.model
    assert not without.meta


def test_the_proposed_models_are_those_whose_images_the_full_method_learns_from(planned: Reproduction) -> None:
    full = planned.ablation.arms[0].dataset
    assert isinstance(full, Stage)
    for models in planned.models.values():
        assert next(iter(models.values())).run in behind(full)


def test_generated_images_are_scored_by_a_judge_of_real_ones_and_were_not_learned_from(planned: Reproduction) -> None:
    learned = {
        stage for arm in planned.ablation.arms if isinstance(arm.dataset, Stage) for stage in behind(arm.dataset)
    }
    for kind in ("conditional", "few_shot"):
        for scored in planned.models[kind].values():
            judge = scored.score.inputs["classifier"]
            assert isinstance(judge, Stage)
            assert {stage.launcher for stage in behind(judge)} == {
                "train_stain_gan",
                "normalize_stains",
                "train_classifier",
            }
            assert scored.bank is not None
            assert scored.bank not in learned


def test_a_site_s_classifier_and_generator_see_no_labelled_image_of_the_other(planned: Reproduction) -> None:
    own = {"giemsa": ({"giemsa"}, {"giemsa"}), "violet": ({"violet"}, {"violet_as_giemsa"})}
    found = set()
    for training in planned.sites:
        if training.site == "both":
            continue
        normalizes, generates = SITE_ARMS[training.arm].normalize, SITE_ARMS[training.arm].generate
        stages = behind(training.run)
        found.add((training.site, training.arm))
        shown = [stage for stage in stages if stage.launcher in ("train_classifier", "train_conditional_gan")]
        assert len(shown) == 1 + generates
        for stage in shown:
            assert set(stage.settings.data.domains) == own[training.site][normalizes]
        assert normalizes == any(stage.launcher == "normalize_stains" for stage in stages)
        assert training.score is not None
        told = read_config(EvaluateConfig, "evaluate", training.score.arguments)
        assert (told.split, told.domain) == ("test", "violet" if training.site == "giemsa" else "giemsa")
    assert found == {(site, arm) for site in own for arm in SITE_ARMS}
    both = [training.arm for training in planned.sites if training.site == "both"]
    assert {*both, *(arm.name for arm in planned.ablation.arms)} >= SITE_ARMS.keys()


def test_controls_are_of_the_ablation_s_own_data_and_no_trial_of_it(planned: Reproduction) -> None:
    """C14: only the protocol differs, and no score is read from such a run."""
    arms = {arm.name: arm.dataset for arm in planned.ablation.arms}
    assert tuple(each.arm for each in planned.controls) == tuple(name for name in arms if name in CONTROL_ARMS)
    for control in planned.controls:
        assert control.run.inputs["shards"] == arms[control.arm]
        assert control.run.settings.protocol == "balance_first"
    assert all(trial.config.protocol == "split_first" for trial in planned.ablation.trials)
    scored = {each.run for models in planned.models.values() for each in models.values()}
    assert not scored & {each.run for each in planned.controls}


def test_generator_seeds_repeat_the_generators_and_the_control_of_their_images(
    two_stains: Dataset, tmp_path: Path
) -> None:
    """And nothing else: the classifier that names the types for the thesis's rule knows of no generator."""
    ablation = dataclasses.replace(CONFIG.ablation, normalize=["policy=thesis_predicted"], generator_seeds=[0, 1])
    config = dataclasses.replace(CONFIG, ablation=ablation)
    found = plan_reproduction(config, Path("preset.yaml"), tmp_path, two_stains.root)
    names = [stage.name for stage in found.ablation_stages]
    assert len(set(names)) == len(names)
    assert names.count("first classifier") == 1
    assert {"stain GAN", "stain GAN generator seed 1", "C-WGAN-GP generator seed 1 images"} <= set(names)
    controls = [(each.arm, each.generator_seed) for each in found.controls]
    assert controls == [("full", 0), ("original", None), ("full", 1)]
    # The ablation and its control come first: they are what a run that is stopped early should have.
    assert found.stages[: len(names)] == found.ablation_stages
    assert found.describe()[0].startswith("A=giemsa, B=violet; by the type that a first classifier names")


def test_the_cells_of_the_report_are_in_both_stains(two_stains: Dataset, tmp_path: Path) -> None:
    """Figures 13 and 21: a type that one stain lacks has a white place there."""
    draw_cells(tmp_path / "cells.png", two_stains, ("giemsa", "violet"))
    sheet = np.asarray(Image.open(tmp_path / "cells.png"))
    types = two_stains.samples()["cell_type"].nunique()
    assert sheet.shape[0] == 18 + types * 100  # a head, then 96 px and a margin each
    first, other = (sheet[18:118, left : left + 96].mean(axis=(0, 1)) for left in (130, 130 + 300))
    assert np.abs(first - other).max() > 2, "both halves are of one stain"


def test_what_a_stage_adds_to_is_to_be_there_for_it_to_be_done(planned: Reproduction, tmp_path: Path) -> None:
    score = planned.models["stain"]["cyclegan"].score
    marker = score.folder(tmp_path)
    marker.with_name(f"{marker.name}.done.json").write_text("{}")
    assert not score.done(tmp_path)
    done = marker.with_name(f"{marker.name}.done.json")
    for needed in score.needs:
        folder = needed.folder(tmp_path)
        folder.mkdir()
        folder.with_name(f"{folder.name}.done.json").write_text("{}")
        os.utime(folder.with_name(f"{folder.name}.done.json"), ns=(1, 1))
    assert score.done(tmp_path)
    os.utime(done, ns=(0, 0))  # made again since
    assert not score.done(tmp_path)
    assert not any(argument.startswith("None=") for argument in score.command(tmp_path, CONFIG.resources))


def test_another_seed_adds_trainings_and_keeps_the_generators(planned: Reproduction) -> None:
    more = plan_reproduction(
        dataclasses.replace(CONFIG, seeds=[0, 1]), planned.where, planned.folder, planned.dataset.root
    )
    new = set(more.stages) - set(planned.stages)
    assert {stage.launcher for stage in new} == {"train_classifier", "evaluate"}
    assert set(planned.stages) < set(more.stages)


def test_mistakes_are_one_line(launch: Launch, two_stains: Dataset) -> None:
    assert_refused(launch("reproduce"), "preset=", "run=DIR")
    assert_refused(launch("reproduce", "preset=large", "run=r"), "large", "no preset file")
    assert_refused(launch("reproduce", "preset=phantom", "run=r", "colour=blue", "shards=d"), "colour")
    assert_refused(launch("reproduce", "preset=small", "run=r"), "r/data", "barcelona=RAW")
    assert_refused(
        launch("reproduce", "preset=small", "run=r", f"shards={two_stains.root}", *ROLES, "judge=[colour=blue]"),
        "small.yaml",
        "judge of stains",
        "colour",
    )
