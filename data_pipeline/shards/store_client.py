"""Who asks a store: waits while it does not answer, and tells so; makes one line of what it refuses.

The client libraries' own waiting is kept short: a training that stands still is to say why.
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
    # Files are read and written piece after piece: several are under way at a time as it is.
    "max_concurrency": 1,
}
_OPTIONS = {"s3": _S3_OPTIONS, "s3a": _S3_OPTIONS}
# What a network or a server in trouble says; s3fs gives EBUSY and EREMOTEIO for 503 and 500.
_TRANSIENT = {errno.EBUSY, errno.EREMOTEIO, errno.EIO, errno.EPIPE, errno.ETIMEDOUT, errno.EAGAIN}
_TRANSIENT |= {errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
# What the disk says to which an object is fetched.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class StoreClient:
    """fsspec's file system of one kind of store. It may be pickled, and used by several threads at once."""

    def __init__(self, scheme: str) -> None:
        """`scheme`: of its URLs, s3 say."""
        self.scheme = scheme
        self._opened: tuple[int, Any] | None = None
        self._lock = threading.Lock()
        self._told: float | None = None  # when a line on stderr last told that the store is away

    def __reduce__(self) -> tuple[type[StoreClient], tuple[str]]:
        return StoreClient, (self.scheme,)

    def ask(
        self, url: str, what: str, action: Callable[[Any], Result], patience: float, writes: bool = False
    ) -> Result:
        """What the action returns, once the store answers.

        UserError, which begins with the URL, when it refuses, or has been away for `patience` seconds.
        FileNotFoundError is the reader's to name; for one who writes it means that there is no such bucket.
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
        """A line on stderr, once in a while, whichever threads wait; none of a hiccup."""
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
                import fsspec  # here: it takes a while, and a data set on disk needs none of it

                options = _OPTIONS.get(self.scheme, {})
                try:
                    system = fsspec.filesystem(
                        self.scheme, skip_instance_cache=True, use_listings_cache=False, **options
                    )
                except (ValueError, ImportError) as error:
                    raise UserError(f"{url}: no store that can be read here ({_line(error)})") from None
                self._opened = (os.getpid(), system)
            return self._opened[1]


def _refusal(url: str, what: str, error: Exception) -> Exception:
    """What the user can mend as one line; a bug as it is."""
    from botocore.exceptions import BotoCoreError

    if not isinstance(error, OSError | BotoCoreError):
        return error
    return UserError(
        f"{url}: cannot {what} ({_line(error)}); see that the URL is right and that your credentials, as of "
        "the environment or ~/.aws, allow it"
    )


def _is_transient(error: Exception) -> bool:
    """Whether the same question may be answered later: nobody is there, or somebody is in trouble."""
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
    """The HTTP status of the answer that an error comes from, if it comes from one."""
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
