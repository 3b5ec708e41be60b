"""If these fail, a normalised data set is not what it says, or a classifier sees raw slides unprepared."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_pipeline.catalog import Dataset
from data_pipeline.learned_images import FILE, learned_by_makers
from data_pipeline.shards.verify import verify_dataset
from tests.conftest import Launch
from tests.trainer.test_stain_training import DEPTH, TINY
from trainer.runs.normalizers.bundle import FILE as BUNDLE
from trainer.runs.normalizers.bundle import load_bundle
from trainer.runs.provenance import learned_by_run

METHOD = ("a=giemsa", "b=violet", "image_size=32")
AS_VIOLET = "giemsa_as_violet"
TRAIN = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=2", "train.global_batch=12")


@pytest.fixture
def stain_run(two_stains: Dataset, launch: Launch, tmp_path: Path) -> Path:
    done = launch("train_stain_gan", f"shards={two_stains.root}", "run=stain", *TINY, DEPTH)
    assert done.returncode == 0, done.stderr
    return tmp_path / "stain"


def test_normalised_images_keep_split_and_parent_and_the_others_are_shared(
    two_stains: Dataset, stain_run: Path, launch: Launch, tmp_path: Path
) -> None:
    for processes, name in ((1, "one"), (2, "two")):
        done = launch(
            "normalize_stains", f"shards={two_stains.root}", f"run={stain_run}", f"out={name}", processes=processes
        )
        assert done.returncode == 0, done.stderr
    verify_dataset(tmp_path / "one", progress=False)
    derived = Dataset.open(tmp_path / "one")
    assert derived.content_hash == Dataset.open(tmp_path / "two").content_hash
    written = (stain_run / FILE).read_bytes()
    (stain_run / FILE).unlink()
    assert learned_by_run(stain_run).to_bytes() == written, "a run of before gives another table than one of now"
    learned = learned_by_makers(derived)
    assert set(learned.table["through"]) == {"stain (normaliser)"}
    assert set(learned.table["id"]) == set(two_stains.samples(splits=["train"])["id"])
    assert not learned.unknown
    # Another file of the same picture is found through the normalised image, too.
    assert not derived.samples()["perceptual_hash"].isna().any()
    rows, parents = derived.samples(), two_stains.samples().set_index("id")
    assert rows["domain"].value_counts().to_dict() == {"giemsa": 60, "violet_as_giemsa": 60}
    made = rows[rows["origin"] == "normalized"]
    assert set(made["parent"]) == set(parents[parents["domain"] == "violet"].index)
    for column in ("split", "fold", "group", "cell_type"):
        assert made[column].tolist() == parents.loc[made["parent"], column].tolist()
    by_reference = rows[rows["origin"] == "real"]
    assert all(derived.shard_path(name).parent == two_stains.root / "shards" for name in by_reference["shard"])


def test_thesis_policy_needs_labels_so_it_stays_out_of_held_out_splits(
    two_stains: Dataset, tiny_dataset: Dataset, launch: Launch, tmp_path: Path
) -> None:
    done = launch(
        "normalize_stains", f"shards={two_stains.root}", "out=out", "method=reinhard", "policy=thesis", *METHOD
    )
    assert done.returncode == 0, done.stderr
    rows = Dataset.open(tmp_path / "out").samples()
    made = rows[rows["origin"] == "normalized"]
    assert set(made["split"]) == {"train"}
    # Section 4.1: lymphocytes go the other way.
    directions = {("basophil", "violet_as_giemsa"), ("eosinophil", "violet_as_giemsa"), ("lymphocyte", AS_VIOLET)}
    assert set(zip(made["cell_type"], made["domain"], strict=True)) == directions
    train = ["model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.epochs=1", "train.global_batch=12"]
    assert launch("train_classifier", "shards=out", "run=run", *train).returncode == 0
    assert launch("train_classifier", f"shards={tiny_dataset.root}", "run=other", *train).returncode == 0
    refused = launch("evaluate", "run=other", "shards=out", "split=train", "domain=giemsa_as_violet")
    assert refused.returncode == 2
    assert "normalised by policy=thesis, which needed their labels" in refused.stderr


def test_a_classifier_of_normalised_images_takes_raw_ones_through_its_normaliser(
    two_stains: Dataset, launch: Launch, tmp_path: Path
) -> None:
    done = launch("normalize_stains", f"shards={two_stains.root}", "out=out", "method=reinhard_domain", *METHOD)
    assert done.returncode == 0, done.stderr
    done = launch(
        "train_classifier",
        "shards=out",
        "run=run",
        "model=senet_tiny_ge",
        "data.image_size=32",
        "data.threads=1",
        "train.epochs=2",
        "train.global_batch=12",
    )
    assert done.returncode == 0, done.stderr
    assert launch("evaluate", "run=run", "domain=violet_as_giemsa").returncode == 0
    raw = launch("evaluate", "run=run", f"shards={two_stains.root}", "domain=violet")
    assert raw.returncode == 0, raw.stderr
    folder = tmp_path / "run/evaluation"
    stored = pd.read_parquet(folder / "out-test-violet_as_giemsa.parquet").set_index("path").sort_index()
    through = pd.read_parquet(folder / "data-test-violet.parquet").set_index("path").sort_index()
    columns = [name for name in stored if name.startswith("p:")]
    # One more turn through the codec is all that lies between them.
    np.testing.assert_allclose(stored[columns], through[columns], atol=0.05)
    record = json.loads((folder / "data-test-violet.json").read_text())
    assert record["normalizer"]["name"] == "reinhard_domain"
    assert record["normalizer"]["images_it_learned_from"] == 0
    image = two_stains.root.parent / "raw" / two_stains.samples(domains=["violet"])["path"].iloc[0]
    for domain, out in (("violet", "normalized"), ("giemsa", "raw")):
        done = launch("predict", "run=run", f"images={image}", f"out={out}", f"domain={domain}")
        assert done.returncode == 0, done.stderr
    answers = [pd.read_csv(tmp_path / out / "predictions.csv") for out in ("normalized", "raw")]
    assert not np.allclose(answers[0][columns], answers[1][columns], atol=1e-3)


def test_the_thesis_s_rule_by_predicted_type_needs_no_label_of_a_slide(
    two_stains: Dataset, launch: Launch, tmp_path: Path
) -> None:
    shards = f"shards={two_stains.root}"
    assert launch("train_classifier", shards, "run=first", *TRAIN).returncode == 0
    normalize = ("normalize_stains", shards, "method=reinhard_domain", "policy=thesis_predicted", *METHOD)
    assert "go together" in launch(*normalize, "out=out").stderr
    for processes, name in ((1, "out"), (2, "two")):
        done = launch(*normalize, "classifier=first", f"out={name}", processes=processes)
        assert done.returncode == 0, done.stderr
    derived = Dataset.open(tmp_path / "out")
    assert derived.content_hash == Dataset.open(tmp_path / "two").content_hash
    assert set(learned_by_makers(derived).table["through"]) == {
        "first (names types for the normaliser)",
        "reinhard_domain (normaliser)",
    }
    rows = derived.samples()
    made = set(rows[rows["origin"] == "normalized"]["parent"])
    gates = load_bundle(derived.attachment_path(BUNDLE)).directions
    assert [(each.source, each.target) for each in gates] == [("violet", "giemsa"), ("giemsa", "violet")]
    assert all(each.gate is not None for each in gates)

    # The rule follows the first classifier's answers, on test images too.
    answers = pd.read_parquet(tmp_path / "first/evaluation/metrics.parquet")
    passes = np.where(
        answers["domain"] == "violet",
        answers["predicted"].isin(["basophil", "eosinophil"]),
        answers["predicted"] == "lymphocyte",
    )
    assert made & set(answers["id"]) == set(answers["id"][passes])

    # A classifier of the normalised images takes raw ones of both stains through it.
    done = launch("train_classifier", "shards=out", "run=run", *TRAIN)
    assert done.returncode == 0, done.stderr
    raw = launch("evaluate", "run=run", shards)
    assert raw.returncode == 0, raw.stderr
    folder = tmp_path / "run/evaluation"
    (record,) = (path for path in folder.glob("*.json") if path.name.startswith("data-test"))
    normalizer = json.loads(record.read_text())["normalizer"]
    assert {source: facts["by_type_of"]["name"] for source, facts in normalizer.items()} == dict.fromkeys(
        ("giemsa", "violet"), "senet_tiny_ge"
    )
    stored = pd.read_parquet(folder / "metrics.parquet")
    through = pd.read_parquet(record.with_suffix(".parquet")).set_index("id")
    columns = [name for name in stored if name.startswith("p:")]
    parents = stored["parent"].where(stored["parent"] != "", stored["id"])
    # One more turn through the codec is all that lies between them.
    np.testing.assert_allclose(stored[columns], through.loc[parents, columns], atol=0.05)
    image = two_stains.root.parent / "raw" / two_stains.samples(domains=["violet"])["path"].iloc[0]
    assert launch("predict", "run=run", f"images={image}", "out=named", "domain=violet").returncode == 0
    assert "name the domain of these images" in launch("predict", "run=run", f"images={image}", "out=none").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=reinhard"], "needs run=RUN, or method="),
        (["method=reinhard", "a=giemsa", "b=purple"], "no domain 'purple' here"),
        (["run=classifier"], "not a run of train_stain_gan.py"),
        (["run=nowhere"], "no config.yaml there"),
        (["method=vahadane"], "method=vahadane is none of reinhard, reinhard_domain, macenko"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(
    two_stains: Dataset, launch: Launch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "run=classifier" in arguments:
        (tmp_path / "classifier").mkdir()
        (tmp_path / "classifier/config.yaml").write_text(
            "model: {name: senet_tiny_ge}\ncell_types: [basophil]\ndataset_hash: x\n"
        )
    done = launch("normalize_stains", f"shards={two_stains.root}", "out=out", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
