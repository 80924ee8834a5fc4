"""What the commands share: flags in, one line and exit status 2 for a mistake of the user's."""

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

from absl import app, flags, logging

from dollar_jax.importing import UserError

FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


def run(main: Callable[..., None], arguments: Sequence[str] = ()) -> None:
    """Parses the flags and runs a command; a wrong flag or a UserError is one line on stderr and exit status 2.

    Args:
      main: called with what stands on the command line beside the flags.
      arguments: the names of these.
    """
    try:
        app.run(lambda argv: main(*argv[1:]), flags_parser=partial(_parse, arguments))
    except UserError as error:
        _stop(str(error))
    except Exception as error:
        # Writers of several libraries report a full disk, each in its own class, often as the cause of another error.
        if not any(words in "".join(traceback.format_exception(error)) for words in FULL):
            raise
        _stop("the disk is full: what was complete is kept; free some space and run the same command again")


def _stop(reason: str) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    # A library's thread that still tries to write must not turn this into another exit status.
    sys.stderr.flush()
    os._exit(2)


def required(*needed: flags.FlagHolder) -> None:
    """Raises UserError if one of the flags was not given."""
    for flag in needed:
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; see --help")


def _parse(arguments: Sequence[str], argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.ERROR)
    try:
        rest = flags.FLAGS(argv)[1:]
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.get  # noqa: B018 a config that could not be loaded raises when it is touched
    except OSError as error:
        raise UserError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    except (AttributeError, KeyError) as error:
        field = str(error).replace("\\n", ". ").translate(str.maketrans("", "", "\\'")).strip('"')
        raise UserError(f"the config has no field {field}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error).splitlines()[0]) from error
    if rest and not arguments:
        raise UserError(f"{rest[0]}: not a flag; did you mean --{rest[0]}?")
    if len(rest) != len(arguments):
        raise UserError(f"wanted {' '.join(arguments)}, got {' '.join(rest) or 'nothing'}; see --help")
    return [argv[0], *rest]
