"""If these fail, a sweep trains other trials than its file says, or starts work that it must then give up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from tests.launching import ROOT
from trainer.experiments.resources import Resources
from trainer.experiments.sweep import Sweep, opened, plan_sweep, refuse_other_sweep
from trainer.experiments.sweep_config import SweepConfig, parameter_sets, read_sweep

SWEEPS = ROOT / "configs" / "sweeps"
# What the ablation cannot know of `two_stains`, whose types have as many images each.
ROLES = ("ablation.rare_types=[basophil]", "ablation.per_type=60")


def search(**fields: Any) -> SweepConfig:
    return SweepConfig(kind="search", **fields)


def plan(config: SweepConfig, folder: Path) -> Sweep:
    return plan_sweep(config, folder, Path("a.yaml"))


def written(folder: Path, **content: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@given(
    st.floats(1e-6, 1.0),
    st.floats(1.0, 1e3),
    st.integers(-5, 5),
    st.integers(0, 5),
    st.integers(1, 40),
)
def test_draws_lie_in_their_ranges_and_more_of_them_begin_with_the_same(
    low: float, factor: float, first: int, span: int, trials: int
) -> None:
    space = {
        "rate": {"loguniform": [low, low * factor]},
        "smoothing": {"uniform": [low, low * factor]},
        "layers": {"randint": [first, first + span + 1]},
        "name": {"choice": ["a", "b"]},
        "point": {"uniform": [0, 1]},
    }
    points = parameter_sets(search(space=space, trials=trials))
    assert len(points) == trials
    for point in points:
        for name in ("rate", "smoothing"):
            assert low * (1 - 1e-5) <= point[name] <= low * factor * (1 + 1e-5)
        assert point["layers"] in range(first, first + span + 1)
        assert point["name"] in ("a", "b")
    assert parameter_sets(search(space=space, trials=trials + 3))[:trials] == points


def test_every_integer_and_every_choice_is_drawn_about_as_often() -> None:
    space = {"layers": {"randint": [1, 4]}, "name": {"choice": ["a", "b"]}}
    points = parameter_sets(search(space={**space, "draw": {"uniform": [0, 1]}}, trials=600))
    for value in (1, 2, 3):
        assert 150 < sum(point["layers"] == value for point in points) < 250
    assert 250 < sum(point["name"] == "a" for point in points) < 350


def test_a_grid_is_tried_as_a_whole_with_the_same_draws_at_each_point() -> None:
    space = {"a": {"grid_search": [1, 2]}, "b": {"grid_search": ["x", "y"]}, "c": {"uniform": [0, 1]}}
    points = parameter_sets(search(space=space, trials=2))
    grid = [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert [(point["a"], point["b"]) for point in points] == [*grid, *grid]
    assert len({point["c"] for point in points[:4]}) == 1
    assert len({point["c"] for point in points}) == 2
    assert parameter_sets(search(space=space, trials=3))[:8] == points


def test_a_point_that_is_drawn_again_is_tried_once() -> None:
    space = {"a": {"grid_search": [1, 2, 1]}, "b": {"choice": ["x", "y"]}}
    points = parameter_sets(search(space=space, trials=40))
    assert sorted((point["a"], point["b"]) for point in points) == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "race"}, ("kind=race", "ablation, comparison, search")),
        ({}, ("no kind",)),
        ({"kind": "comparison"}, ("models", "at least")),
        ({"kind": "comparison", "models": ["a", "a"]}, ("models", "once")),
        ({"kind": "comparison", "models": ["a"], "space": {"b": {"grid_search": [1]}}}, ("space", "kind: search")),
        ({"kind": "comparison", "models": ["a"], "model_settings": {"b": []}}, ("model_settings.b", "not one of")),
        ({"kind": "comparison", "models": ["a"], "model_settings": {"a": ["run=x"]}}, ("run is for the sweep",)),
        ({"kind": "ablation", "model_settings": {"a": []}}, ("model_settings", "kind: comparison")),
        ({"kind": "search"}, ("space", "empty")),
        ({"kind": "search", "space": {"a": [1, 2]}}, ("space.a", "grid")),
        ({"kind": "search", "space": {"a": {"normal": [1, 2]}}}, ("space.a", "loguniform")),
        ({"kind": "search", "space": {"a": {"loguniform": [0, 1]}}}, ("space.a.loguniform", "greater than 0")),
        ({"kind": "search", "space": {"a": {"randint": ["b", 1]}}}, ("space.a.randint", "'b'")),
        ({"kind": "search", "space": {"a": {"uniform": [0.5]}}}, ("space.a.uniform", "missing 1")),
        ({"kind": "search", "space": {"a": {"uniform": [2, 1]}}}, ("space.a.uniform", "smaller bound first")),
        ({"kind": "search", "space": {"a": {"grid_search": [1]}}, "trials": 5}, ("trials=5", "draws")),
        ({"kind": "search", "space": {"seed": {"grid_search": [1]}}}, ("seed is for the sweep",)),
        ({"kind": "search", "space": {"a": {"grid_search": [1]}}, "reduction": 1}, ("reduction=1",)),
        ({"kind": "ablation", "seeds": [1, 1]}, ("seeds", "once")),
        ({"kind": "ablation", "fixed": ["train.epochs"]}, ("train.epochs", "key=value")),
        ({"kind": "ablation", "fixed": ["run=x"]}, ("run is for the sweep",)),
        ({"kind": "search", "launcher": "balance", "space": {"a": {"grid_search": [1]}}}, ("launcher=balance",)),
        ({"kind": "ablation", "launcher": "train_stain_gan"}, ("launcher=train_stain_gan", "classifiers")),
        ({"kind": "ablation", "ablation": {"generator_seeds": [1, 1]}}, ("generator_seeds=[1, 1]", "once")),
        ({"kind": "ablation", "resources_per_trial": {"cpu": 3, "workers": 2}}, ("cpu=3", "multiple")),
        ({"kind": "ablation", "resources_per_trial": {"gpus": 2}}, ("gpus",)),
        ({"kind": "ablation", "resources_per_trial": {"gpu": 2}}, ("gpu=2", "one GPU", "workers=1")),
        ({"kind": "ablation", "resources_per_trial": {"cpu": 4, "gpu": 2, "workers": 4}}, ("gpu=2", "workers=4")),
        ({"kind": "ablation", "sheds": [1]}, ("sheds",)),
        ({"kind": "ablation", "ablation": {"per_type": 0}}, ("ablation.per_type=0",)),
    ],
)
def test_a_mistake_in_a_sweep_file_is_one_line_that_names_it(
    tmp_path: Path, fields: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = written(tmp_path, shards="data", **fields)
    with pytest.raises(UserError) as refused:
        read_sweep(path, [])
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_model_has_settings_of_its_own_over_those_of_all(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = SweepConfig(
        kind="comparison",
        shards=str(tiny_dataset.root),
        models=["senet_tiny_ge", "sequential_cnn"],
        model_settings={"sequential_cnn": ["optimizer.learning_rate=0.0001"]},
        fixed=["optimizer.learning_rate=0.001"],
        seeds=[0],
    )
    trials = plan(config, tmp_path).trials
    assert [trial.config.optimizer.learning_rate for trial in trials] == [0.001, 0.0001]


def test_the_command_line_stands_above_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, kind="comparison", models=["senet_tiny_ge"], seeds=[4], resources_per_trial={"cpu": 2})
    sweep = read_sweep(path, ["shards=/my data/a=b", "resources_per_trial.gpu=0.5", "seeds=[1,2]"])
    assert sweep.shards == "/my data/a=b"
    assert sweep.seeds == [1, 2]
    assert sweep.resources_per_trial == Resources(cpu=2, gpu=0.5)
    assert sweep.name == "own"
    with pytest.raises(UserError, match="no shards"):
        read_sweep(path, [])


def test_trials_are_every_arm_with_every_seed_under_names_of_their_own(tiny_dataset: Dataset, tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": {"grid_search": [0.1, 0.2]}, "model": {"grid_search": ["senet_tiny_ge"]}}
    config = search(shards=str(tiny_dataset.root), space=space, seeds=[3, 5], fixed=["train.epochs=7"])
    sweep = plan(config, tmp_path)
    assert [trial.name for trial in sweep.trials] == ["point0-seed3", "point0-seed5", "point1-seed3", "point1-seed5"]
    last = sweep.trials[-1]
    assert last.parameters == {"optimizer.learning_rate": 0.2, "model": "senet_tiny_ge"}
    assert (last.config.optimizer.learning_rate, last.config.seed, last.config.train.epochs) == (0.2, 5, 7)
    assert last.config.model.name == "senet_tiny_ge"
    assert last.config.run == str(tmp_path / "trials/point1-seed5")
    assert sweep.reference is None
    assert not any(tmp_path.iterdir())


def test_an_unknown_parameter_is_refused_before_anything_is_written(tiny_dataset: Dataset, tmp_path: Path) -> None:
    config = search(shards=str(tiny_dataset.root), space={"optimizer.learning_speed": {"grid_search": [0.1]}})
    with pytest.raises(UserError, match=r"a\.yaml.*learning_speed"):
        plan(config, tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_decides_a_result_makes_another_trial_and_nothing_else(tiny_dataset: Dataset, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "shards": str(tiny_dataset.root),
        "space": {"optimizer.learning_rate": {"grid_search": [0.1]}},
        "seeds": [0],
    }

    def told(**changes: Any) -> tuple[str, str]:
        sweep = plan(search(**{**fields, **changes}), tmp_path)
        return sweep.trials[0].content_hash, sweep.fingerprint

    first = told()
    moved = shutil.copytree(tiny_dataset.root, tmp_path / "moved")
    for same in ({"max_concurrent_trials": 1}, {"shards": str(moved)}, {"fixed": ["train.log_every=3"]}):
        assert told(**same) == first
    more = told(seeds=[0, 1])
    assert more[0] == first[0]
    assert more[1] != first[1]
    others = [
        {"fixed": ["train.epochs=3"]},
        # A run may go on with these changed; from the start they decide what comes of it.
        {"fixed": ["train.patience=3"]},
        {"fixed": ["train.micro_batch=8"]},
        {"seeds": [1]},
        {"resources_per_trial": Resources(cpu=2)},
        {"resources_per_trial": Resources(gpu=1)},
        {"resources_per_trial": Resources(cpu=2, workers=2)},
    ]
    assert len({first, *(told(**other) for other in others)}) == 1 + len(others)
    asha = told(scheduler="asha")
    assert asha[0] == first[0]
    assert asha[1] != first[1]
    half, whole = (told(resources_per_trial=Resources(gpu=share)) for share in (0.5, 1))
    assert half == whole


def test_two_trials_that_are_one_training_are_refused(two_stains: Dataset, tmp_path: Path) -> None:
    """A classifier that has no gather-excite cannot go without it."""
    changes = [f"shards={two_stains.root}", *ROLES, "fixed=[model=resnet50]"]
    with pytest.raises(UserError, match=r"a\.yaml: trials full-seed0 and without_ge-seed0 are one and the same"):
        plan(read_sweep(SWEEPS / "ablation.yaml", changes), tmp_path)


def test_processes_that_cannot_share_out_episodes_are_refused_beforehand(two_stains: Dataset, tmp_path: Path) -> None:
    changes = [f"shards={two_stains.root}", *ROLES]
    four = [*changes, "resources_per_trial={cpu: 32, gpu: 4, workers: 4}"]
    with pytest.raises(UserError, match=r"a\.yaml: few-shot GAN.*train\.global_batch=8: .* multiple of 32"):
        plan(read_sweep(SWEEPS / "ablation.yaml", four), tmp_path)
    sizes = "ablation.few_shot=[data.image_size=128,train.precision=fp16,train.global_batch=32]"
    assert len(plan(read_sweep(SWEEPS / "ablation.yaml", [*four, sizes]), tmp_path).trials) == 21


@pytest.mark.parametrize("name", ["classifiers", "classifiers_small", "learning_rate", "generator"])
def test_the_sweeps_that_come_with_the_project_can_be_planned(tiny_dataset: Dataset, tmp_path: Path, name: str) -> None:
    sweep = plan(read_sweep(SWEEPS / f"{name}.yaml", [f"shards={tiny_dataset.root}"]), tmp_path)
    assert len(sweep.trials) == {"classifiers": 30, "classifiers_small": 10}.get(name, 12)


@pytest.mark.parametrize("name", ["ablation", "ablation_small"])
def test_the_ablations_that_come_with_the_project_can_be_planned(
    two_stains: Dataset, tmp_path: Path, name: str
) -> None:
    changes = [f"shards={two_stains.root}", *ROLES, "arms=[full,without_ge,original]"]
    sweep = plan(read_sweep(SWEEPS / f"{name}.yaml", [*changes, "seeds=[0]", "ablation.generator_seeds=[0]"]), tmp_path)
    assert [trial.name for trial in sweep.trials] == ["full-seed0", "without_ge-seed0", "original-seed0"]
    assert sweep.reference == "full"
    until = [trial.config.train.synthetic.until for trial in sweep.trials]
    assert until == ([0.5, 0.5, 1.0] if name == "ablation_small" else [1.0] * 3)
    assert [trial.config.model.ge for trial in sweep.trials] == [True, False, True]
    shards = [Path(str(trial.config.shards)) for trial in sweep.trials]
    assert shards[0] == shards[1] == sweep.stages[-1].folder(sweep.stages_folder)
    assert shards[2] == two_stains.root


@pytest.mark.parametrize("name", ["stain", "normalize", "conditional", "few_shot"])
def test_an_unknown_argument_of_a_stage_is_refused_beforehand(two_stains: Dataset, tmp_path: Path, name: str) -> None:
    changes = [f"shards={two_stains.root}", *ROLES, f"ablation.{name}=[speed=1]"]
    with pytest.raises(UserError, match=r"a\.yaml: .*\.py\): .*speed"):
        plan(read_sweep(SWEEPS / "ablation.yaml", changes), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_another_ablation_is_refused_by_the_one_setting_that_differs(
    two_stains: Dataset, tmp_path: Path
) -> None:
    def planned(*changes: str) -> Sweep:
        given = [f"shards={two_stains.root}", *ROLES, "arms=[full,original]", *changes]
        return plan(read_sweep(SWEEPS / "ablation.yaml", given), tmp_path)

    with opened(planned()):
        pass
    refuse_other_sweep(planned("seeds=[0,1,2,3]"))
    with pytest.raises(UserError) as raised:
        refuse_other_sweep(planned("ablation.with_generated=[train.synthetic.until=0.5]"))
    assert "(ablation.with_generated was [], is now ['train.synthetic.until=0.5'])" in str(raised.value)


def test_generator_seeds_repeat_what_generators_made_and_nothing_else(two_stains: Dataset, tmp_path: Path) -> None:
    """The first seed's trainings are those of an ablation without the setting: what is done is not done again."""
    changes = [f"shards={two_stains.root}", *ROLES, "arms=[full,without_ge,original]", "seeds=[0,1]"]
    one = plan(read_sweep(SWEEPS / "ablation_small.yaml", [*changes, "ablation.generator_seeds=[0]"]), tmp_path)
    two = plan(read_sweep(SWEEPS / "ablation_small.yaml", [*changes, "ablation.generator_seeds=[0,4]"]), tmp_path)
    hashes = {trial.name: trial.content_hash for trial in two.trials}
    assert {name: hashes[name] for name in (trial.name for trial in one.trials)} == {
        trial.name: trial.content_hash for trial in one.trials
    }
    assert sorted(set(hashes) - {trial.name for trial in one.trials}) == [
        f"{arm}-generator4-seed{seed}" for arm in ("full", "without_ge") for seed in (0, 1)
    ]
    assert len(set(hashes.values())) == len(hashes) == 10
    assert {trial.generator_seed for trial in two.trials if trial.arm == "original"} == {None}
    assert set(one.stages) < set(two.stages)
    repeated = [stage for stage in two.stages if stage not in one.stages]
    assert len(repeated) == len(one.stages)
    assert all(" generator seed 4" in stage.name for stage in repeated)
    trained = [stage.settings.seed for stage in repeated if stage.launcher.startswith("train_")]
    assert trained == [4, 4, 4]


