"""If these fail, a bank of copies, or one judged by a classifier that learned from it, is reported as a good one."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipeline.banks.bank_writer import fill_bank
from data_pipeline.banks.derive import derive_dataset
from data_pipeline.banks.image_bank import BankFacts, ImageBank
from data_pipeline.catalog import Dataset, from_table
from data_pipeline.errors import UserError
from data_pipeline.learned_images import LearnedImages
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.stream.stream import Topology
from tests.conftest import TINY_TYPES, Launch
from tests.launching import Launched
from tests.trainer.test_report import Page
from trainer.metrics.perceptual import ClassifierPerceptualDistance
from trainer.metrics.records import read_record
from trainer.runs.feature_spaces import classifier_features
from trainer.tasks.classification.inference.load import load_classifier
from trainer.tasks.generation.evaluation import check_classifier, evaluate_bank
from trainer.tasks.generation.images import ImageReader
from trainer.tasks.generation.records import BankEvaluation, Generator, ImageCounts
from trainer.tasks.generation.scores import Judge, Judges, ScoringSettings, TypeImages
from trainer.tasks.generation.scoring import as_judge
from trainer.tasks.generation.shortcuts import Shortcuts

COUNT = 24  # images of each type
QUICK = ScoringSettings(neighbours=2, pairs=20)


def read_split(dataset: Dataset, split: str, cell_type: str, size: int = 32) -> NDArray[np.uint8]:
    """Real giemsa images uint8 [n, size, size, 3] of a type."""
    reader = ImageReader(facts_only_bank(dataset), dataset, Topology())
    images = reader.read_real(reader.real_samples(split, cell_type), size)
    return np.asarray(images.permute(0, 2, 3, 1).numpy())


class _FactsOnly:
    """What a reader of real images asks of a bank."""

    def __init__(self, made_by: dict[str, Any]) -> None:
        self.made_by, self.image_size = made_by, 32


def facts_only_bank(dataset: Dataset) -> Any:
    return _FactsOnly(made_by(dataset))


def made_by(dataset: Dataset, **data: Any) -> dict[str, Any]:
    settings = {"domains": ["giemsa"], "crop": {}, "threads": 1, "image_size": 32, **data}
    return {
        "name": "fake",
        "checkpoint": "0123456789abcdef",
        "dataset_hash": dataset.content_hash,
        "config": {"data": settings},
        "seed": 0,
    }


def make_bank(root: Path, dataset: Dataset, pictures: dict[str, NDArray[np.uint8]], **data: Any) -> ImageBank:
    """A bank that shows the given pictures of each type, over and over."""
    side = next(iter(pictures.values())).shape[1]
    facts = BankFacts(made_by(dataset, **data), "giemsa", tuple(pictures), side, 2)

    def draw(cell_type: str, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        shown = pictures[cell_type]
        return shown[indices % len(shown)], np.zeros((len(indices), 2), np.float32)

    return fill_bank(root, facts, COUNT, draw, progress=False)


@pytest.fixture(scope="module")
def classifier(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learned a little from real giemsa images."""
    folder = tmp_path_factory.mktemp("judge")
    settings = ("data.image_size=32", "data.threads=1", "train.global_batch=12", "train.epochs=6")
    arguments = (f"shards={tiny_dataset.root}", "run=run", "model=senet_tiny_ge", "data.domains=[giemsa]", *settings)
    done = Launched(folder, "train_classifier", arguments, 1, {}).finish()
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def copies(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> ImageBank:
    """Mirrored training images with slight noise: what a memorising generator makes."""
    noise = np.random.default_rng(0)
    pictures = {}
    for cell_type in TINY_TYPES:
        mirrored = read_split(tiny_dataset, "train", cell_type)[:, :, ::-1].astype(np.int64)
        pictures[cell_type] = (mirrored + noise.integers(-3, 4, mirrored.shape)).clip(0, 255).astype(np.uint8)
    return make_bank(tmp_path_factory.mktemp("copies") / "bank", tiny_dataset, pictures)


def judges(run: Path) -> Judges:
    trained = load_classifier(run)
    judge = as_judge(trained)
    return Judges(judge.features, judge, ClassifierPerceptualDistance(judge.features))


@pytest.fixture(scope="module")
def record(copies: ImageBank, tiny_dataset: Dataset, classifier: Path) -> BankEvaluation:
    path = evaluate_bank(copies, tiny_dataset, judges(classifier), Topology(), QUICK)
    return read_record(BankEvaluation, path)


def test_copies_are_found_out_in_pixels_and_in_features(record: BankEvaluation) -> None:
    """Their sets' distances are as good as can be: nothing else in the record tells."""
    of_all = record.all.memorization
    assert of_all["pixels"] is not None
    assert of_all["features"] is not None
    assert of_all["pixels"].suspicious > 0.95
    assert of_all["features"].suspicious > 0.5
    for cell_type in TINY_TYPES:
        judged = record.per_type[cell_type].memorization["pixels"]
        assert judged is not None
        assert judged.z is not None
        assert judged.suspicious > 0.95
        assert judged.z < -3
        assert judged.too_few
        psnr = [each["psnr"].mean for each in record.per_type[cell_type].nearest_real.values()]
        assert psnr[0] is not None
        assert psnr[1] is not None
        assert psnr[0] > psnr[1] + 5


def test_an_honest_bank_is_not_accused(
    tiny_dataset: Dataset, two_stains: Dataset, classifier: Path, tmp_path: Path
) -> None:
    """Cells of other slides stand for what a good generator makes."""
    pictures = {cell_type: read_split(two_stains, "train", cell_type) for cell_type in TINY_TYPES}
    bank = make_bank(tmp_path / "bank", tiny_dataset, pictures)
    done = read_record(BankEvaluation, evaluate_bank(bank, tiny_dataset, judges(classifier), Topology(), QUICK))
    found = done.all.memorization["pixels"]
    assert found is not None
    assert found.suspicious < 0.5
    for cell_type in TINY_TYPES:
        for judged in done.per_type[cell_type].memorization.values():
            assert judged is not None
            assert judged.z is not None
            assert judged.z > -3


def test_every_score_names_its_data(
    record: BankEvaluation, copies: ImageBank, tiny_dataset: Dataset, classifier: Path
) -> None:
    """A score without its data set, counts or checkpoints cannot be repeated."""
    trained = load_classifier(classifier)
    assert record.bank.content_hash == copies.content_hash
    assert record.generator == Generator("fake", tiny_dataset.content_hash, 0, learned_from_this_data_set=True)
    assert record.checkpoint.sha256 == "0123456789abcdef"
    assert record.dataset.content_hash == tiny_dataset.content_hash
    assert (record.dataset.split, record.dataset.domains) == ("test", ["giemsa"])
    assert record.classifier.checkpoint.sha256 == trained.checkpoint.digest
    assert record.feature_space == f"classifier senet_tiny_ge {trained.checkpoint.digest[:8]}"
    assert record.perceptual_distance.startswith("perceptual distance [classifier senet_tiny_ge")
    rows = tiny_dataset.samples(domains=["giemsa"], columns=["split", "cell_type"])
    for cell_type in TINY_TYPES:
        here = rows[rows["cell_type"] == cell_type]["split"].value_counts()
        assert record.per_type[cell_type].count == ImageCounts(COUNT, here["train"], here["test"])
        agreement = record.type_agreement["test"]
        assert agreement is not None
        assert agreement.per_type[cell_type].count == here["test"]
        generation = record.per_type[cell_type].generation
        assert generation is not None
        assert generation.too_few
        assert all("[classifier senet_tiny_ge" in name for name in generation.scores)
        assert generation.kernel_subset == here["test"] // 2
    agreement = record.type_agreement["generated"]
    assert agreement is not None
    assert agreement.groups == 3 * COUNT
    fewest = sum(record.per_type[cell_type].count.test for cell_type in TINY_TYPES)
    together = record.all.generation
    assert together is not None
    assert together.generated == together.real == fewest


def test_each_images_scores_are_in_the_bank(record: BankEvaluation, copies: ImageBank, classifier: Path) -> None:
    """balance.py takes the best by these: a score under another image's row would choose at random."""
    assert record
    bank, trained = ImageBank.open(copies.root), load_classifier(classifier)
    rows = np.array([4, 0, 11])
    images = torch.from_numpy(bank.images(rows)).permute(0, 3, 1, 2).float() / 127.5 - 1
    _, probabilities = classifier_features(trained)(images)
    asked = [trained.cell_types.index(bank.cell_types[label]) for label in bank.labels[rows]]
    np.testing.assert_allclose(bank.scores["type_probability"][rows], probabilities[range(3), asked], atol=1e-5)
    distance = bank.scores["training_distance"]
    assert distance.shape == (len(bank),)
    assert 0 < distance.max() < 0.05
    assert np.median(bank.scores["novelty"]) < 1, "copies of training images"
    assert bank.scores["type_likeness"].max() < 0


def test_real_images_are_read_as_the_generator_read_them(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """At another scale, or in another order, every distance would be of other images."""
    pictures = {"basophil": read_split(tiny_dataset, "train", "basophil")}
    bank = make_bank(tmp_path / "bank", tiny_dataset, pictures)
    reader = ImageReader(bank, tiny_dataset, Topology())
    shown = reader.real_samples("train", "basophil")
    torch.testing.assert_close(reader.read_generated(np.arange(len(shown))), reader.read_real(shown))
    torch.testing.assert_close(reader.read_real(shown.iloc[::-1]).flip(0), reader.read_real(shown))
    stored = reader.store_and_read(reader.read_real(shown), 32)
    difference = (stored.float() - reader.read_real(shown).float()).abs().mean()
    assert 0 < difference < 6  # once more through JPEG
    assert reader.store_and_read(stored[:3], 48).shape == (3, 3, 48, 48)
    cropped = make_bank(tmp_path / "cropped", tiny_dataset, pictures, crop={"giemsa": 0.5, "gone": 0.7})
    seen = ImageReader(cropped, tiny_dataset, Topology()).read_real(shown)
    assert (seen.float() - reader.read_real(shown).float()).abs().mean() > 5


def test_a_shortcut_of_storage_is_told_from_one_of_the_generator(tiny_dataset: Dataset, tmp_path: Path) -> None:
    """Small images that are enlarged for storage betray themselves, however good the generator: another remedy."""
    pictures = {cell_type: read_split(tiny_dataset, "train", cell_type, size=16) for cell_type in TINY_TYPES}
    bank = make_bank(tmp_path / "bank", tiny_dataset, pictures)
    reader = ImageReader(bank, tiny_dataset, Topology())
    shortcuts = Shortcuts(reader, [32], QUICK)
    for number, cell_type in enumerate(TINY_TYPES):
        rows = np.flatnonzero(bank.labels == number)
        train = reader.read_real(reader.real_samples("train", cell_type))
        shortcuts.of_type(TypeImages(cell_type, rows, reader.read_generated(rows), train, train[:0]))
    (found,) = shortcuts.over_all()
    assert found.as_stored is not None
    assert found.same_way is not None
    areas = [found.as_stored.auroc.value, found.same_way.auroc.value]
    assert areas[0] is not None
    assert areas[1] is not None
    assert areas[0] > 0.95
    assert areas[1] < 0.8


def with_synthetic(root: Path, parent: Dataset) -> Dataset:
    """The data set with one synthetic training image more."""
    kept = from_table(parent.table)
    sample = next(row for row in kept if row.split == "train" and row.domain == "giemsa" and row.kept)
    made = dataclasses.replace(
        sample, id="1" * 64, source="bank", path="one", group="bank/one", origin="synthetic", parent=""
    )
    settings = ShardSettings(**parent.metadata["settings"])
    pixels = np.full((32, 32, 3), 128, np.uint8)
    derive_dataset(
        root,
        parent,
        kept=kept,
        made=[made],
        render=lambda rows: (pixels for _ in rows),
        made_by={"name": "test"},
        settings=settings,
        progress=False,
    )
    return Dataset.open(root)


@pytest.fixture(scope="module")
def judge(classifier: Path) -> Judge:
    return as_judge(load_classifier(classifier))


def refused(judge: Judge, bank: ImageBank, dataset: Dataset) -> str:
    with pytest.raises(UserError) as told:
        check_classifier(judge, ImageReader(bank, dataset, Topology()))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_classifier_that_is_no_independent_judge_is_refused(
    judge: Judge, copies: ImageBank, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    """One that learned from generated images praises them, one that saw the test images praises those."""
    mixed = with_synthetic(tmp_path / "mixed", tiny_dataset)
    other = tmp_path / "run"
    learned = dataclasses.replace(judge, run=other)
    LearnedImages.of(mixed, {"trained": mixed.samples(splits=["train"])["id"].tolist()}).through("older").save(other)
    assert "1 of older of the images that it was trained on are synthetic" in refused(learned, copies, tiny_dataset)
    LearnedImages.of(tiny_dataset, {"trained": tiny_dataset.samples(splits=["test"])["id"].tolist()}).save(other)
    others = dataclasses.replace(judges(judge.run), classifier=learned)
    with pytest.raises(UserError, match=r"of split test .* through the classifier"):
        evaluate_bank(copies, tiny_dataset, others, Topology(), QUICK)
    fewer = dataclasses.replace(judge, cell_types=("basophil", "eosinophil"))
    assert "knows no lymphocyte" in refused(fewer, copies, tiny_dataset)
    zoomed = make_bank(
        tmp_path / "zoomed",
        tiny_dataset,
        {"basophil": read_split(tiny_dataset, "train", "basophil")},
        crop={"giemsa": 0.7},
    )
    assert "data.crop.giemsa=1.0, the bank's generator with 0.7" in refused(judge, zoomed, tiny_dataset)
    check_classifier(judge, ImageReader(copies, tiny_dataset, Topology()))


def test_the_launcher_scores_a_bank_and_writes_its_report(
    copies: ImageBank, tiny_dataset: Dataset, classifier: Path, launch: Launch
) -> None:
    done = launch("evaluate", f"bank={copies.root}", f"shards={tiny_dataset.root}", f"classifier={classifier}")
    assert done.returncode == 0, done.stderr
    report = Path(done.stdout.strip().splitlines()[-1])
    assert report == copies.root / "report.html"
    page = Page(report)
    page.assert_self_contained()
    (written,) = (copies.root / "evaluation").glob("*.json")
    record = read_record(BankEvaluation, written)
    assert page.tags.count("img") == len(TINY_TYPES) + 2
    for words in (copies.content_hash[:12], tiny_dataset.content_hash[:12], "fake", record.perceptual_distance):
        assert words in page.text
    (suspicious,) = [table for table in page.tables if "Copies, in pixels" in caption_of(page, table)]
    for cell_type, row in zip((*TINY_TYPES, "all"), suspicious[1:], strict=True):
        found = record.rows[cell_type].memorization["pixels"]
        assert found is not None
        assert row[:2] == [cell_type, f"{100 * found.suspicious:.1f} % of {found.generated}"]
    table_20 = next(table for table in page.tables if table[6:] and table[6][1] == "40.18 RMSE 1.0 %")
    ours = record.all.nearest_real["generated"]["psnr"].mean
    assert table_20[7][1] == f"{ours:.2f}"
    ImageBank.open(copies.root)


def caption_of(page: Page, table: list[list[str]]) -> str:
    position = page.tables.index(table)
    return page.source.split("<caption>")[position + 1].split("</caption>")[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bank=nowhere", "run=run"], "but not both"),
        (["bank=nowhere"], "give shards=DIR, real images, and classifier=RUN"),
        (["bank=nowhere", "shards=x", "classifier=y"], "no image bank here"),
        (["bank=nowhere", "shards=x", "classifier=y", "split=train"], "leave out split="),
    ],
)
def test_a_mistake_is_one_line(launch: Launch, arguments: list[str], words: str) -> None:
    done = launch("evaluate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
