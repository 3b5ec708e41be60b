"""timm models by name, and weights from files: what fits is taken, what does not is named."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.classifiers.build import build_classifier
from models.classifiers.config import ClassifierConfig
from models.errors import ModelError

SMALL = ClassifierConfig(
    name="small",
    timm_name="",
    block="basic",
    layers=(1, 1),
    widths=(8, 16),
    groups=1,
    reduction=4,
    stem_widths=(8,),
)
TIMM = ClassifierConfig(name="timm", architecture="timm", timm_name="test_resnet", dropout=0.0)


def write(network: nn.Module, path: Path) -> str:
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if path.stem == "nested" else state, path)
    return str(path)


def with_weights(config: ClassifierConfig, weights: str, **changes: Any) -> ClassifierConfig:
    return dataclasses.replace(config, weights=weights, **changes)


def test_timm_model_takes_images_in_our_range() -> None:
    """A timm model sees the statistics it was made for although images here are always in [-1, 1]."""
    config = dataclasses.replace(TIMM, timm_name="resnet10t")
    torch.manual_seed(0)
    ours = build_classifier(config, 4).eval()
    torch.manual_seed(0)
    theirs = timm.create_model("resnet10t", num_classes=4).eval()
    record = timm.models.get_pretrained_cfg("resnet10t")
    assert record is not None
    images = torch.rand(2, 3, 64, 64)
    mean, std = torch.tensor(record.mean).view(3, 1, 1), torch.tensor(record.std).view(3, 1, 1)
    assert record.mean != (0.5, 0.5, 0.5)
    torch.testing.assert_close(ours(images * 2 - 1), theirs((images - mean) / std), rtol=1e-4, atol=1e-5)


def test_transformer_of_fixed_input_size_is_built_for_ours() -> None:
    """`model.timm_name=vit_...` works at the run's image size, not only at the one it was published with."""
    config = dataclasses.replace(TIMM, timm_name="test_vit", dropout=0.1)
    network = build_classifier(config, 4, image_size=64)
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_unknown_timm_name_offers_close_ones() -> None:
    """A misspelt model name is answered with what was probably meant."""
    with pytest.raises(ModelError, match=r"timm_name=resnet5O: timm .* has no such model; .*resnet50"):
        build_classifier(dataclasses.replace(TIMM, timm_name="resnet5O"), 4)
    with pytest.raises(ModelError, match="has no such model; close to it: resnet18"):
        build_classifier(dataclasses.replace(TIMM, timm_name="resnet18.a9_in1k"), 4)


def test_pretrained_weights_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the user is told in one line to give a file."""
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        if pretrained:
            raise OSError("Temporary failure in name resolution\n(and much more)")
        network: nn.Module = create(name, **arguments)
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"^[^\n]*test_resnet could not be fetched [^\n]*a local file instead$"):
        build_classifier(with_weights(TIMM, "pretrained"), 4)


def test_pretrained_timm_weights_reach_the_trunk_of_senet_ge(monkeypatch: pytest.MonkeyPatch) -> None:
    """SENet-154-GE can start from SENet-154's weights: trunk taken, attention and last layer fresh."""
    source = build_classifier(dataclasses.replace(SMALL, ge=False), 1000)
    monkeypatch.setattr(timm, "create_model", lambda *_args, **_kwargs: source)
    config = with_weights(SMALL, "pretrained", timm_name="legacy_senet154")
    network = build_classifier(config, 4)
    trunk = {name: value for name, value in source.state_dict().items() if not name.startswith("last_linear")}
    assert all(torch.equal(network.state_dict()[f"network.{name}"], value) for name, value in trunk.items())


@pytest.mark.parametrize("file", ["plain.safetensors", "plain.pt", "nested.pth"])
@pytest.mark.parametrize("config", [SMALL, TIMM], ids=["senet", "timm"])
def test_saved_weights_come_back(file: str, config: ClassifierConfig, tmp_path: Path) -> None:
    """Weights written from one network give the same logits in the next, whatever the file's kind."""
    saved = build_classifier(config, 5).eval()
    loaded = build_classifier(with_weights(config, write(saved, tmp_path / file)), 5).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    assert torch.equal(saved(images), loaded(images))


def test_names_in_the_state_dict_do_not_depend_on_the_weights_field(tmp_path: Path) -> None:
    """A checkpoint loads into a network built with weights=None, without the file it once started from."""
    started = build_classifier(with_weights(TIMM, write(build_classifier(TIMM, 5), tmp_path / "a.pt")), 5)
    build_classifier(TIMM, 5).load_state_dict(started.state_dict())


@pytest.mark.parametrize("config", [SMALL, TIMM], ids=["senet", "timm"])
def test_last_layer_of_another_number_of_types_starts_at_zero(config: ClassifierConfig, tmp_path: Path) -> None:
    """Weights of an eight-type model start a twelve-type one: all but the last layer is taken, and it says nothing."""
    source = build_classifier(config, 8)
    path = write(source, tmp_path / "eight.safetensors")
    loaded = build_classifier(with_weights(config, path), 12).state_dict()
    last = [name for name, value in source.state_dict().items() if value.shape != loaded[name].shape]
    assert len(last) == 2
    for name, value in loaded.items():
        assert torch.equal(value, torch.zeros_like(value) if name in last else source.state_dict()[name])


def test_weights_of_another_model_are_refused_by_key(tmp_path: Path) -> None:
    """A wrong file is not loaded in part: the line names what is missing, unknown and misshapen."""
    path = write(build_classifier(SMALL, 5), tmp_path / "small.pt")
    with pytest.raises(ModelError, match=r"^[^\n]*of another shape: layer2[^\n]*$"):
        build_classifier(with_weights(SMALL, path, widths=(8, 32)), 5)
    with pytest.raises(ModelError, match=r"^[^\n]*missing: layer1.1[^\n]* and 10 more[^\n]*$"):
        build_classifier(with_weights(SMALL, path, layers=(2, 1)), 5)
    with pytest.raises(ModelError, match=r"^[^\n]*unknown: attention[^\n]*$"):
        build_classifier(with_weights(SMALL, path, ge=False), 5)


@pytest.mark.parametrize("file", ["bad.safetensors", "bad.pt"])
def test_damaged_or_foreign_files_are_refused(file: str, tmp_path: Path) -> None:
    """An absent, cut, empty or entirely different file ends in one line naming it."""
    path = tmp_path / file
    config = with_weights(SMALL, str(path))
    with pytest.raises(ModelError, match="no such file"):
        build_classifier(config, 5)
    write(build_classifier(SMALL, 5), path)
    whole = path.read_bytes()
    for content in (b"", b"not weights at all", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=f"^[^\n]*{file}: not a readable[^\n]*$"):
            build_classifier(config, 5)


class Trap:
    """Would run code when unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("pickled code ran",))


def test_pickled_code_in_a_weights_file_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A weights file from anywhere can be tried without handing it the machine."""
    path = tmp_path / "trap.pt"
    torch.save({"state_dict": Trap()}, path)
    with pytest.raises(ModelError, match="not a readable"):
        build_classifier(with_weights(SMALL, str(path)), 5)
    assert "pickled code ran" not in capsys.readouterr().out


def test_file_of_something_else_is_refused(tmp_path: Path) -> None:
    """A readable torch file without weights is not taken for an empty set of weights."""
    path = tmp_path / "numbers.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="holds no state dict"):
        build_classifier(with_weights(SMALL, str(path)), 5)
