"""What a run says while it works: a progress bar, `metrics.jsonl`, and TensorBoard as a view of it."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from data_pipeline.disk import naming, replace_through
from data_pipeline.progress_bar import progress_bar

# Of all that an algorithm tells, what stands beside the bar.
_SHOWN = ("loss", "critic", "adversarial", "cycle")


class RunLog:
    """The log of one run, on rank 0 (`enabled`); on other ranks every method is a no-op.

    It is opened at the step that the run starts or resumes from. Records of later steps are removed, so that no step
    is in the log twice, however often the run was killed.
    """

    def __init__(self, run: Path, *, step: int, total_steps: int, enabled: bool, description: str) -> None:
        self._enabled = enabled
        if not enabled:
            return
        run.mkdir(parents=True, exist_ok=True)
        records = [record for record in read_records(run) if record["step"] <= step]
        kept = "".join(json.dumps(record) + "\n" for record in records)
        replace_through(run / "metrics.jsonl", kept.encode())
        self._file = (run / "metrics.jsonl").open("a")
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        # Here: who reads the records of a run need not wait for torch.
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(run / "tensorboard"))
        for record in records:
            self._show_on_board(record)
        self._bar = progress_bar(total_steps, description, "step", initial=step)

    def advance(self) -> None:
        """Count one more step in the progress bar."""
        if self._enabled:
            self._bar.update()

    def record(self, kind: str, step: int, **values: Any) -> None:
        """Append one record: kind `step` or `epoch`, and its numbers."""
        if not self._enabled:
            return
        line = {"kind": kind, "step": step, **values}
        with naming(Path(self._file.name)):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._show_on_board(line)
        if kind == "step":
            shown = {name: f"{values[name]:.3f}" for name in _SHOWN if name in values}
            self._bar.set_postfix({**shown, "images_per_second": f"{values['images_per_second']:.0f}"})

    def say(self, text: str) -> None:
        """Print a line above the progress bar, on stderr."""
        if self._enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._enabled:
            self._bar.close()
            with naming(Path(self._file.name)):
                self._file.close()
            with naming(Path(self._board.log_dir)):
                self._board.close()

    def _show_on_board(self, record: dict[str, Any]) -> None:
        with naming(Path(self._board.log_dir)):
            for name, value in record.items():
                if name not in ("kind", "step") and isinstance(value, int | float):
                    self._board.add_scalar(f"{record['kind']}/{name}", value, record["step"])


def logged_seconds(run: Path) -> float:
    """Wall time of a training's steps as its log has it: whole epochs, or the steps between logged ones."""
    records = read_records(run)
    epochs = [record["seconds"] for record in records if record["kind"] == "epoch" and "seconds" in record]
    if epochs:
        return float(sum(epochs))
    steps = [record for record in records if record["kind"] == "step"]
    images = [0, *(record["images"] for record in steps)]
    return float(
        sum(
            (record["images"] - before) / record["images_per_second"]
            for before, record in zip(images[:-1], steps, strict=True)
        )
    )


def read_records(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The records of a run's `metrics.jsonl`; a last line that was cut short by a kill is left out.

    kind: only `step` or `epoch` records.
    """
    path = run / "metrics.jsonl"
    records = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [record for record in records if kind in (None, record["kind"])]
