"""If these fail, a folder, a stain or a type is not the one that was named on the command line."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from launchers.ablate import AblateConfig
from launchers.audit import AuditConfig
from launchers.build_shards import BuildConfig
from launchers.console import read_config
from launchers.export import ExportConfig
from launchers.plan import PlanConfig
from launchers.predict import PredictConfig
from launchers.reproduce import ReproduceConfig
from launchers.train_classifier import QuickstartConfig
from tests.examples import examples
from trainer.experiments.launches import LAUNCHER_CONFIGS
from trainer.experiments.reproduction_config import ReproductionConfig, read_preset
from trainer.experiments.resources import Resources
from trainer.experiments.sweep_config import SweepConfig, parameter_sets, read_sweep
from trainer.runs.arguments import field_at, keys_of, later_wins, read_arguments, read_text, without_none, written
from trainer.runs.evaluation_config import EvaluateConfig
from trainer.tasks.conditional.config import ConditionalRunConfig

# Each launcher's schema, by the name of its file in configs/.
KINDS: dict[str, type] = {
    **LAUNCHER_CONFIGS,
    "ablate": AblateConfig,
    "audit": AuditConfig,
    "build_shards": BuildConfig,
    "evaluate": EvaluateConfig,
    "export": ExportConfig,
    "plan": PlanConfig,
    "predict": PredictConfig,
    "quickstart": QuickstartConfig,
    "reproduce": ReproduceConfig,
}
SCHEMAS = [*KINDS.values(), SweepConfig, ReproductionConfig]
FIELDS = [(kind, key, field_at(kind, key)[1]) for kind in SCHEMAS for key in keys_of(kind)]
TEXT_FIELDS = [(kind, key, hint) for kind, key, hint in FIELDS if without_none(hint)[0] is str]
ODD = (
    "2023_10_05", "2023-10-05", "10.50", "1e3", "Smith,John", "true", "0x10", "[a]", "{a}", "${x}", " a b ", "Müller",
    "it's", '"a"', "a=b", "50%", "#1", "12:30", "C:\\x", "a,", "~", "", "no", "./null", "*", "\udce4", "model=x", "--x",
)  # fmt: skip
TEXTS = st.sampled_from(ODD) | st.text(st.characters(exclude_characters="\0"))


@examples(40)
@given(text=TEXTS)
def test_text_comes_back_as_it_is_written_for_every_key_of_every_launcher(text: str) -> None:
    for kind, key, hint in TEXT_FIELDS:
        [(path, value)] = read_arguments(kind, [f"{key}={text}"])
        assert ".".join(path) == key
        assert value == (None if text == "null" and without_none(hint)[1] else text)


@examples(60)
@given(texts=st.lists(TEXTS), shares=st.dictionaries(TEXTS, st.floats(0, 1)))
@example(texts=["null"], shares={})
def test_lists_and_tables_come_back(texts: list[str], shares: dict[str, float]) -> None:
    assert read_text(list[str], written(texts), "key") == texts
    assert read_text(list[str] | None, written(texts), "key") == texts
    assert read_text(dict[str, float], written(shares), "key") == shares
    lists = {text: [text, *texts] for text in texts}
    assert read_text(dict[str, list[str]], written(lists), "key") == lists


@examples(40)
@given(text=TEXTS)
def test_any_text_is_a_value_or_one_line(text: str) -> None:
    for hint in {str(hint): hint for _, _, hint in FIELDS}.values():
        try:
            read_text(hint, text, "key")
        except UserError:
            continue
    for arguments in ([text], ["seed=1", text]):
        try:
            read_arguments(QuickstartConfig, arguments)
        except UserError:
            continue


@examples(25)
@given(name=st.sampled_from(sorted(KINDS)), data=st.data(), text=TEXTS)
def test_every_launcher_takes_any_text_or_says_in_one_line_why_not(name: str, data: st.DataObject, text: str) -> None:
    """The whole way, with the files of configs/."""
    kind = KINDS[name]
    key, hint = data.draw(st.sampled_from([(key, hint) for each, key, hint in TEXT_FIELDS if each is kind]))
    try:
        value: Any = read_config(kind, name, [f"{key}={text}"])
    except UserError:  # a dataclass's own check: there is no such optimiser, say
        return
    for part in key.split("."):
        value = getattr(value, part)
    assert value == (None if text == "null" and without_none(hint)[1] else text)


@given(texts=st.lists(TEXTS, min_size=1))
def test_a_printed_command_gives_the_same_arguments_to_a_shell(texts: list[str]) -> None:
    arguments = [f"folder={text}" for text in texts]
    resources = Resources()
    line = resources.shell_line(resources.command(Path("launchers/build_shards.py"), arguments))
    assert shlex.split(line)[-len(arguments) :] == arguments


@pytest.mark.parametrize(
    ("value", "inner"),
    [
        ("[a,b]", ["a", "b"]),
        ("[ a b , c:d ]", ["a b", "c:d"]),
        ("['Smith, John',\"[x]\"]", ["Smith, John", "[x]"]),
        (r"['it\'s', C:\x]", ["it's", r"C:\x"]),
        ("[null,2023_10_05,${x},]", ["null", "2023_10_05", "${x}"]),
        ("[]", []),
        ("null", None),
    ],
)
def test_lists_are_written_with_or_without_quotes(value: str, inner: list[str] | None) -> None:
    assert read_text(list[str] | None, value, "key") == inner


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["folder"], "folder: arguments are written key=value"),
        (["--folder=a"], "without dashes: folder=a"),
        (["--folder", "a"], "without dashes: folder=VALUE"),
        (["foldr=a"], "foldr: no such key; the nearest is folder"),
        (["qqq=a"], "qqq: no such key; see --help"),
        (["verify=maybe"], "verify=maybe: write true or false"),
        (["workers=2.0"], "workers=2.0: write a whole number"),
        (["workers=1_000"], "workers=1_000: write a whole number"),
        (["workers=99999999999999999999"], "write a whole number"),
        (["ratio=[0.5,x]"], "ratio=x: write a number"),
        (["ratio=0.5"], r"ratio=0.5: write \[a,b\]"),
        (["ratio=[0.5,0.5"], r"write \[a,b\]"),
        (["ratio=[1e999]"], "ratio=1e999: write a number"),
        (["promyelocytes=Promyelocyte"], "immature granulocyte, promyelocyte: write promyelocyte"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says) as refused:
        read_config(BuildConfig, "build_shards", arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("model=resnet", "model=resnet: no file of configs/model; the nearest is resnet50; there are ac_gan, "),
        ("model=10.50", "model=10.50: no file of configs/model"),
        ("data/augment=Stain", "the nearest is stain"),
        ("data.augment=stain", "data.augment: not a value but a group of them"),
        ("model.layers=[1,x]", "model.layers=x: write a whole number"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate=-1.0: must be above 0"),
    ],
)
def test_a_wrong_choice_of_a_group_is_one_line(argument: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_config(LAUNCHER_CONFIGS["train_classifier"], "train_classifier", [argument])


def test_of_two_arguments_with_one_key_the_later_wins() -> None:
    """A script's own arguments come first, what its user adds comes last."""
    assert later_wins(["a=1", "b=2", "a=3"]) == ("a=3", "b=2")
    written_twice = ["model=vgg19", "train.epochs=1", "model=senet_tiny_ge", "train.epochs=2"]
    config = read_config(LAUNCHER_CONFIGS["train_classifier"], "train_classifier", written_twice)
    once = read_config(LAUNCHER_CONFIGS["train_classifier"], "train_classifier", written_twice[2:])
    assert config == once


