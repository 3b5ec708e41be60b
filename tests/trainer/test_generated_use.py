"""If these fail, generated images are shown where they should not be, or a run on more processes is another run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_pipeline.banks.balance import balance_dataset
from data_pipeline.banks.balance_config import BalanceConfig
from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.stream.sampling import GeneratedUse
from data_pipeline.stream.stream import MicroBatch, Stream, Topology
from tests.conftest import TINY_TYPES, Launch
from tests.generated_images import bank_facts, make_bank
from tests.trainer.test_training import TINY, final_state, losses
from trainer.learners.learner import Setting
from trainer.loop.log import read_records
from trainer.runs.composition import read_config
from trainer.tasks.classification.algorithms.cross_entropy import CrossEntropy
from trainer.tasks.classification.config import ClassifierRunConfig
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.classification.training.stream import training_stream

MODEL = ("model=senet_tiny_ge", "model.dropout=0")


@pytest.fixture(scope="module")
def filled(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The tiny data set with noise for basophils and eosinophils of one stain, up to 60 images of each."""
    folder = tmp_path_factory.mktemp("filled")
    make_bank(folder / "noise", 50, bank_facts(TINY_TYPES[:2], dataset_hash=tiny_dataset.content_hash))
    config = BalanceConfig(str(tiny_dataset.root), [str(folder / "noise")], str(folder / "out"), "60")
    balance_dataset(config, progress=False)
    return Dataset.open(folder / "out")


def stream_of(dataset: Dataset, *arguments: str, rank: int = 0, world_size: int = 1) -> Stream:
    config = read_config(ClassifierRunConfig, "train_classifier", [*MODEL, *TINY, *arguments])
    return training_stream(dataset, config, TINY_TYPES, Topology(rank, world_size))


