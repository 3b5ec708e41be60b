"""Launchers as the benchmarks start them: in processes of their own, with a log each."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(launcher: str, *arguments: str, threads: str = "1", log: Path | None = None) -> None:
    """Run a launcher. Its output goes to `log`, else to a log beside its run, bank or data set."""
    named = dict(argument.split("=", 1) for argument in arguments)
    if log is None:
        place = next(named[name] for name in ("out", "bank", "run", "shards") if name in named)
        log = Path(place).with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    command = [sys.executable, str(ROOT / "launchers" / f"{launcher}.py"), *arguments]
    with log.open("w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise RuntimeError(f"{launcher}.py failed; see {log}")
