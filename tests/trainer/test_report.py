"""Pages: whole, self-contained, with the numbers of the files, and honest about what is missing."""

import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data_pipeline.catalog import Dataset
from data_pipeline.errors import UserError
from data_pipeline.ingest.build import build_dataset
from data_pipeline.sources import SourceDeclaration
from tests.evaluations import evaluation_of
from trainer.metrics.corruption import CorruptionRecord, CorruptionScores
from trainer.metrics.evaluation import (
    MOST_WRONG,
    RIGHT_PER_TYPE,
    ClassifierEvaluation,
    ScoredData,
    load_evaluations,
    predictions_frame,
    save_evaluation,
)
from trainer.metrics.measures import shown
from trainer.reports import gallery
from trainer.reports.gallery import write_prediction_gallery
from trainer.tasks.classification.reports.report import write_run_report

TYPES = ("basophil", "immature granulocyte", "platelet", "smudge cell")
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """What a test asks a page: its tables, its text, its addresses; fails on tags that do not close."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = dict(attrs)
        self.addresses += [str(names[key]) for key in ("src", "href", "xlink:href", "data") if key in names]
        self.ids += [str(names["id"])] if "id" in names else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += " " + data if self.tables[-1][-1][-1] else data

    def assert_self_contained(self) -> None:
        assert "script" not in self.tags
        for address in self.addresses:
            assert address.startswith(("data:image/", "#")) or re.fullmatch(
                r"gallery[-0-9]*\.html|model_card\.md", address
            )
        assert not re.search(r"url\((?!#)|@import|https?:", self.source)
        assert len(self.ids) == len(set(self.ids)), "an id twice: drawings would take each other's parts"
        assert {address[1:] for address in self.addresses if address.startswith("#")} <= set(self.ids)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten noisy cells of each type, built into a data set."""
    root = tmp_path_factory.mktemp("report")
    generator = np.random.default_rng(0)
    for cell_type in TYPES:
        (root / "raw" / cell_type).mkdir(parents=True)
        for number in range(10):
            pixels = generator.integers(0, 255, size=(40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "raw" / cell_type / f"{number}.png")
    build_dataset(root / "cells", [SourceDeclaration("folder", "lab", root / "raw", "giemsa")], progress=False)
    return Dataset.open(root / "cells")


def evaluate(run: Path, dataset: Dataset, own: bool, path: str = "", skill: float = 1.0) -> ClassifierEvaluation:
    """Score invented predictions of all samples and save them as an evaluation of the run."""
    samples = dataset.samples()
    generator = np.random.default_rng(len(path))
    labels = samples["cell_type"].map(TYPES.index).to_numpy()
    logits = generator.normal(size=(len(samples), len(TYPES)))
    logits[np.arange(len(samples)), labels] += skill
    table = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    content = hashlib.sha256(path.encode()).hexdigest() if path else dataset.content_hash
    data = ScoredData(path or str(dataset.root), content, "test", ["giemsa"], len(samples))
    not_scored = {} if own else {"monoblast": 3}
    record = evaluation_of(data, table, labels, list(samples["group"]), TYPES, not_scored=not_scored)
    save_evaluation(run, record, predictions_frame(samples, table, TYPES), own_test=own)
    return record


def write_logs(run: Path) -> None:
    lines: list[dict[str, Any]] = []
    for step in range(1, 9):
        speed = {"images_per_second": 100.0 + step, "data_wait": 0.01 * step}
        lines.append({"kind": "step", "step": step, "epoch": (step - 1) // 4, "loss": 1.0, **speed})
        if step % 4 == 0:
            shares = {"train_accuracy": 0.5 + step / 40, "validation_accuracy": 0.625}
            shares["validation_balanced_accuracy"] = 0.6 + step / 100
            losses = {"train_loss": 2.0, "validation_loss": float("nan") if step == 4 else 1.5}
            lines.append({"kind": "epoch", "step": step, "epoch": step // 4 - 1, "seconds": 90, **shares, **losses})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run / "metrics.jsonl").write_text(text + '{"kind": "step", "st')  # killed while writing
    (run / "config.yaml").write_text("model:\n  name: small<script>alert(1)</script>\n")


def test_scores_on_corrupted_images_have_a_table(dataset: Dataset, tmp_path: Path) -> None:
    record = evaluate(tmp_path, dataset, own=True)
    scores = [CorruptionScores("noise", severity, 0.9, share) for severity, share in ((1, 0.75), (2, 0.5))]
    record = dataclasses.replace(record, corruptions=CorruptionRecord.of(scores))
    (saved,) = load_evaluations(tmp_path)
    assert saved.predictions is not None
    save_evaluation(tmp_path, record, saved.predictions, own_test=True)
    page = Page(write_run_report(tmp_path))
    assert "Mean over all kinds and severities: balanced accuracy 62.5, accuracy 90.0." in page.text
    (table,) = [each for each in page.tables if each[0][0] == "corruption"]
    assert table == [["corruption", "severity 1", "severity 2"], ["noise", "75.0 90.0", "50.0 90.0"]]


def test_report_is_one_file_with_the_numbers_of_the_evaluation(dataset: Dataset, tmp_path: Path) -> None:
    """A report that loads something, or shows other numbers than were measured, cannot be handed on."""
    write_logs(tmp_path)
    record = evaluate(tmp_path, dataset, own=True)
    path = write_run_report(tmp_path)
    assert path == tmp_path / "report.html"
    page = Page(path)
    page.assert_self_contained()
    scores = record.scores
    for measure in shown("headline"):
        assert measure.format(scores[measure.name]) in page.text
        assert measure.interval(scores[measure.name]) in page.text
    (types,) = [table for table in page.tables if table[0][0] == "type"]
    for cell_type, row in zip(TYPES, types[1:], strict=True):
        expected = scores.per_type[cell_type]
        assert row[:3] == [cell_type, str(expected.count), str(expected.groups)]
        for measure, cell in zip(shown("types"), row[3:], strict=True):
            assert cell.startswith(f"{measure.format(expected[measure.name])} ")
    (confusion,) = [table for table in page.tables if table[0][0] == "true type"]
    counts = [[int(cell.split()[0]) for cell in row[2:]] for row in confusion[1:]]
    assert counts == scores.confusion
    for words in (
        dataset.content_hash[:12],
        "test split",
        "domain giemsa",
        "40 images",
        "step 88",
        "normaliser",
    ):
        assert words in page.text
    wrong = 40 - int(np.trace(np.array(counts)))
    right = sum(min(RIGHT_PER_TYPE, counts[kind][kind]) for kind in range(len(TYPES)))
    assert page.tags.count("img") == right + min(MOST_WRONG, wrong)
    assert "small<script>" in page.text  # as text, not as a script
    # Drawn: curves, throughput, bars per type, calibration, selective prediction, and bars in each card.
    assert page.tags.count("svg") == 5 + page.tags.count("img")
    assert "2 epochs, 8 steps, 3.0 minutes" in page.text


def test_every_evaluation_has_its_section_own_test_first(dataset: Dataset, tmp_path: Path) -> None:
    """A foreign data set's scores must not stand where the run's own are looked for."""
    evaluate(tmp_path, dataset, own=False, path="/elsewhere/aaa", skill=0.1)
    evaluate(tmp_path, dataset, own=False, path="/another/aaa")
    own = evaluate(tmp_path, dataset, own=True)
    page = Page(write_run_report(tmp_path))
    page.assert_self_contained()
    first, second = page.text.index("Own test split: cells"), page.text.index("Scores on aaa, test split")
    assert first < second
    assert "3 monoblast: not among the model's types" in page.text
    (summary,) = [table for table in page.tables if table[0][0] == "data"]
    assert [row[0].split(",")[0] for row in summary[1:]] == ["cells", "aaa", "aaa"]
    assert summary[1][1].startswith(own.scores["accuracy"].format())
    for gone in ("/elsewhere/aaa", "/another/aaa"):
        assert f"No pictures: the data set cannot be read. {gone}" in page.text
    assert page.text.count("picture not available") > 0


def test_a_temperature_is_shown_beside_the_network_as_trained(dataset: Dataset, tmp_path: Path) -> None:
    """Scores at a temperature that the page does not name cannot be repeated."""
    record = evaluate(tmp_path, dataset, own=True)
    calibration = dataclasses.replace(record.calibration, temperature=1.5, validation_images=44)
    frame = pd.read_parquet(tmp_path / "evaluation" / "metrics.parquet")
    save_evaluation(tmp_path, dataclasses.replace(record, calibration=calibration), frame, own_test=True)
    page = Page(write_run_report(tmp_path))
    page.assert_self_contained()
    assert "Temperature 1.500 was fitted on 44 validation images" in page.text
    assert "as trained: expected calibration error" in page.text


def test_report_does_without_what_is_missing(dataset: Dataset, tmp_path: Path) -> None:
    """A run that was stopped early, or whose data set was moved, still deserves its report."""
    page = Page(write_run_report(tmp_path))
    page.assert_self_contained()
    for words in ("has not been scored yet", "holds no epoch yet", "config.yaml is missing"):
        assert words in page.text
    evaluate(tmp_path, dataset, own=True)
    (tmp_path / "evaluation" / "metrics.parquet").write_bytes(b"PAR1 cut short")
    page = Page(write_run_report(tmp_path))
    assert "metrics.parquet cannot be read" in page.text
    assert "img" not in page.tags
    with pytest.raises(UserError, match="no run here"):
        write_run_report(tmp_path / "nothing")


def test_pictures_that_left_the_data_set_are_missed_and_named(dataset: Dataset, tmp_path: Path) -> None:
    """After an image is excluded, its card must stay without a picture instead of showing another one's."""
    record = evaluate(tmp_path, dataset, own=True)
    path = tmp_path / "evaluation" / "metrics.parquet"
    frame = pd.read_parquet(path)
    frame["id"] = ["0" * 63 + "1", *frame["id"][1:]]
    frame.loc[0, "predicted"] = next(name for name in TYPES if name != frame.loc[0, "cell_type"])
    frame.loc[0, [f"p:{name}" for name in TYPES]] = [float(name == frame.loc[0, "predicted"]) for name in TYPES]
    frame.to_parquet(path, index=False)
    page = Page(write_run_report(tmp_path))
    assert "1 pictures are missing: the data set" in page.text
    assert record.dataset.path in page.text
    assert page.text.count("picture not available") == 1


def test_report_is_the_same_twice(dataset: Dataset, tmp_path: Path) -> None:
    """A report that changes by itself cannot be compared."""
    write_logs(tmp_path)
    evaluate(tmp_path, dataset, own=True)
    first = write_run_report(tmp_path).read_bytes()
    assert write_run_report(tmp_path).read_bytes() == first
    assert not list(tmp_path.glob(".report*"))


def predictions(folder: Path, count: int) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    Image.new("RGBA", (30, 20), (200, 80, 120, 255)).save(folder / "cell & co.tiff")
    table = generator.dirichlet(np.full(len(TYPES), 0.5), size=count)
    frame = pd.DataFrame(table, columns=[f"p:{name}" for name in TYPES])
    frame["path"] = str(folder / "cell & co.tiff")
    frame["type"] = [TYPES[kind] for kind in table.argmax(axis=1)]
    frame["confidence"] = table.max(axis=1)
    return frame


def test_gallery_pages_hold_every_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand images in one file would not open; split wrongly, some would be lost."""
    monkeypatch.setattr(gallery, "CARDS_PER_PAGE", 8)
    frame = predictions(tmp_path, 30)
    frame.loc[3, "path"] = str(tmp_path / "gone.png")
    first = write_prediction_gallery(frame, tmp_path / "out")
    names = ["gallery.html", "gallery-002.html", "gallery-003.html", "gallery-004.html"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    pages = [Page(tmp_path / "out" / name) for name in names]
    assert first.name == names[0]
    for page, name in zip(pages, names, strict=True):
        page.assert_self_contained()
        assert [link for link in page.addresses if link.endswith(".html")] == [x for x in names if x != name]
    assert sum(page.tags.count("img") for page in pages) == 29
    assert sum(page.text.count("picture not available") for page in pages) == 1
    (counts,) = pages[0].tables
    assert {row[0]: int(row[1]) for row in counts[1:]} == {name: int((frame["type"] == name).sum()) for name in TYPES}
    # Written again with fewer images, no page of the old gallery stays behind.
    write_prediction_gallery(frame.iloc[:5], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gallery.html"]


def test_gallery_of_too_many_shows_the_least_certain_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page must never look complete when it is not."""
    monkeypatch.setattr(gallery, "CARDS_PER_PAGE", 5)
    monkeypatch.setattr(gallery, "MAX_PAGES", 2)
    frame = predictions(tmp_path, 40)
    page = Page(write_prediction_gallery(frame, tmp_path / "out"))
    assert re.search(r"\d+ of 40 images are shown; predictions.csv has all", page.text)
    shown = sum(Page(path).tags.count("img") for path in (tmp_path / "out").iterdir())
    assert 4 <= shown <= 10
    lowest = frame.loc[frame["type"] == TYPES[0], "confidence"].min()
    assert f"Basophil {100 * lowest:.0f} %" in page.text


def test_gallery_names_the_true_type_where_it_is_known(tmp_path: Path) -> None:
    """Figure 57's reading: the answer with its confidence, in brackets what it was."""
    frame = predictions(tmp_path, 2)
    frame[[f"p:{name}" for name in TYPES]] = [[0.29, 0.71, 0, 0], [0.998, 0.002, 0, 0]]
    frame["type"], frame["confidence"] = ["immature granulocyte", "basophil"], [0.71, 0.998]
    frame["cell_type"] = ["basophil", ""]
    page = Page(write_prediction_gallery(frame, tmp_path / "out"))
    assert "Immature granulocyte 71 % (Basophil)" in page.text
    assert "Basophil 99.8 %" in page.text
    assert page.source.count('class="card wrong"') == 1
    assert page.source.count("is-false") == 1 + 1  # the one bar, and its style


def test_gallery_into_a_file_is_one_line(tmp_path: Path) -> None:
    """A mistyped out= must not end in a traceback after an hour of predicting."""
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="cannot write the gallery"):
        write_prediction_gallery(predictions(tmp_path, 2), tmp_path / "out")
