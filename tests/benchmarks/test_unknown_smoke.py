"""If this fails, nobody can check on data of their own whether unknown cells are noticed."""

from pathlib import Path

from data_pipeline.catalog import Dataset
from launchers.train_classifier import main as train
from tests.benchmarks.unknown import measure, write_pictures
from tests.launchers.test_launchers import TINY


def test_every_method_is_measured_on_everything_unknown(tiny_dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train([f"shards={tiny_dataset.address}", f"run={run}", "data.cell_types=[basophil,eosinophil]", *TINY])
    found = measure(run, tiny_dataset, ("lymphocyte",), write_pictures(tmp_path / "pictures", slides=2))
    kinds = {"left out: lymphocyte", "left out: both", "backgrounds of phantoms", "everyday pictures"}
    assert len(found["methods"]) == 8
    for scores in found["methods"].values():
        assert set(scores) == kinds
        assert all(0 <= each["value"] <= 1 for each in scores.values())
    assert set(found["sets"]) == {"LAC (Sadinle 2019)", "APS (Romano 2020)", "RAPS (Angelopoulos 2021)"}