@pytest.mark.parametrize(
    ("launcher", "space", "metric", "mode"),
    [
        ("train_classifier", {"optimizer.learning_rate": {"loguniform": [0.001, 0.1]}}, "balanced_accuracy", "max"),
        ("train_detector", {"optimizer.learning_rate": {"grid_search": [0.1, 0.2]}}, "average_precision", "max"),
    ],
)
def test_a_search_is_over_any_launcher_by_the_score_of_its_runs(
    tiny_dataset: Dataset, tmp_path: Path, launcher: str, space: dict[str, Any], metric: str, mode: str
) -> None:
    config = search(shards=str(tiny_dataset.root), launcher=launcher, space=space, trials=1, seeds=[0])
    sweep = plan(config, tmp_path)
    assert (sweep.metric, sweep.mode) == (f"validation_{metric}", mode)
    assert f"{launcher}.py" in sweep.command(sweep.trials[0])


def test_trials_that_choose_by_different_scores_are_refused(tiny_dataset: Dataset, tmp_path: Path) -> None:
    space = {"train.select_by": {"grid_search": ["loss", "accuracy"]}}
    with pytest.raises(UserError, match=r"a\.yaml: trials are compared by one score.*: accuracy, loss"):
        plan(search(shards=str(tiny_dataset.root), space=space), tmp_path)