def is_generated(stream: Stream, batch: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return (stream.samples["origin"].iloc[stream.rows(batch)] == "synthetic").to_numpy()


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced", "domain_balanced"])
def test_a_replaced_image_is_of_the_drawn_ones_type_and_stain(filled: Dataset, sampling: str) -> None:
    """The types are drawn as without generated images; whether one is shown follows from its place alone."""
    arguments = (f"data.sampling={sampling}", "train.synthetic.replace=0.5")
    stream = stream_of(filled, *arguments)
    real = stream_of(filled, f"data.sampling={sampling}", "train.synthetic.replace=0")
    shown, may_be = [], []
    for batch in range(100):
        rows, drawn = stream.rows(batch), real.rows(batch)
        assert not is_generated(real, batch).any()
        for column in ("cell_type", "domain"):
            assert (stream.samples[column].iloc[rows].to_numpy() == stream.samples[column].iloc[drawn].to_numpy()).all()
        made = is_generated(stream, batch)
        assert (rows[~made] == drawn[~made]).all()
        has_any = stream.samples.iloc[drawn]
        shown.append(made)
        may_be.append(((has_any["domain"] == "giemsa") & (has_any["cell_type"] != "lymphocyte")).to_numpy())
    assert np.concatenate(shown)[np.concatenate(may_be)].mean() == pytest.approx(0.5, abs=0.05)
    assert not np.concatenate(shown)[~np.concatenate(may_be)].any()
    resumed = stream_of(filled, *arguments)
    ranks = [stream_of(filled, *arguments, rank=rank, world_size=3) for rank in range(3)]
    for batch in (150, 3):
        assert (resumed.rows(batch) == stream.rows(batch)).all()
        parts = [rows for rank in ranks for rows, _ in rank.parts_of(batch)]
        assert (np.concatenate(parts) == stream.rows(batch)).all()


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_after_their_share_of_the_training_real_images_alone_are_shown(filled: Dataset, sampling: str) -> None:
    length = ("train.epochs=4", "train.iterations_per_epoch=10")
    stream = stream_of(filled, f"data.sampling={sampling}", *length, "train.synthetic.until=0.75")
    plain = stream_of(filled, f"data.sampling={sampling}", *length)
    assert all((stream.rows(batch) == plain.rows(batch)).all() for batch in range(30))
    assert sum(is_generated(stream, batch).sum() for batch in range(30)) > 30
    later = np.concatenate([stream.rows(batch) for batch in range(30, 40)])
    assert not (stream.samples["origin"].iloc[later] == "synthetic").any()
    assert len(set(later)) > 60
    shares = stream.samples["cell_type"].iloc[later].value_counts(normalize=True)
    if sampling == "class_balanced":
        assert shares.max() - shares.min() < 0.02
    part = next(iter(stream.read(32)))
    assert part.generated is not None
    assert not part.generated.any()


def test_nothing_generated_is_validated_or_tested(filled: Dataset) -> None:
    rows = filled.samples()
    assert set(rows[rows["origin"] == "synthetic"]["split"]) == {"train"}


def test_what_cannot_be_shown_is_refused(filled: Dataset) -> None:
    with pytest.raises(UserError, match=r"^train.synthetic.replace draws .* needs data.order=global"):
        stream_of(filled, "data.order=windowed", "train.synthetic.replace=0.5")
    real = filled.samples(splits=["train"], cell_types=["basophil"])
    others = filled.samples(splits=["train"])
    ids = others["id"][~others["id"].isin(real["id"][real["origin"] == "real"])].tolist()
    config = read_config(ClassifierRunConfig, "train_classifier", [*MODEL, *TINY])
    with pytest.raises(UserError, match=r"no real training image of basophil, and train.synthetic.until and replace"):
        Stream(
            filled,
            config.data,
            splits=["train"],
            cell_types=TINY_TYPES,
            ids=ids,
            global_batch=4,
            training=True,
            generated=GeneratedUse(replace=0.1),
        )


def test_a_weight_below_one_is_of_generated_images_alone(filled: Dataset) -> None:
    def gradient(weight: float, keep: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> torch.Tensor:
        config = read_config(
            ClassifierRunConfig,
            "train_classifier",
            [*MODEL, *TINY, "model.norm=group", f"train.synthetic.weight={weight}", "train.label_smoothing=0"],
        )
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        algorithm = CrossEntropy(network, config, Setting("fp32", 1, 12))
        images = torch.rand(12, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        rows = np.arange(12)[keep]
        generated = np.arange(12) % 3 == 0
        part = MicroBatch(images[keep], (torch.arange(12) % 3)[keep], rows, rows, 0, 1, generated[keep])
        loss = sum(values.sum() for weight, values in algorithm._terms(part).values() if weight)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        grad = network[1].weight.grad
        assert grad is not None
        return grad

    every, real = np.ones(12, bool), np.arange(12) % 3 != 0
    torch.testing.assert_close(gradient(0.0, every), gradient(1.0, real))
    half = (gradient(1.0, every) + gradient(1.0, real)) / 2
    torch.testing.assert_close(gradient(0.5, every), half)


def test_two_processes_keep_both_sets_of_statistics(filled: Dataset, launch: Launch, tmp_path: Path) -> None:
    """As one process on two micro-batches; the statistics are those of the first process's images, by hand."""
    arguments = (
        f"shards={filled.root}",
        *MODEL,
        *TINY,
        "model.norm=auxiliary",
        "data.sampling=class_balanced",
        "train.precision=fp32",
        "data/augment=none",
        "train.epochs=1",
    )
    for processes, micro in ((1, ["train.micro_batch=6"]), (2, [])):
        more = (*micro, "train.iterations_per_epoch=4", f"run=trained-{processes}", "optimizer.name=sgd")
        done = launch("train_classifier", *arguments, *more, processes=processes)
        assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "trained-2") == pytest.approx(losses(tmp_path / "trained-1"), rel=1e-4)
    norms = [
        [record["gradient_norm"] for record in read_records(tmp_path / f"trained-{count}") if record["kind"] == "step"]
        for count in (1, 2)
    ]
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)

    def first_part(seed: int) -> MicroBatch:
        unchanged = ("data.sampling=class_balanced", "data/augment=none", f"seed={seed}")
        return next(iter(stream_of(filled, *unchanged, world_size=2).read()))

    seed, part, made = next(
        (seed, part, part.generated)
        for seed, part in ((seed, first_part(seed)) for seed in range(20))
        if part.generated is not None and 2 <= part.generated.sum() <= 4
    )
    still = (f"seed={seed}", "train.iterations_per_epoch=1", "optimizer.learning_rate=1e-30", "run=still")
    done = launch("train_classifier", *arguments, *still, processes=2)
    assert done.returncode == 0, done.stderr
    state = final_state(tmp_path / "still")["module"]
    trained = load_classifier(tmp_path / "still")
    assert trained.config.model.norm is None
    first = next(name for name, module in trained.network.named_modules() if isinstance(module, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    trained.network.get_submodule(first).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        trained.network(part.images)
    generated = torch.from_numpy(made)
    for name, chosen in ((first, ~generated), (f"{first}.generated", generated)):
        values = seen[0][chosen]
        expected = 0.1 * values.mean((0, 2, 3))
        torch.testing.assert_close(state[f"{name}.running_mean"], expected, rtol=1e-3, atol=1e-5)
        spread = 0.9 + 0.1 * values.var((0, 2, 3))
        torch.testing.assert_close(state[f"{name}.running_var"], spread, rtol=1e-3, atol=1e-5)
