"""The product on a GPU, in parts that each keep what they have measured: made to be stopped, and given again.

usage: python -m tests.benchmarks.gpu out=DIR data=DIR [minutes=9] [parts=NAME,NAME] [key=value ...]
  out=DIR                 right.json, loader.json, ...: each row is there as soon as it ends; log.txt; the run's report
  data=DIR                what python -m tests.benchmarks.gpu.data has made (tests/benchmarks/gpu_pack.sh packs it)
  minutes=9               the whole command ends by then; a part's unused minutes go to those after it
  parts=...               in this order:
    right       (2 min)   the tests in tests/gpu
    loader      (2 min)   images/s of the stream, its ceilings and other loaders, 360 and 256 px JPEG to 224 px
    classifier  (2 min)   images/s, share of the peak and memory against timm's loop, from the stream and without it
    gans        (1 min)   steps/s, memory and phases of a step of each
    result      (2 min)   a classifier of Barcelona's images: as many passes as there is time for, score, report
  work=DIR                for runs and copies of images; default: out=DIR with .work behind
  image_size=224          of all parts
  seconds=2 repeats=2     how long each speed is timed, and how often a loader's
  loader_batch=256 workers=0   of the loaders; 0: a worker or thread for each core
  models=senet154_ge,resnet50 batch=64 precision=auto   of the classifier part
  compile=true            compiled networks too, last of all
  memory_cap=8 capped_micro_batch=16   GiB that torch may take of the GPU in the rows with a cap
  gans=NAME,NAME gan_steps=5 gan_settings=KEY=VALUE,...   of configs/model/; settings are laid over each
  result_model=senet154_ge result_domain=barcelona weights=FILE result_settings=KEY=VALUE,...
  result_steps=0          of each third of the training; 0: as many as there is time for

Stopped at any moment and given again with the same options, it goes on with the rows that are missing. Each part is
a process of its own: one that hangs is ended at its limit, one that crashes is started again for its other rows.
Without a GPU everything is measured on the CPU.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from data_pipeline.errors import UserError
from launchers.console import launch
from tests.benchmarks.gpu.options import Options
from tests.benchmarks.gpu.parts import MINUTES, measure_part, processes
from tests.benchmarks.gpu.rows import Record
from trainer.runs.configuration import typed

# A part whose process so often ended by itself is left.
_MOST_STARTS = 3


def main(arguments: Sequence[str]) -> None:
    options = typed(Options, dict(argument.split("=", 1) for argument in arguments), "arguments")
    if not options.out or not options.data:
        raise UserError("give out=DIR and data=DIR (python -m tests.benchmarks.gpu.data makes one)")
    if not Path(options.data).is_dir():
        raise UserError(f"data={options.data}: no such folder: python -m tests.benchmarks.gpu.data makes one")
    chosen = options.parts.split(",")
    unknown = [name for name in chosen if name not in MINUTES]
    if unknown:
        raise UserError(f"parts={unknown[0]}: use some of {', '.join(MINUTES)}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    options.work_folder.mkdir(parents=True, exist_ok=True)
    records = {name: _record(options, name) for name in chosen}
    for record in records.values():
        record.start_again()
        record.write()
    sys.exit(_run(options, chosen))


def _run(options: Options, chosen: list[str]) -> int:
    """All parts in turn; the exit code: 1 where something failed."""
    end = time.monotonic() + 60 * options.minutes
    total = sum(MINUTES[name] for name in chosen)
    print(f"{_device()}; {options.minutes:g} minutes:", flush=True)
    for name in chosen:
        done = len(_record(options, name).content["rows"])
        before = f", {done} rows are there already" if done else ""
        print(f"  {name}: {options.minutes * MINUTES[name] / total:.1f} minutes{before}", flush=True)
    for number, name in enumerate(chosen):
        if _record(options, name).complete:
            continue
        later = sum(MINUTES[other] for other in chosen[number:])
        now = time.monotonic()
        _run_part(options, name, now + (end - now) * MINUTES[name] / later)
    missing = [line for name in chosen for line in _not_measured(name, _record(options, name))]
    print("\n".join(["not measured:", *missing] if missing else ["everything was measured"]))
    print(Path(options.out).resolve())
    return int(any(_record(options, name).content["failed"] for name in chosen))


def _run_part(options: Options, name: str, deadline: float) -> None:
    """One part, in a process of its own, until the deadline."""
    for _ in range(_MOST_STARTS):
        print(f"{name}: {max(deadline - time.monotonic(), 0) / 60:.1f} minutes", flush=True)
        process = processes().Process(target=measure_part, args=(name, options, deadline))
        process.start()
        process.join(max(deadline - time.monotonic(), 0))
        ended = process.exitcode
        # The part leads a group, its loader processes with it: none of them may go on beside the next part.
        with suppress(ProcessLookupError):
            os.killpg(int(process.pid or 0), signal.SIGKILL)
        process.kill()
        process.join()
        if ended is None:
            print(f"{name}: stopped at its limit", flush=True)
        if ended is None or ended == 0:
            return
        print(f"{name}: its process ended with {ended}; see log.txt", flush=True)


def _record(options: Options, name: str) -> Record:
    return Record(Path(options.out) / f"{name}.json", options.measured())


def _not_measured(name: str, record: Record) -> list[str]:
    content = record.content
    lines = [f"  {name}: {row}: {error}" for row, error in content["failed"].items()]
    if content["planned"] is None:
        return [*lines, f"  {name}: nothing; it did not come to its first row, see log.txt"]
    for row in record.missing(content["planned"]):
        cut_off = "cut off" if row in content["attempts"] else "no time"
        lines.append(f"  {name}: {row}: {content['left_out'].get(row, cut_off)}")
    return lines


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, all on the CPU"


if __name__ == "__main__":
    launch(main, __doc__)
