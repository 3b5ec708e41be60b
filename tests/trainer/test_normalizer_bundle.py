"""If these fail, a classifier's normaliser is lost with the run or the code that made it, or images look different."""

from pathlib import Path

import pytest
import torch
from torch import nn

from data_pipeline.errors import UserError
from models.stain.build import build_generator
from models.stain.config import GeneratorConfig
from models.stain.grey import ColourGrey
from trainer.runs.normalizers.bundle import NormalizerBundle, Selection, StainNormalizer, load_bundle, save_bundle
from trainer.runs.normalizers.classical import CLASSICAL
from trainer.runs.normalizers.learned import LearnedNormalizer

GENERATORS = {
    "unet": GeneratorConfig(width=4, depth=2),
    "student": GeneratorConfig(architecture="student", width=4, start="identity"),
    "reinhard start": GeneratorConfig(architecture="resnet", width=4, blocks=1, start="reinhard"),
    "pix2pix": GeneratorConfig(width=4, depth=2, norm="batch"),
}


def images(seed: int, n: int = 3) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def learned(name: str) -> LearnedNormalizer:
    torch.manual_seed(0)
    generator = build_generator(GENERATORS[name], 16)
    with torch.no_grad():
        for value in generator.state_dict().values():
            value.add_(1)  # weights and buffers that building alone does not give
    network: nn.Module = ColourGrey(generator) if name == "pix2pix" else generator
    return LearnedNormalizer(network.eval(), GENERATORS[name], name, "giemsa", "5" * 64, "7" * 64, 16)


def bundle_of(normalizer: StainNormalizer) -> NormalizerBundle:
    return NormalizerBundle(normalizer, "violet", "giemsa", 16, 0.8, Selection("7" * 64, ["train"], [0, 2]))


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generators_file_needs_neither_its_run_nor_another_file(name: str, tmp_path: Path) -> None:
    """The run may be gone when a classifier is used: grey first, colours and statistics must be in the file."""
    made, path = bundle_of(learned(name)), tmp_path / "normalizer.pt"
    save_bundle(path, made)
    loaded = load_bundle(path)
    torch.testing.assert_close(loaded.normalizer(images(1)), made.normalizer(images(1)), rtol=0, atol=0)
    assert loaded.describe() == made.describe()
    assert (loaded.source, loaded.target, loaded.crop, loaded.learned) == ("violet", "giemsa", 0.8, made.learned)
    save_bundle(tmp_path / "again.pt", loaded)
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", CLASSICAL)
def test_a_classical_normalisers_file_gives_the_same_images(name: str, tmp_path: Path) -> None:
    """Raw images of tomorrow must be prepared as those that the classifier learned from."""
    made = bundle_of(CLASSICAL[name].fit(images(2), images(3)))
    save_bundle(tmp_path / "normalizer.pt", made)
    loaded = load_bundle(tmp_path / "normalizer.pt")
    assert type(loaded.normalizer) is CLASSICAL[name]
    torch.testing.assert_close(loaded.normalizer(images(1)), made.normalizer(images(1)), rtol=0, atol=0)
    assert loaded.describe() == made.describe()


def test_a_damaged_or_foreign_file_is_one_line_that_names_it(tmp_path: Path) -> None:
    """A run whose normaliser is gone bad must not score raw images without it, nor end in a traceback."""
    path = tmp_path / "normalizer.pt"
    save_bundle(path, bundle_of(learned("unet")))
    whole = torch.load(path, weights_only=True)
    weights = dict(whole["normalizer"]["weights"])
    weights.popitem()
    unknown = whole["normalizer"]["generator"] | {"colour": "blue"}
    foreign: list[object] = [
        {**whole, "normalizer": whole["normalizer"] | {"weights": weights}},
        {**whole, "normalizer": whole["normalizer"] | {"generator": unknown}},
        {**whole, "kind": "Vahadane"},
        {name: value for name, value in whole.items() if name != "format_version"},
        {name: value for name, value in whole.items() if name != "crop"},
        {**whole, "format_version": 3},
        torch.zeros(3),
    ]
    content = path.read_bytes()
    for damage in (*foreign, content[: len(content) // 2], b""):
        if isinstance(damage, bytes):
            path.write_bytes(damage)
        else:
            torch.save(damage, path)
        with pytest.raises(UserError, match="not a normaliser, or damaged") as refused:
            load_bundle(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="normalise the data set again"):
        load_bundle(tmp_path / "nowhere.pt")