@pytest.mark.parametrize("text", ["2024_01_15", "2023-10-05", "10.50", "1e3", "no", "12:30:00", "0x10", "010"])
def test_text_of_a_sweep_and_a_preset_is_as_the_file_has_it(text: str, tmp_path: Path) -> None:
    space = "{train.epochs: {grid_search: [1, 2]}}"
    (tmp_path / "a.yaml").write_text(f"kind: search\nshards: {text}\nspace: {space}\n")
    sweep = read_sweep(tmp_path / "a.yaml", [])
    assert (sweep.shards, parameter_sets(sweep)) == (text, [{"train.epochs": 1}, {"train.epochs": 2}])
    assert read_sweep(tmp_path / "a.yaml", [f"shards={text}x"]).shards == f"{text}x"
    (tmp_path / "b.yaml").write_text(
        f"note: {text}\nfew_shot_models: {{{text}: [{text}]}}\nphantoms: {{basophil: 3}}\n"
    )
    preset = read_preset(tmp_path / "b.yaml", ["resources.cpu=2"])
    assert (preset.note, preset.few_shot_models, preset.resources.cpu) == (text, {text: [text]}, 2)


def test_a_file_says_null_for_nothing_and_quotes_make_it_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: comparison\nshards: 'null'\nmodels: [vgg19]\nmax_concurrent_trials: null\n")
    sweep = read_sweep(tmp_path / "a.yaml", [])
    assert (sweep.shards, sweep.max_concurrent_trials) == ("null", None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("kind: search\nkind: search\n", "kind is given twice"),
        ("kind: [\n", "no sweep can be read from it"),
        ("- a\n", "write key: value on each line"),
        ("kind: comparison\nseeds: [1.0]\n", "seeds=1.0: write a whole number"),
        ("kind: comparison\nseed: [1]\n", "seed: no such key; the nearest is seeds"),
        ("kind: comparison\nresources_per_trial: 3\n", "resources_per_trial=3: write a name and a value"),
        ("kind: search\nshards: a\nspace: {model.weights: {grid_search: [10.50]}}\n", "is quoted"),
    ],
)
def test_a_wrong_sweep_file_is_one_line(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(UserError, match=says) as refused:
        read_sweep(tmp_path / "a.yaml", [])
    assert str(refused.value).startswith(f"{tmp_path / 'a.yaml'}: ")
    assert "\n" not in str(refused.value)


def test_an_algorithm_s_own_setting_may_be_a_list() -> None:
    key = ("model", "options", "augment")
    assert read_arguments(ConditionalRunConfig, ["model.options.augment=[translation,cutout]"]) == [
        (key, ["translation", "cutout"])
    ]
