"""The forked process of one trial, at the other end of `trainer.experiments.trial.train_forked`'s channel."""

import os
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from data_pipeline.errors import UserError
from trainer.experiments.trial import train_here


def main() -> None:
    """Train one trial in a process of its own.

    The trial is read from the connection LAUNCH_DESCRIPTOR. After each epoch its scores are sent there, and training
    continues when they are answered; if the connection is closed instead, it ends. Errors are sent there too.
    """
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
