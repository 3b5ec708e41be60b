"""A function over many tasks on several cores, in order, with flat memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.threads import limit_threads

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks given out ahead of their turn: workers need not wait for one that takes longer.
IN_FLIGHT_PER_WORKER = 3
# What reading and writing images takes, imported once, in the server, instead of once in every worker.
_PRELOADED = ["data_pipeline.shards.writer", "scipy.fftpack"]


class TaskMap(Protocol):
    """Who does the tasks of a build, and where."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield function(task) in the order of the tasks; the first exception of a task ends it."""


def process_map(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """Yield function(task) in the order of the tasks; one worker or one task stays in this process.

    Workers come from a server process, not from this one: they share no lock, thread or open file with
    it, but its environment, and they end when it does, however it ends. The first exception of a task ends the map.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from map(function, tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with ProcessPoolExecutor(workers, context, initializer=_follow_parent, initargs=(dict(os.environ),)) as pool:
        try:
            yield from _bounded_map(pool, function, tasks, workers)
        except BrokenProcessPool:
            raise UserError(
                f"one of {workers} worker processes was killed (out of memory, most likely); use fewer"
            ) from None


def thread_map(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """As `process_map`, over threads: for work that lets go of the interpreter lock."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from _bounded_map(pool, function, tasks, workers)


def _bounded_map(
    pool: Executor, function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            pending.append(pool.submit(function, task))
            if len(pending) >= workers * IN_FLIGHT_PER_WORKER:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent(environment: dict[str, str]) -> None:
    """A worker leaves Ctrl-C to its parent, and ends with it: else it would wait for tasks for ever."""
    os.environ.update(environment)
    limit_threads(1)  # one of as many workers as its parent has threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
