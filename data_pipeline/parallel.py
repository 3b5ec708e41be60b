"""Maps a function over many tasks on several cores, in order, with bounded memory."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from data_pipeline.errors import UserError
from data_pipeline.progress_bar import progress_bar
from data_pipeline.threads import limit_threads

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks submitted ahead of their turn, so that one slow task does not stall the other workers.
IN_FLIGHT_PER_WORKER = 3
_IMAGES_PER_TASK = 32
# Imported once in the server of the worker processes instead of once in every worker.
_PRELOADED = ["data_pipeline.shards.writer", "scipy.fftpack", "webdataset"]


class TaskMap(Protocol):
    """Runs the tasks of a build."""

    def __call__(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield function(task) in the order of the tasks; the first exception of a task ends the map."""


@dataclass(frozen=True)
class Work:
    """Who runs the tasks of a build."""

    workers: int = 1  # processes or threads of this machine
    progress: bool = True  # whether progress is shown
    map_tasks: TaskMap | None = None  # runs all tasks in place of this machine's workers; None: the workers

    def map(self, function: Callable[[Task], Result], tasks: Iterable[Task], count: int) -> Iterator[Result]:
        """Yield function(task) in the order of the tasks, each made when its turn comes. count: of the tasks."""
        if self.map_tasks:
            return self.map_tasks(function, tasks)
        return process_map(function, tasks, min(self.workers, count))

    def map_images(
        self, function: Callable[[Task], Result], images: Sequence[Task], description: str, in_threads: bool = False
    ) -> Iterator[Result]:
        """Yield function(image) in order, several images in one task, with a progress bar.

        in_threads: for functions that release the interpreter lock, for which no process needs to be started.
        """
        tasks = [images[start : start + _IMAGES_PER_TASK] for start in range(0, len(images), _IMAGES_PER_TASK)]
        whole = partial(_map_one_by_one, function)
        threads = in_threads and self.map_tasks is None
        results = thread_map(whole, tasks, self.workers) if threads else self.map(whole, tasks, len(tasks))
        with progress_bar(len(images), description, "image", enabled=self.progress and bool(images)) as bar:
            for part in results:
                yield from part
                bar.update(len(part))


def _map_one_by_one(function: Callable[[Task], Result], items: Sequence[Task]) -> list[Result]:
    return [function(item) for item in items]


def process_map(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield function(task) in the order of the tasks; the first exception of a task ends the map.

    One worker or one task stays in this process. Workers are forked from a server process: they share this process's
    environment but none of its locks, threads and open files, and they end when it ends, however it ends.
    """
    workers = min(workers, len(tasks)) if isinstance(tasks, Sequence) else workers
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
    """As `process_map`, in threads."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        yield from _bounded_map(pool, function, tasks, workers)


def _bounded_map(
    pool: Executor, function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
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
    """Set up a worker: it ignores Ctrl-C, and ends when its parent does instead of waiting for tasks forever."""
    os.environ.update(environment)
    limit_threads(1)  # there are as many workers as the parent may use threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
