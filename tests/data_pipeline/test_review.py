"""If these fail, an expert's decisions are lost, applied to the wrong image, or guessed where two experts differ."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import cohen_kappa_score

from data_pipeline.catalog import Dataset, Sample, from_table
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.ingest.build_report import format_report
from data_pipeline.shards.verify import verify_dataset
from data_pipeline.shards.writer import ShardSettings
from data_pipeline.sources import SourceDeclaration
from tests.data_pipeline.raw_images import encoded, files_below, folder_source, write_classes

COLUMNS = ["id", "source", "path", "label", "decision", "cell_type", "reason", "reviewer"]


def build(root: Path, *sources: SourceDeclaration, **options: Any) -> dict[str, Any]:
    return build_dataset(root, sources, progress=False, settings=ShardSettings(max_samples=8), **options)


def decided(row: Sample, cell_type: str = "", reason: str = "", reviewer: str = "AB") -> dict[str, str]:
    """A line of the CSV about an image."""
    decision = "exclude" if reason else "right" if cell_type == row.cell_type else "wrong"
    values = (row.id, row.source, row.path, row.cell_type, decision, cell_type, reason, reviewer)
    return dict(zip(COLUMNS, values, strict=True))


def write(path: Path, lines: Sequence[Mapping[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return path


def by_path(root: Path) -> dict[str, Sample]:
    return {row.path: row for row in from_table(Dataset.open(root).table)}


@pytest.fixture
def cells(tmp_path: Path) -> SourceDeclaration:
    write_classes(tmp_path / "raw", {"basophil": 16, "monocyte": 16}, 0)
    return folder_source(tmp_path / "raw", "raw")


def test_decisions_reach_the_data_set_and_only_the_shards_concerned_change(
    cells: SourceDeclaration, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    build(root, cells)
    before, shards = by_path(root), set(Dataset.open(root).metadata["shards"])
    wrong, bad, right = (before[f"basophil/{number:04}.jpg"] for number in (0, 1, 2))
    labels = write(tmp_path / "labels.csv", [decided(wrong, "monocyte"), decided(right, "basophil")])
    report = build(root, review=[labels])
    corrected = by_path(root)[wrong.path]
    assert (corrected.cell_type, corrected.kept, corrected.source_label) == ("monocyte", True, "basophil")
    assert corrected.reason == "corrected label: was basophil (AB)"
    assert (report["corrected_labels"], report["excluded"]) == (1, 0)
    assert "1 labels corrected by experts" in format_report(report)
    assert shards - set(Dataset.open(root).metadata["shards"]) == {wrong.shard}
    report = build(root, review=[write(tmp_path / "bad.csv", [decided(bad, reason="out of focus, twice")])])
    excluded = by_path(root)[bad.path]
    assert (excluded.status, excluded.reason) == ("excluded", "expert's review: out of focus, twice (AB)")
    assert report["excluded_by_reason"] == {"expert's review": 1}
    assert report["shards_kept"] > 0
    verify_dataset(root, progress=False)
    assert build(root)["shards_written"] == 0, "remembered without the file"
    whole = files_below(root)
    build(tmp_path / "anew", cells, review=[labels])
    build(tmp_path / "anew", review=[tmp_path / "bad.csv"])
    assert files_below(tmp_path / "anew") == whole


def test_a_later_decision_replaces_an_earlier_one_and_adds_to_the_others(
    cells: SourceDeclaration, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    build(root, cells)
    one, other = (by_path(root)[f"basophil/000{number}.jpg"] for number in (0, 1))
    build(root, review=[write(tmp_path / "1.csv", [decided(one, "monocyte"), decided(other, reason="no cell")])])
    one, other = (by_path(root)[row.path] for row in (one, other))
    # The page shows the corrected label now; an excluded image that is called right comes back.
    build(root, review=[write(tmp_path / "2.csv", [decided(one, "eosinophil")])])
    assert by_path(root)[one.path].cell_type == "eosinophil"
    assert by_path(root)[one.path].reason.startswith("corrected label: was basophil")
    assert not by_path(root)[other.path].kept, "an earlier decision was lost"
    build(root, review=[write(tmp_path / "3.csv", [decided(other, "basophil")])])
    assert by_path(root)[other.path].kept
    build(root, review=[])
    assert by_path(root)[one.path].cell_type == "basophil"
    assert by_path(root)[one.path].reason == ""


def test_an_expert_settles_a_conflict_of_labels(cells: SourceDeclaration, tmp_path: Path) -> None:
    """The same file under two labels: both are left out until somebody says what it is."""
    (cells.root / "monocyte" / "copy.jpg").write_bytes(encoded(3))
    root = tmp_path / "data"
    assert build(root, cells)["excluded_by_reason"] == {"conflicting labels": 2}
    line = decided(by_path(root)["basophil/0003.jpg"], "monocyte") | {"label": ""}
    report = build(root, review=[write(tmp_path / "A.csv", [line])])
    assert report["excluded_by_reason"] == {"duplicate": 1}
    kept = [row for row in from_table(Dataset.open(root).table) if row.id == line["id"] and row.kept]
    assert [row.cell_type for row in kept] == ["monocyte"]


def test_two_experts_agreement_is_told_and_nothing_is_guessed(cells: SourceDeclaration, tmp_path: Path) -> None:
    root = tmp_path / "data"
    build(root, cells)
    rows = [by_path(root)[f"basophil/{number:04}.jpg"] for number in range(6)]
    verdicts = {
        "A": ["basophil", "monocyte", "monocyte", "excluded", "excluded", "monocyte"],
        "B": ["basophil", "monocyte", "eosinophil", "excluded", "basophil"],
    }
    paths = []
    for name, given in verdicts.items():
        lines = [
            decided(row, "", "no cell", name) if verdict == "excluded" else decided(row, verdict, "", name)
            for row, verdict in zip(rows, given, strict=False)
        ]
        paths.append(write(tmp_path / f"{name}.csv", lines))
    report = build(root, review=paths)
    (agreement,) = report["agreements"]
    assert (agreement["images"], agreement["same"]) == (5, 3)
    assert agreement["kappa"] == pytest.approx(cohen_kappa_score(verdicts["A"][:5], verdicts["B"]))
    text = format_report(report)
    assert "A.csv and B.csv: 5 images decided by both, 3 of them alike; Cohen's kappa" in text
    assert "raw:basophil/0002.jpg: A.csv: monocyte, B.csv: eosinophil" in text
    after = by_path(root)
    assert [after[row.path].cell_type for row in rows] == ["basophil", "monocyte", *["basophil"] * 3, "monocyte"]
    assert [after[row.path].kept for row in rows] == [True, True, True, False, True, True]
    assert after[rows[3].path].reason == "expert's review: no cell (A, B)"


def test_decisions_that_do_not_belong_here_change_nothing(cells: SourceDeclaration, tmp_path: Path) -> None:
    root = tmp_path / "data"
    build(root, cells)
    row = by_path(root)["basophil/0000.jpg"]
    whole = files_below(root)
    line = decided(row, "monocyte")
    foreign = line | {"id": "0" * 64}
    cases = {
        "they are of another one": [foreign],
        "was shown as eosinophil, but is basophil": [line | {"label": "eosinophil"}],
        "line 2: 'abc' is no id": [line | {"id": "abc"}],
        "line 3: the decision 'maybe' is none of right, wrong, exclude": [line, line | {"decision": "maybe"}],
        "'monocite' is no cell type": [line | {"cell_type": "monocite"}],
        "excluded without a reason": [line | {"decision": "exclude"}],
        "does not say what it is": [line | {"cell_type": ""}],
        "another decision further up": [line, line | {"cell_type": "eosinophil"}],
        "no decision in it": [],
    }
    for says, lines in cases.items():
        path = write(tmp_path / "A.csv", lines)
        with pytest.raises(UserError, match=says) as caught:
            build(root, review=[path])
        assert "\n" not in str(caught.value)
    whole_file = write(path, [line]).read_bytes()
    for damaged in (whole_file[: len(whole_file) - 60], whole_file.replace(b"cell_type", b"cell"), b"", b"\0" * 100):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"A\.csv"):
            build(root, review=[path])
    assert files_below(root) == whole
    # One image is gone since: the other decisions are still worth something.
    report = build(root, review=[write(path, [line, foreign])])
    assert by_path(root)[row.path].cell_type == "monocyte"
    assert any("1 decision(s) of experts are about no image here" in warning for warning in report["warnings"])


def test_a_label_that_the_source_changed_later_is_not_overruled_in_silence(
    cells: SourceDeclaration, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    build(root, cells)
    row = by_path(root)["basophil/0000.jpg"]
    build(root, review=[write(tmp_path / "A.csv", [decided(row, "monocyte")])])
    (cells.root / "platelet").mkdir()
    (cells.root / row.path).rename(cells.root / "platelet/0000.jpg")
    report = build(root)
    assert by_path(root)["platelet/0000.jpg"].cell_type == "platelet"
    assert any("the labels were changed since" in warning for warning in report["warnings"])
