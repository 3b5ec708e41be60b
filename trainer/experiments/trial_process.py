"""The forked process of one trial, at the other end of `trainer.experiments.trial.train_forked`'s channel."""

import os
import pickle
import socket
import sys
import traceback
from typing import Any

from data_pipeline.errors import UserError
from trainer.experiments.trial import LONGEST_MESSAGE, Epoch, Failed, Refused, train_here


def main() -> None:
    """Train one trial in a process of its own.

    The trial is read from the socket LAUNCH_DESCRIPTOR. After each epoch its scores are sent there, and the training
    continues when they are answered; if the socket is closed instead, it ends. Errors are sent there too.
    """
    channel = socket.socket(fileno=int(os.environ["LAUNCH_DESCRIPTOR"]))
    trial, resources = pickle.loads(channel.recv(LONGEST_MESSAGE))

    def report(scores: dict[str, Any]) -> None:
        channel.send(pickle.dumps(Epoch(scores)))
        if not channel.recv(LONGEST_MESSAGE):  # closed: the scheduler stops the trial here
            sys.exit()

    try:
        train_here(trial, resources, report)
    except UserError as error:
        channel.send(pickle.dumps(Refused(str(error))))
    except Exception:
        channel.send(pickle.dumps(Failed(traceback.format_exc())))
        raise


if __name__ == "__main__":
    main()
