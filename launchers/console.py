"""How every launcher starts and ends: arguments to a typed configuration, a user's mistake to one line."""

import errno
import io
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from data_pipeline.errors import UserError
from data_pipeline.threads import limit_threads, thread_share
from trainer.runs.composition import CONFIGS as CONFIGS
from trainer.runs.composition import config_groups as config_groups
from trainer.runs.composition import read_config as read_config
from trainer.runs.refusal import write_refusal

# Permissions and space are the user's to mend; any other refusal of the system is a bug of ours.
_USERS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_WRITING = """arguments:
  Text is taken as it is written: folder=2023_10_05 and name=Smith,John are that folder and that name. null is none (a
  folder of that name: ./null). Lists are [a,b], tables {a: 0.5}; an element with a comma, bracket or quote in it, or a
  colon before a table's value, stands in quotes. What the shell itself reads, quote for it: "folder=my slides"."""


def launch(main: Callable[[Sequence[str]], None], documentation: str | None) -> None:
    """Run a launcher's `main` on the command line's arguments.

    `--help` prints `documentation`. A UserError is printed as one line and leaves with exit code 2;
    any other exception is a bug and keeps its traceback.
    """
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold what the terminal or the log has no sign for.
        sys.stdout.reconfigure(errors="backslashreplace")
    if any(argument in ("-h", "--help") for argument in arguments):
        print(f"{(documentation or '').strip()}\n\n{_WRITING}")
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("nvidia.dali").setLevel(logging.ERROR)
    limit_threads(thread_share().threads)
    try:
        main(arguments)
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno not in _USERS_ERRORS:
            raise
        place = error.filename or "a file"
        _refuse(f"{place}: {error.strerror}: make room, or name a folder that you may write to")


def _refuse(message: str) -> NoReturn:
    sys.stdout.flush()
    write_refusal(message)
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)
