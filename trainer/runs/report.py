"""The report of a run that makes images: distance to validation images, losses, sample sheets, configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.loop.algorithm import DETAIL
from trainer.loop.log import read_records
from trainer.reports import figures
from trainer.reports.page import Block, Cell, Figure, Section, Table, configuration_section, sheet_figure, write_page
from trainer.runs.run_directory import read_run_config

# Sheets shown of each series (of a type, of a direction): the first and the last ones.
_SHEETS = 3
_DISTANCE = "kernel_distance"
_SPEED = ("images_per_second", "data_wait")


def write_report(run: Path, sections: list[Section] | None = None) -> Path:
    """Write run/report.html from what the run directory holds; sections: the task's own, in front."""
    content = read_run_config(run)
    model = content.get("model", {})
    last = [sheets_section(run), losses_section(run), configuration_section(run)]
    return write_page(
        run / "report.html",
        f"Run {run.resolve().name}",
        f"{content['kind']}, {model.get('algorithm', '')}: {', '.join(content['cell_types'])}",
        [],
        [*(sections or []), *distance_sections(run), *last],
    )


def sheets_section(run: Path) -> Section:
    """Sample sheets: of each series the first and the newest."""
    series: dict[str, list[Path]] = {}
    for path in sorted((run / "samples").glob("*.png")):
        series.setdefault("".join(letter for letter in path.stem if not letter.isdigit()), []).append(path)
    blocks: list[Block] = []
    for paths in series.values():
        shown = paths if len(paths) <= _SHEETS else [paths[0], *paths[-_SHEETS + 1 :]]
        blocks += [sheet_figure(path, path.stem) for path in shown]
    return Section(
        "Samples", f"{len(blocks)} sheets of samples/." if blocks else "samples/ holds no sheet yet.", blocks
    )


def distance_sections(run: Path) -> list[Section]:
    """Kernel distance to validation images after each epoch, of the run and of what lies in its folder `adapted`."""
    blocks: list[Block] = []
    rows = []
    for folder in (run, *sorted((run / "adapted").glob("*"))):
        epochs = [record for record in read_records(folder) if record.get(f"validation_{_DISTANCE}") is not None]
        if not epochs:
            continue
        name = "the run" if folder == run else f"adapting to {folder.name}"
        blocks.append(Figure(figures.loss_terms(epochs, [f"validation_{_DISTANCE}"], name), f"Each epoch of {name}."))
        best = min(epochs, key=lambda each: float(each[f"validation_{_DISTANCE}"]))
        for moment, record in (("best", best), ("last", epochs[-1])):
            agreement = record.get("validation_agreement")
            rows.append(
                [
                    Cell(f"{name}, {moment}"),
                    Cell(str(record["step"])),
                    Cell(f"{record[f'validation_{_DISTANCE}']:.4f}"),
                    Cell("-" if agreement is None else f"{100 * agreement:.1f}"),
                ]
            )
    if not rows:
        return []
    head = ["checkpoint", "step", "kernel distance", "of the type asked for, %"]
    blocks.append(
        Table("Images are made with the best checkpoint; features=RUN adds a classifier's answers.", head, rows)
    )
    intro = "As many generated images of each type as the validation split holds, against its images."
    return [Section("Distance to validation images", intro, blocks)]


def losses_section(run: Path) -> Section:
    """Losses and gradient norms of logged steps, of the run and of what lies in its folder `adapted`."""
    blocks: list[Block] = []
    for folder in (run, *sorted((run / "adapted").glob("*"))):
        steps = read_records(folder, "step")
        if steps:
            name = "" if folder == run else f", adapting to {folder.name}"
            blocks.append(
                Figure(figures.loss_terms(steps, _terms(steps), "Loss"), f"Metrics of {len(steps)} logged steps{name}.")
            )
    return Section("Training", "" if blocks else "metrics.jsonl holds no step yet.", blocks)


def _terms(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the losses among a record's numbers."""
    return [
        name
        for name, value in steps[-1].items()
        if isinstance(value, float)
        and not name.startswith((DETAIL, "learning_rate", "gradient_norm"))
        and name not in _SPEED
    ]
