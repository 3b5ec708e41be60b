"""If these fail, a classifier sees images prepared otherwise than those that it learned from, and nobody is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from data_pipeline.errors import UserError
from data_pipeline.stream.config import StreamConfig
from trainer.tasks.classification.inference.load import TrainedClassifier
from trainer.tasks.classification.inference.raw_classifier import resolve_domain


def run(*domains: str, crop: dict[str, float] | None = None, normalizer: tuple[str, str] | None = None) -> Any:
    """What a run says of its domains."""
    through = None if normalizer is None else SimpleNamespace(source=normalizer[0], target=normalizer[1])
    if through is not None:
        through.directions = [through]
    config = SimpleNamespace(run="runs/own", data=StreamConfig(crop=crop or {}))
    return SimpleNamespace(domains=domains, config=config, normalizer=through)


@pytest.mark.parametrize(
    ("trained", "asked", "answer"),
    [
        (run("giemsa", crop={"giemsa": 0.5}), None, "giemsa"),
        (run("giemsa", crop={"giemsa": 0.5}), "giemsa", "giemsa"),
        (run("giemsa", "violet"), None, None),
        (run("giemsa", "violet"), "violet", "violet"),
        (run("giemsa", "violet", crop={"giemsa": 0.5}), None, None),  # a laboratory that it does not know
        (run("giemsa", "violet_as_giemsa", normalizer=("violet", "giemsa")), "violet", "violet"),
        (run("giemsa", "violet_as_giemsa", normalizer=("violet", "giemsa")), "giemsa", "giemsa"),
        (run(), "giemsa", "giemsa"),  # a run that tells no domain
    ],
)
def test_a_runs_only_domain_is_the_default(trained: Any, asked: str | None, answer: str | None) -> None:
    assert resolve_domain([trained], trained, asked) == answer


@pytest.mark.parametrize(
    ("trained", "asked", "says"),
    [
        (run("giemsa"), "Giemsa", "no domain 'Giemsa' here .*; use one of giemsa"),
        (run("giemsa", "violet"), "purple", "use one of giemsa, violet"),
        (run("giemsa", "violet_as_giemsa", normalizer=("violet", "giemsa")), None, "one of giemsa, violet"),
        (run("giemsa", "violet_as_giemsa", normalizer=("violet", "giemsa")), "violet_as_giemsa", "giemsa, violet"),
    ],
)
def test_an_unknown_domain_and_one_that_must_be_named_are_refused(trained: Any, asked: str | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        resolve_domain([trained], trained, asked)


def test_an_ensemble_takes_a_domain_that_one_of_its_runs_knows() -> None:
    """The others answer for it as for any laboratory that they were not trained on."""
    members = [run("giemsa"), run("violet", crop={"violet": 0.5})]
    assert [resolve_domain(members, each, None) for each in members] == ["giemsa", "violet"]
    assert [resolve_domain(members, each, "violet") for each in members] == ["violet", "violet"]
    with pytest.raises(UserError, match="use one of giemsa, violet"):
        resolve_domain(members, members[0], "purple")


def test_images_of_an_unknown_laboratory_are_cropped_as_on_average() -> None:
    """Predictions and scores alike: else what is scored is not what a user gets."""
    data = StreamConfig(crop={"giemsa": 0.64, "violet": 0.36})

    def trained(*domains: str, nucleus_share: float | None = None) -> TrainedClassifier:
        config: Any = SimpleNamespace(data=data, nucleus_share=nucleus_share)
        unused: Any = None
        return TrainedClassifier(unused, unused, config, (), "", unused, None, unused, domains)

    known = trained("giemsa", "violet")
    assert [known.crop_of(domain) for domain in ("giemsa", "violet")] == [0.64, 0.36]
    assert known.crop_of(None) == known.crop_of("purple") == pytest.approx(0.48)
    assert known.crop_of("purple", nucleus=0.3) == pytest.approx(0.48)  # its own images were not cropped by nuclei
    assert trained("giemsa").crop_of("purple") == pytest.approx(0.64)
    assert trained("purple").crop_of("purple") == trained("purple").crop_of(None) == 1.0
    scaled = trained("giemsa", nucleus_share=0.5)
    assert scaled.crop_of("purple", nucleus=0.3) == scaled.crop_of(None, nucleus=0.3) == 0.6
    assert scaled.crop_of("giemsa", nucleus=0.3) == 0.64
