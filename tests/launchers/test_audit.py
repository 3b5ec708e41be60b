"""If these fail, a forged or leaking score passes for an honest one, or an honest one for a leak."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from data_pipeline.audit_check import Check
from data_pipeline.catalog import Dataset, Sample
from data_pipeline.errors import UserError
from data_pipeline.learned_images import FILE, LearnedImages
from tests.conftest import Launch
from tests.forged_catalog import first, forge
from tests.launchers.test_launchers import TINY, assert_refused
from tests.launching import Launched
from trainer.runs.audit import audit_run


@pytest.fixture
def data(tiny_dataset: Dataset, tmp_path: Path) -> Dataset:
    """A data set of this test's own."""
    shutil.copytree(tiny_dataset.root, tmp_path / "data")
    return Dataset.open(tmp_path / "data")


@pytest.fixture
def run(data: Dataset, launch: Launch, tmp_path: Path) -> Path:
    """A run that was trained for an epoch and scored on its own test split."""
    done = launch("train_classifier", "shards=data", "run=run", *TINY)
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


@pytest.fixture(scope="module")
def one_run(tiny_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """As `run`, on the tiny data set itself, for tests that copy the run and change nothing else."""
    folder = tmp_path_factory.mktemp("audited")
    arguments = (f"shards={tiny_dataset.root}", "run=run", *TINY)
    done = Launched(folder, "train_classifier", arguments, 1, {}).finish()
    assert done.returncode == 0, done.stderr
    return folder / "run", tiny_dataset


def test_exit_codes_lines_and_json(
    run: Path, data: Dataset, two_stains: Dataset, launch: Launch, tmp_path: Path
) -> None:
    """0 for an honest run, scored on another data set too; 1 for a leak; 2, in one line, for a mistake."""
    assert 'href="model_card.md"' in (run / "report.html").read_text()
    assert (run / "model_card.md").read_text().count("## Scores: ") == 1
    assert launch("evaluate", "run=run", f"shards={two_stains.root}", "split=all").returncode == 0
    assert (run / "model_card.md").read_text().count("## Scores: ") == 2
    done = launch("audit", "run=run", "out=audit.json")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["clean"]
    assert told["data_set"] == {"path": str(tmp_path / "data"), "content_hash": data.content_hash}
    lines = done.stdout.strip().splitlines()
    assert [line.partition(":")[0] for line in lines] == [check["name"] for check in told["checks"]]
    assert all(": ok: " in line for line in lines)
    counts = {check["name"]: check["count"] for check in told["checks"]}
    assert counts["evaluation metrics"] == len(data.samples(splits=["test"]))
    other = next(count for name, count in counts.items() if name.startswith("evaluation data-train"))
    assert other == len(two_stains.samples())

    assert_refused(launch("audit"), "shards=DIR")
    assert_refused(launch("audit", "shards=nowhere"), "nowhere", "no data set here")
    assert_refused(launch("audit", "run=nowhere"), "nowhere", "no config.yaml")
    done = launch("audit", "run=run", f"shards={two_stains.root}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_refused(launch("audit", "shards=data", "out=no/audit.json"), "no/audit.json", "its folder is not there")

    forge(data, lambda rows, _: setattr(first(rows, split="train"), "split", "test"))
    done = launch("audit", "shards=data", "out=audit.json")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "groups: FOUND 1: " in done.stdout
    told = json.loads((tmp_path / "audit.json").read_text())
    assert not told["clean"]
    assert {check["name"] for check in told["checks"] if check["status"] == "found"} == {"groups", "splits"}
    done = launch("audit", "run=run")
    assert done.returncode == 1, done.stderr
    assert "evaluation metrics: NOT CHECKED: " in done.stdout


def _checked(run: Path, data: Dataset) -> Check:
    (check,) = audit_run(run, data, Dataset.read_catalog)
    return check


def _a_training_image(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    """Under the id of a training image, with a test image's facts."""
    answers.loc[0, "id"] = data.samples(splits=["train"], cell_types=[answers.loc[0, "cell_type"]])["id"].iloc[0]
    return answers


def _twice(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    answers.loc[1] = answers.loc[0]
    return answers


def _an_invented_image(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    answers.loc[0, "id"] = "f" * 64
    return answers


def _another_label(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    answers.loc[0, "cell_type"] = next(name for name in record["cell_types"] if name != answers.loc[0, "cell_type"])
    return answers


def _hard_ones_left_out(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    return answers[1:].reset_index(drop=True)


def _more_than_there_are(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    record["dataset"]["count"] += 100
    return answers


def _another_split(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    record["dataset"]["split"] = "validation"
    return answers


def _better_scores(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    record["scores"]["confusion"][0][0] += 3
    return answers


def _better_answers(answers: pd.DataFrame, record: dict[str, Any], data: Dataset) -> pd.DataFrame:
    answers["predicted"] = answers["cell_type"]
    for row in range(len(record["cell_types"])):
        record["scores"]["confusion"][row] = [
            sum(record["scores"]["confusion"][row]) if row == column else 0
            for column in range(len(record["cell_types"]))
        ]
    return answers


@pytest.mark.parametrize(
    ("forgery", "words"),
    [
        (_a_training_image, ("was used to train or choose the classifier", "a split that was not to be scored")),
        (_twice, ("is counted twice",)),
        (_an_invented_image, ("ffffffffffffffff is not in the data set",)),
        (_another_label, (", not ",)),
        (_hard_ones_left_out, ("1 images of that split were left out", "says")),
        (_more_than_there_are, ("the record's data set says",)),
        (_another_split, ("a split that was not to be scored", "were left out")),
        (_better_scores, ("the record's confusion is not that of its predictions",)),
        (_better_answers, ("an answer is not the type of the highest probability beside it",)),
    ],
)
def test_forged_evaluation_records(
    one_run: tuple[Path, Dataset],
    tmp_path: Path,
    forgery: Callable[[pd.DataFrame, dict[str, Any], Dataset], pd.DataFrame],
    words: tuple[str, ...],
) -> None:
    source, data = one_run
    run = tmp_path / "forged"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    assert _checked(run, data).status == "ok"
    record, answers = run / "evaluation/metrics.json", run / "evaluation/metrics.parquet"
    content = json.loads(record.read_text())
    forgery(pd.read_parquet(answers), content, data).to_parquet(answers, index=False)
    record.write_text(json.dumps(content))
    check = _checked(run, data)
    assert check.status == "found"
    told = "; ".join(check.found)
    for word in words:
        assert word in told


def test_a_record_that_is_none_is_one_line(one_run: tuple[Path, Dataset], tmp_path: Path) -> None:
    """A record that cannot be read must not pass for one that was checked."""
    source, data = one_run
    run = tmp_path / "damaged"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    path = run / "evaluation/metrics.json"
    content = json.loads(path.read_text())
    del content["scores"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"metrics\.json: not an evaluation .*scores: Field required"):
        _checked(run, data)


def test_a_leak_through_what_the_run_began_with(one_run: tuple[Path, Dataset], tmp_path: Path) -> None:
    """The old run and its data set are gone; what it learned from is among the run's own files."""
    source, data = one_run
    run = tmp_path / "run"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    test = data.samples(splits=["test"])["id"].tolist()
    older = LearnedImages.of(data, {"trained": test[:1]})
    mirrored = nearly_the_same(older.table["perceptual_hash"].iloc[0])
    copy = LearnedImages(older.table.assign(id="f" * 64, group="lab/P1", source="lab", perceptual_hash=mirrored))
    own = LearnedImages.load(run / FILE)
    LearnedImages.joined([own, copy.through("runs/older (model.weights=)")]).save(run)
    check = _checked(run, data)
    assert check.status == "found"
    assert f"{test[0][:16]} " in "; ".join(check.found)
    assert all(line.endswith("through runs/older (model.weights=)") for line in check.found)
    unknown = LearnedImages.unknown_because("nobody knows").through("weights.pt (model.weights=)")
    LearnedImages.joined([own, unknown]).save(run)
    check = _checked(run, data)
    assert (check.status, check.unknown) == ("unchecked", "weights.pt (model.weights=): nobody knows")
    # Without the data set that was scored, files are known by their ids.
    LearnedImages.joined([own, older]).save(run)
    content = json.loads((run / "evaluation/metrics.json").read_text())
    content["dataset"] |= {"path": "nowhere", "content_hash": "e" * 64}
    (run / "evaluation/metrics.json").write_text(json.dumps(content))
    check = _checked(run, data)
    assert check.found[0].startswith(test[0][:16])
    assert "nowhere" in check.unknown


def nearly_the_same(perceptual_hash: bytes) -> bytes:
    """Of the mirrored picture: every second column of bits flipped; and of a copy, three bits more."""
    bits = np.unpackbits(np.frombuffer(perceptual_hash, np.uint8)).reshape(16, 16)
    bits[:, 1::2] ^= 1
    bits[3, :3] ^= 1
    return np.packbits(bits).tobytes()


def test_what_cannot_be_looked_up_is_said(one_run: tuple[Path, Dataset], tmp_path: Path) -> None:
    source, data = one_run
    run = tmp_path / "run"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    record = run / "evaluation/metrics.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"dataset": {**content["dataset"], "content_hash": "e" * 64}}))
    assert "is another data set now" in _checked(run, data).unknown
    moved = {**content["dataset"], "content_hash": "e" * 64, "path": "nowhere"}
    record.write_text(json.dumps(content | {"dataset": moved}))
    assert "no data set here" in _checked(run, data).unknown
    record.write_text(json.dumps(content))
    (run / "evaluation/metrics.parquet").unlink()
    check = _checked(run, data)
    assert (check.status, check.count) == ("unchecked", 0)
    assert "NOT CHECKED: metrics.parquet" in check.line


@pytest.mark.parametrize(
    ("origin", "made_by", "words"),
    [
        ("synthetic", "build_shards", "is synthetic"),
        ("normalized", {"tool": "normalize_stains", "policy": "to_a"}, "the record names no normaliser"),
        ("normalized", {"tool": "normalize_stains", "policy": "thesis"}, "was normalised by its label"),
    ],
)
def test_images_that_may_not_be_scored(
    one_run: tuple[Path, Dataset], tmp_path: Path, origin: str, made_by: Any, words: str
) -> None:
    """The catalogue tells what the record hides."""
    source, data = one_run
    run = tmp_path / "run"
    shutil.copytree(source, run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    shutil.copytree(data.root, tmp_path / "made")

    def change(rows: list[Sample], metadata: dict[str, Any]) -> None:
        first(rows, split="test").origin = origin
        metadata["made_by"] = made_by

    made = forge(Dataset.open(tmp_path / "made"), change)
    record = run / "evaluation/metrics.json"
    content = json.loads(record.read_text())
    content["dataset"] |= {"content_hash": made.content_hash, "path": made.address}
    record.write_text(json.dumps(content))
    check = _checked(run, data)
    assert len(check.found) >= 1
    assert words in "; ".join(check.found)
