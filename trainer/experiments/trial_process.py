"""The forked process of one trial, at the other end of `trainer.experiments.trial.train_forked`'s channel."""

import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from data_pipeline.errors import UserError
from trainer.experiments.trial import train_here


def main() -> None:
    """Train the trial that the channel names; each epoch is reported there, and goes on when that is answered."""
    channel = Connection(int(os.environ["LAUNCH_DESCRIPTOR"]))
    trial, resources = channel.recv()

    def report(scores: dict[str, Any]) -> None:
        channel.send(scores)
        try:
            channel.recv()
        except EOFError:  # closed: the scheduler stops the trial here
            sys.exit()

    try:
        train_here(trial, resources, report)
    except UserError as error:
        channel.send(error)
    except Exception:
        channel.send(RuntimeError(traceback.format_exc()))
        raise


if __name__ == "__main__":
    main()
