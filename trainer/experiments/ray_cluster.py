"""The Ray cluster that a launcher works on: an existing one, or this machine alone."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from data_pipeline.errors import UserError
from data_pipeline.threads import available_cores

# Restarts of a task whose process or node died.
RETRIES = 3
_RESOURCES = "RAY_OVERRIDE_RESOURCES"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # a run has its own log
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the sweep prints one line each
    "RAY_AIR_NEW_OUTPUT": "0",  # its table of settings is printed whatever `verbose` says
}


@contextmanager
def joined_cluster() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names or that `ray start` made this machine part of; else start a private one.

    Not address="auto", which would also find another launcher's private cluster on this machine.
    UserError if the cluster does not answer.
    """
    os.environ.update(_QUIET)
    # A private cluster would take all cores of the machine, whatever this process's affinity.
    given = os.environ.get(_RESOURCES)
    os.environ.setdefault(_RESOURCES, json.dumps({"CPU": available_cores()}))
    try:
        _knock(os.environ.get("RAY_ADDRESS", ""))
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers ({error}): start it, with RAY_AUTH_MODE=token here too if it has it, or have this "
            "machine work alone: ray stop, and no RAY_ADDRESS in the environment"
        ) from error
    finally:
        if given is None:
            del os.environ[_RESOURCES]
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """ConnectionError if nobody listens at host:port; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise ConnectionError(f"RAY_ADDRESS={address}: {error.strerror or error}") from error
