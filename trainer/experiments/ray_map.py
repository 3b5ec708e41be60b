"""A function mapped over many tasks on the nodes of a Ray cluster, in order, as `process_map` does on one machine."""

from __future__ import annotations

import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError

from data_pipeline.disk import TEMPORARY_PREFIX
from data_pipeline.errors import UserError
from data_pipeline.parallel import IN_FLIGHT_PER_WORKER
from data_pipeline.shards.store import Root, Store
from data_pipeline.threads import limit_threads
from trainer.experiments.ray_cluster import RETRIES

Task = TypeVar("Task")
Result = TypeVar("Result")

# A running task of a failed build runs to its end: one shard at most.
_SECONDS_TO_END = 60


class RayMap:
    """Runs tasks of one data set's build, each on a core of the cluster of `joined_cluster`.

    What the tasks read and write must lie at the same path on all nodes, or in a store.
    """

    def __init__(self, root: Root) -> None:
        """root: the data set's folder, absolute, or its place in a store."""
        self._root = root

    def __call__(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Yield function(task) in the order of the tasks, with a few in flight for each core.

        A task whose process or node dies is restarted on another. The first exception of a task ends the map: UserError
        and OSError are raised as they are, a UserError of another node with its name. UserError for a node that does
        not see the data set's folder, and for a task that kills every process it runs in.
        """
        cores = int(ray.cluster_resources().get("CPU", 0))
        if not cores:
            raise UserError("no node of the Ray cluster has a core to work with: start one with ray start --num-cpus=N")
        at_node: Any = ray.remote(num_cpus=1, max_retries=RETRIES)(_at_node)
        here = ray.get_runtime_context().get_node_id()
        pending: deque[Any] = deque()
        try:
            with self._marked() as mark:
                for task in tasks:
                    pending.append(at_node.remote(function, task, mark, here))
                    if len(pending) >= cores * IN_FLIGHT_PER_WORKER:
                        yield _first(pending)
                while pending:
                    yield _first(pending)
        finally:
            # The cleanup of a failed build must come after all writes: without the mark, tasks that have not begun end
            # at once. Not by ray.cancel, which may abort this process.
            if pending:
                ray.wait(list(pending), num_returns=len(pending), timeout=_SECONDS_TO_END, fetch_local=False)

    @contextmanager
    def _marked(self) -> Iterator[Path | None]:
        """A file in the data set's folder that shows a node sees the same folder; removed when the map ends.

        None in a store, where tasks run on until this process leaves the cluster.
        """
        if isinstance(self._root, Store):
            yield None
            return
        mark = self._root / f"{TEMPORARY_PREFIX}seen-by-all-nodes-{uuid.uuid4().hex}"
        mark.touch()
        try:
            yield mark
        finally:
            mark.unlink(missing_ok=True)


def _first(pending: deque[Any]) -> Any:
    """Wait for the first of the results and remove it."""
    try:
        result = ray.get(pending[0])
    except RayTaskError as error:
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
        raise UserError(
            f"a task's process or node died {RETRIES + 1} times (out of memory, most likely; "
            f"{str(error).partition('. ')[0]}): use nodes with more memory, or start them with fewer cores"
        ) from error
    pending.popleft()
    return result


def _at_node(function: Callable[[Task], Result], task: Task, mark: Path | None, driver: str) -> Result:
    """function(task) on this node. driver: id of the node that waits for it."""
    name = socket.gethostname()
    if mark is not None and not mark.exists():
        raise UserError(
            f"{mark.parent}: node {name} does not see the data set's folder there: it and the raw images must lie on "
            "a file system that all nodes see, at the same path"
        )
    try:
        limit_threads(1)  # the core that the task has
        return function(task)
    except UserError as error:
        if ray.get_runtime_context().get_node_id() == driver:
            raise
        raise UserError(f"{error} (node {name}: it must see the raw images at the same path)") from error
