"""If these fail, a launcher that is given a URL does another work than with the folder, or ends in a traceback."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from data_pipeline.catalog import Dataset
from tests.conftest import Launch, Start
from tests.data_pipeline.raw_images import write_classes
from tests.launching import Launched
from tests.s3_server import BUCKET, S3Server, ServerProcess
from trainer.loop.checkpoint import CheckpointStore

URL = f"s3://{BUCKET}/data"
TINY = ("model=senet_tiny_ge", "data.image_size=32", "data.threads=1", "train.global_batch=12", "data.window=16")


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = CheckpointStore(run / "checkpoints").latest()
    assert checkpoint is not None
    state: dict[str, torch.Tensor] = checkpoint.load()["learners"]["classifier"]["module"]
    return state


def test_a_training_from_a_store(s3: S3Server, tiny_dataset: Dataset, launch: Launch, tmp_path: Path) -> None:
    """Two processes, an empty cache: trained, scored and reported; each shard came once; a run from a disk goes on."""
    s3.fill(tiny_dataset.root, "data")
    s3.requests.clear()
    train = (*TINY, "train.epochs=1", "cache=kept")
    done = launch("train_classifier", f"shards={URL}", "run=run", *train, processes=2, **s3.environment)
    assert done.returncode == 0, done.stderr
    fetched = s3.count("GET", ".tar")
    assert set(fetched.values()) == {1}
    assert len(fetched) == len(tiny_dataset.metadata["shards"])
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["shards"], config["cache"]) == (URL, str(tmp_path / "kept"))
    assert config["data"]["order"] == "windowed"
    assert "data:image/" in (tmp_path / "run" / "report.html").read_text()
    scores = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert scores["dataset"]["path"] == URL

    s3.requests.clear()
    done = launch("evaluate", f"run={tmp_path / 'run'}", **s3.environment)
    assert done.returncode == 0, done.stderr
    assert not s3.count("GET", ".tar")

    local = (f"shards={tiny_dataset.root}", "run=run", *train)
    refused = launch("train_classifier", *local)
    assert refused.returncode == 2
    assert "data.order" in refused.stderr
    done = launch("train_classifier", *local, "data.order=windowed")
    assert done.returncode == 0, done.stderr


def test_a_corrupted_object_is_one_line(s3: S3Server, tiny_dataset: Dataset, launch: Launch) -> None:
    s3.fill(tiny_dataset.root, "data")
    name = str(tiny_dataset.samples(splits=["train"])["shard"].iloc[0])
    content = bytearray(tiny_dataset.shard_path(name).read_bytes())
    content[1000] ^= 1
    s3.put(f"data/shards/{name}", bytes(content))
    done = launch("train_classifier", f"shards={URL}", "run=run", *TINY, "cache=kept", **s3.environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{URL}/shards/{name}: not the bytes that were written" in done.stderr.strip().splitlines()[-1]


def test_a_data_set_is_built_in_a_store(s3: S3Server, launch: Launch, tmp_path: Path) -> None:
    write_classes(tmp_path / "raw", {"basophil": 6, "monocyte": 6}, 0)
    source = ("folder=raw", "name=own", "domain=giemsa")
    for shards in (URL, "local"):
        done = launch("build_shards", f"shards={shards}", *source, "max_samples=4", "workers=2", **s3.environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().splitlines()[-1].endswith("/build_report.json")
    done = launch("build_shards", f"shards={URL}", "verify=true", **s3.environment)
    assert done.returncode == 0, done.stderr
    tars = {f"shards/{path.name}" for path in (tmp_path / "local" / "shards").iterdir()}
    assert {name for name in s3.objects("data") if name.startswith("shards/")} == tars
    done = launch("normalize_stains", f"shards={URL}", f"out={URL}2", "method=reinhard", "a=x", "b=y", **s3.environment)
    assert done.returncode == 2
    assert f"out={URL}2: written to a disk only" in done.stderr


@pytest.mark.slow
def test_the_server_is_killed_for_half_a_minute(
    tiny_dataset: Dataset, start: Start, launch: Launch, tmp_path: Path
) -> None:
    """In the middle of an epoch, with a cache too small for the data set: the run waits, says so, and loses nothing."""
    server = ServerProcess(tiny_dataset.root)
    largest = max(facts["bytes"] for facts in tiny_dataset.metadata["shards"].values())
    train = (*TINY, "train.epochs=40", "train.checkpoint_every=10", "model.dropout=0.3")
    cache = ("cache=kept", f"cache_size={3 * largest / 1e9}")
    shards = f"shards={server.url}"
    run: Launched = start("train_classifier", shards, "run=away", *train, *cache, **server.environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "away" / "metrics.jsonl").exists():
        assert run.running
        assert time.monotonic() < deadline
        time.sleep(0.1)
    server.kill()
    time.sleep(30)
    assert run.running
    server.start()
    done = run.finish()
    server.kill()
    assert done.returncode == 0, done.stderr
    assert 2 <= done.stderr.count(": no answer for ") <= 4
    assert "answers again" in done.stderr
    done = launch("train_classifier", f"shards={tiny_dataset.root}", "run=home", *train, "data.order=windowed")
    assert done.returncode == 0, done.stderr
    home = weights(tmp_path / "home")
    assert all(torch.equal(value, home[name]) for name, value in weights(tmp_path / "away").items())


@pytest.mark.slow
def test_every_launcher_reads_from_a_store(s3: S3Server, two_stains: Dataset, launch: Launch, tmp_path: Path) -> None:
    s3.fill(two_stains.root, "data")
    kept = (f"shards={URL}", "cache=kept")
    steps = ("data.threads=1", "train.iterations_per_epoch=2", "train.epochs=1")

    def done(name: str, *arguments: str) -> None:
        finished = launch(name, *arguments, **s3.environment)
        assert finished.returncode == 0, finished.stderr

    stain = ("a=giemsa", "b=violet", "data.image_size=32", "train.global_batch=6", "model.generator.width=4")
    critic = ("model.critic.width=4", "model.critic.layers=2", "model.generator.depth=3")
    done("train_stain_gan", *kept, "run=stain", *steps, *stain, *critic)
    done("normalize_stains", *kept, "out=normalized", "run=stain")
    normalized = Dataset.open(tmp_path / "normalized")
    assert normalized.in_store
    assert {facts.get("folder") for facts in normalized.metadata["shards"].values()} == {None, URL}
    small = ("data.image_size=16", "train.global_batch=6", "model.generator.width=4", "model.critic.width=4")
    done("train_conditional_gan", *kept, "run=cells", "model=dcgan", "data.domains=[giemsa]", *steps, *small)
    done("synthesize", "run=cells", "bank=bank", "count=30")
    done("balance", *kept, "banks=[bank]", "out=filled", "per_type=30")
    assert Dataset.open(tmp_path / "filled").in_store
    few = ("rare_types=[lymphocyte]", "shots=3", "train.global_batch=3", "data.image_size=32", "adaptation.images=9")
    rounds = ("model.inner.discriminator_steps=1", "model.inner.generator_steps=2", "model=figr")
    done("train_few_shot_gan", *kept, "run=few", *steps, *few, *rounds)
    # What is derived reads the rest of its images from the store.
    done("train_classifier", "shards=filled", "cache=kept", "run=filled_run", *TINY, "train.epochs=1")
    done("train_classifier", "shards=normalized", "cache=kept", "run=normalized_run", *TINY, "train.epochs=1")
    assert set(s3.count("GET", ".tar").values()) == {1}
