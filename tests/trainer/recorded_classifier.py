"""launchers/train_classifier.py, which sets down the ids that it trains on: RECORDS=FOLDER in the environment.

One file for each process and each start, named by the first global batch, the number of processes and the rank; in it
one line for each micro-batch as the trainer takes it. PAUSE=SECONDS after each gives machines time to come and go.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from data_pipeline.stream.stream import MicroBatch, Stream
from launchers.console import launch
from launchers.train_classifier import main

_read = Stream.read


def recorded(stream: Stream, first_batch: int = 0) -> Iterator[MicroBatch]:
    if not stream.training:
        yield from _read(stream, first_batch)
        return
    rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    ids = stream.samples["id"].to_numpy()
    with (Path(os.environ["RECORDS"]) / f"{first_batch}-{processes}-{rank}.jsonl").open("x") as file:
        for part in _read(stream, first_batch):
            line = {"batch": part.batch, "positions": part.positions.tolist(), "ids": ids[part.rows].tolist()}
            file.write(json.dumps(line) + "\n")
            file.flush()
            yield part
            time.sleep(float(os.environ.get("PAUSE", "0")))


if __name__ == "__main__":
    Stream.read = recorded  # type: ignore[method-assign]
    launch(main, __doc__)
