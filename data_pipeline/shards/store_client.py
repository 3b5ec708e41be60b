"""Requests to a store: repeated, with a line on stderr, while it does not answer; a refusal becomes one line.

The client libraries' own retries are kept short, so that a training that waits says why.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipeline.errors import UserError

Result = TypeVar("Result")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0
_SECONDS_BETWEEN_LINES = 15.0
_S3_OPTIONS: dict[str, Any] = {
    "config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"total_max_attempts": 1}},
    "max_concurrency": 1,  # of the parts of one file: several files are transferred at a time anyway
}
_OPTIONS = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}
# Errors of a network or a server that may pass; s3fs gives EBUSY and EREMOTEIO for 503 and 500.
_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.EIO, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN}
_TRANSIENT |= {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
# Errors of the disk that an object is fetched to.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class StoreClient:
    """fsspec's file system of one kind of store. It may be pickled, and used by several threads at once."""

    def __init__(self, scheme: str) -> None:
        """scheme: of its URLs, such as s3."""
        self.scheme = scheme
        self._opened: tuple[int, Any] | None = None
        self._lock = threading.Lock()
        self._told: float | None = None  # when a line on stderr last said that the store does not answer

    def __reduce__(self) -> tuple[type[StoreClient], tuple[str]]:
        return StoreClient, (self.scheme,)

    def ask(
        self, url: str, what: str, action: Callable[[Any], Result], patience: float, writes: bool = False
    ) -> Result:
        """Result of the action, repeated until the store answers.

        UserError when it refuses, or has not answered for `patience` seconds. FileNotFoundError of a reader is passed
        on; for a writer it means that the bucket does not exist.
        """
        first_failure, pause = None, _FIRST_PAUSE
        while True:
            try:
                answer = action(self._system(url))
            except UserError:
                raise
            except Exception as error:
                if isinstance(error, FileNotFoundError) and not writes:
                    raise
                if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
                    raise
                if not _is_transient(error):
                    raise _refusal(url, what, error) from error
                first_failure = first_failure or time.monotonic()
                away = time.monotonic() - first_failure
                if away + pause > patience:
                    raise UserError(
                        f"{url}: cannot {what}: the store has not answered for {away:.0f} s ({_line(error)}); see "
                        "that it runs and can be reached (AWS_ENDPOINT_URL, network), then start again"
                    ) from None
                self._tell_absence(f"{url}: no answer for {away:.0f} s ({_line(error)}); trying again", away)
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                self._tell_return(url)
                return answer

    def _tell_absence(self, line: str, away: float) -> None:
        """At most one line every _SECONDS_BETWEEN_LINES, from all threads; none in the first second."""
        with self._lock:
            now = time.monotonic()
            if away < 1 or (self._told is not None and now - self._told < _SECONDS_BETWEEN_LINES):
                return
            self._told = now
        print(line, file=sys.stderr, flush=True)

    def _tell_return(self, url: str) -> None:
        with self._lock:
            told, self._told = self._told, None
        if told is not None:
            print(f"{url}: answers again", file=sys.stderr, flush=True)

    def _system(self, url: str) -> Any:
        """The file system, opened once in each process."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                import fsspec  # here: slow, and not needed for a data set on a disk

                options = _OPTIONS.get(self.scheme, {})
                try:
                    system = fsspec.filesystem(
                        self.scheme, skip_instance_cache=True, use_listings_cache=False, **options
                    )
                except (ValueError, ImportError) as error:
                    raise UserError(
                        f"{url}: no store that can be read here ({_line(error)}): correct the URL, or install the "
                        "fsspec package of this kind of store"
                    ) from None
                self._opened = (os.getpid(), system)
            return self._opened[1]


def _refusal(url: str, what: str, error: Exception) -> Exception:
    """One line for an error of the store or the system; any other error, a bug, as it is."""
    from botocore.exceptions import BotoCoreError

    if not isinstance(error, OSError | BotoCoreError):
        return error
    return UserError(
        f"{url}: cannot {what} ({_line(error)}); see that the URL is right and that your credentials, as of "
        "the environment or ~/.aws, allow it"
    )


def _is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later: no answer, or a server error."""
    from aiohttp import ClientError
    from botocore.exceptions import ConnectionError as BotocoreConnectionError
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    status = status_of(error)
    if status is not None:
        return (status >= 500 and status != 501) or status in (408, 429)
    if isinstance(error, OSError) and error.errno in _TRANSIENT:
        return True
    away = (ConnectionError, TimeoutError, ClientError, BotocoreConnectionError, HTTPClientError, IncompleteReadError)
    return isinstance(error, away)


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error; None for none."""
    while error is not None:
        response = getattr(error, "response", None)
        told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
        for status in (told, getattr(error, "status", None), getattr(error, "code", None)):
            if isinstance(status, int) and 400 <= status < 600:
                return status
        error = error.__cause__
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
