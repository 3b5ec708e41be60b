"""How every launcher starts and ends: arguments to a typed configuration, a user's mistake to one line."""

import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from data_pipeline.errors import UserError
from trainer.configuration import first_line, schema_of, typed

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
Config = TypeVar("Config")
# Permissions and space are the user's to mend; any other refusal of the system is a bug of ours.
_USERS_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def launch(main: Callable[[Sequence[str]], None], documentation: str | None) -> None:
    """Run a launcher's `main` on the command line's arguments.

    `--help` prints `documentation`. A UserError is printed as one line and leaves with exit code 2;
    any other exception is a bug and keeps its traceback.
    """
    arguments = sys.argv[1:]
    if any(argument in ("-h", "--help") for argument in arguments):
        print((documentation or "").strip())
        return
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("nvidia.dali").setLevel(logging.ERROR)
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
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    sys.exit(2)


def read_config(kind: type[Config], name: str, overrides: Sequence[str]) -> Config:
    """`configs/<name>.yaml` over the dataclass `kind`, with the command line's `key=value` laid over both.

    Raises UserError for an unknown key, a wrong type, or an argument that is not key=value.
    """
    ConfigStore.instance().store(name=f"schema_{kind.__name__}", node=schema_of(kind))
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            composed = compose(name, overrides=[_quoted(override) for override in overrides])
    except HydraException as error:
        cause = error.__cause__ or error
        raise UserError(f"{first_line(cause)} (configs/{name}.yaml shows the keys)") from error
    return typed(kind, composed, "arguments")


def _quoted(override: str) -> str:
    """The override with its value in quotes where Hydra's grammar could not read it bare (a path with spaces, say)."""
    key, sign, value = override.partition("=")
    if not sign:
        raise UserError(f"{override}: arguments are written key=value")
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"{key}='{escaped}'"
    return override
