"""Start and end of every launcher: --help, arguments to a typed configuration, a user's mistake to one line."""

import errno
import io
import logging
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_pipeline.errors import UserError
from data_pipeline.threads import limit_threads, thread_share
from trainer.metrics.measures import epoch_measures
from trainer.runs.composition import CONFIGS as CONFIGS
from trainer.runs.composition import config_groups as config_groups
from trainer.runs.composition import read_config as read_config
from trainer.runs.config import RunConfig
from trainer.runs.refusal import write_refusal

if TYPE_CHECKING:
    from data_pipeline.stream.stream import Topology

TASKS = CONFIGS.parent / "trainer" / "tasks"
_LIST = r"\{([a-z_]+(?::[a-z_]+)?)\}"
# Permissions and disk space are the user's to mend; any other OSError is a bug.
_USER_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_ARGUMENTS = """arguments:
  Text is taken as it is written: folder=2023_10_05 and name=Smith,John are that folder and that name. null is none (a
  folder of that name: ./null). Lists are [a,b], tables {a: 0.5}; an element with a comma, bracket or quote in it, or a
  colon before a table's value, stands in quotes. What the shell itself reads, quote for it: "folder=my slides"."""


def launch(main: Callable[[Sequence[str]], None], documentation: str | None) -> None:
    """Run a launcher's `main` on the command line's arguments.

    `--help` prints `documentation`, its lists filled in. A UserError is printed as one line, with exit code 2;
    any other exception is a bug and keeps its traceback.
    """
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name may hold a character that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    if any(argument in ("-h", "--help") for argument in arguments):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
        print(f"{fill_lists(documentation or '').strip()}\n\n{_ARGUMENTS}")
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("nvidia.dali").setLevel(logging.ERROR)
    limit_threads(thread_share().threads)
    try:
        main(arguments)
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        place = error.filename or "a file"
        _refuse(f"{place}: {error.strerror}: make room, or name a folder that you may write to")


def fill_lists(documentation: str) -> str:
    """The documentation with each `{name}` replaced by LISTS[name](), wrapped at the column where it stands.

    A list of several lines is indented as it is.
    """

    def filled(line: str) -> str:
        place = re.search(_LIST, line)
        if place is None:
            return line
        text = re.sub(_LIST, lambda found: LISTS[found[1]](), line)
        if "\n" in text:
            return textwrap.indent(text.strip(), " " * place.start())
        return textwrap.fill(text, 120, subsequent_indent=" " * place.start(), break_on_hyphens=False)

    return "\n".join(map(filled, documentation.splitlines()))


def models_of(task: str) -> str:
    """What model= takes for a task, a folder of trainer/tasks: the names of its files in configs/model.

    A file's algorithm is the name of a file in its task's algorithms/; a file without an algorithm is a classifier's.
    """
    own = {path.stem for path in (TASKS / task / "algorithms").glob("*.py")}
    names = []
    for path in sorted((CONFIGS / "model").glob("*.yaml")):
        # Not parsed as YAML, which would take longer than all the rest of --help.
        algorithm = re.search(r"^ *algorithm: *(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
        if algorithm[1] in own if algorithm else task == "classification":
            names.append(path.stem)
    return ", ".join(names)


def _augmentations() -> str:
    from data_pipeline.stream.augment import augmentation_help

    return augmentation_help()


def _layouts() -> str:
    from data_pipeline.sources import layouts

    return "\n".join(
        f"{layout.usage + (' name=N domain=D' if not layout.public else ''):<36} {layout.help}"
        for layout in layouts().values()
    )


def _layouts_with(quality: str) -> str:
    from data_pipeline.sources import layouts

    return " and ".join(layout.keyword for layout in layouts().values() if getattr(layout, quality))


# What `{name}` in a launcher's documentation is filled with. Called by --help alone; must not import torch.
LISTS: dict[str, Callable[[], str]] = {
    "layouts": _layouts,
    "group_by_folder": partial(_layouts_with, "group_by_folder"),
    "annotated": partial(_layouts_with, "annotated"),
    "augmentations": _augmentations,
    "select_by": lambda: ", ".join(epoch_measures()),
    **{f"models:{path.parent.name}": partial(models_of, path.parent.name) for path in TASKS.glob("*/algorithms")},
}


def _refuse(message: str) -> NoReturn:
    sys.stdout.flush()
    write_refusal(message)
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def join_alone(launcher: str) -> "Topology":
    """The topology of a launcher that is one process. UserError if there are several."""
    from trainer.learners.topology import join_processes

    topology = join_processes()
    if topology.world_size > 1:
        raise UserError(f"{launcher} is one process: start it with python, not with several processes")
    return topology


def train_run(config: RunConfig, launcher: str, prepare: Callable[[int], None] | None = None) -> None:
    """What every training launcher does with its configuration: join the processes, train, print the report's path.

    prepare: called with the rank, rank 0 first, before the data set is opened.
    """
    if not config.shards or not config.run:
        raise UserError(f"{launcher} needs shards=DIR and run=DIR; see --help")
    if prepare is None:
        config.require_dataset()
    # Here, for neither --help nor a mistake need wait for torch.
    from accelerate import PartialState

    from trainer.learners.topology import join_processes, leave_processes
    from trainer.planning.micro_batch import with_found_micro_batch
    from trainer.runs.training import train

    topology = join_processes()
    if prepare is not None:
        with PartialState().main_process_first():
            prepare(topology.rank)
    run = train(with_found_micro_batch(config, topology), topology)
    leave_processes()
    if topology.rank == 0:
        print((run / "report.html").resolve())
