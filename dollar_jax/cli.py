"""Shared by all commands: parsing of flags, and user errors as one line with exit status 2."""

import errno
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NoReturn

from absl import app, flags, logging

from dollar_jax.config import put_named, take_named, trust_networks
from dollar_jax.errors import UserError, first_line
from dollar_jax.importing import trust

FULL = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
# Errors that a wrong path of the user can cause in any library.
PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
READ_ONLY = (errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)

_TRUST = flags.DEFINE_multi_string(
    "trust", [], "Module of a network from outside that a checkpoint may name, as in my_fork.nets: it runs. Repeatable."
)


def run(main: Callable[..., None], arguments: Sequence[str] = ()) -> None:
    """Parses the flags and runs a command; a wrong flag or a UserError becomes one line on stderr and exit status 2.

    Args:
      main: called with the positional arguments of the command line.
      arguments: names of the positional arguments.
    """
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[_TRUST.name])  # for --help
    threading.excepthook, sys.unraisablehook = _in_a_thread, _unraisable
    try:
        app.run(lambda argv: main(*argv[1:]), flags_parser=partial(_parse, arguments))
    except UserError as error:
        _stop(str(error))
    except Exception as error:
        if _says_full(error):
            _stop("the disk is full: complete files are kept; free some space and run the same command again")
        if isinstance(error, PATHS) or getattr(error, "errno", None) in READ_ONLY:
            _stop(f"{error.filename or 'a path'}: {error.strerror or error}; check the path and who may write there")
        if out_of_memory(error):
            _stop(
                f"a device has too little memory ({first_line(error)}): take a smaller batch_size, a larger accumulate"
                " or more devices; docs/memory.md has what each setting saves"
            )
        raise


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or a program for it, has too little memory: the same command would end so again."""
    return type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error)  # JAX may not be imported


def _says_full(error: BaseException) -> bool:
    # Writers of several libraries report a full disk, each in its own class, often as the cause of another error.
    return any(words in "".join(traceback.format_exception(error)) for words in FULL)


def _follows(error: BaseException) -> bool:
    """Whether an error in a library's thread is only a consequence: of a full disk, or of an event loop that ended."""
    return _says_full(error) or str(error) == "Event loop is closed"


def _in_a_thread(arguments: threading.ExceptHookArgs) -> None:
    if not _follows(arguments.exc_value):
        threading.__excepthook__(arguments)


def _unraisable(arguments: Any) -> None:
    if not _follows(arguments.exc_value):  # for instance an error in a thread of TensorStore
        sys.__unraisablehook__(arguments)


def _stop(reason: str) -> NoReturn:
    with suppress(OSError):  # a closed pipe, a full disk
        sys.stdout.flush()
    # The reason may quote a file from outside: control characters, which a terminal would obey, are removed.
    words = "".join(letter if letter.isprintable() else " " for letter in reason)
    print(f"error: {words}", file=sys.stderr)
    # os._exit, so that a library's thread that still writes cannot change the exit status.
    sys.stderr.flush()
    os._exit(2)


def required(*needed: flags.FlagHolder) -> None:
    """Raises UserError if one of the flags was not given."""
    for flag in needed:
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; see --help")


@contextmanager
def _argv(words: list[str]) -> Iterator[None]:
    """These words as the command line, for a while."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _parse(arguments: Sequence[str], argv: list[str]) -> list[str]:
    logging.set_verbosity(logging.FATAL)  # libraries also raise the errors that they log
    try:
        words, named = take_named(argv) if "config" in flags.FLAGS else (argv, [])
        with _argv(words):  # there config_flags looks for the fields that are set
            rest = flags.FLAGS(words)[1:]
        for name, flag in flags.FLAGS.flag_values_dict().items():
            if isinstance(flag, float) and not math.isfinite(flag):
                raise UserError(f"--{name}={flag} is not a finite number")
        trust(_TRUST.value)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            put_named(flags.FLAGS.config, named)  # a config that could not be loaded raises at the first access
            trust_networks(flags.FLAGS.config)
    except OSError as error:
        raise UserError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    except (AttributeError, KeyError) as error:
        field = str(error).replace("\\n", ". ").translate(str.maketrans("", "", "\\'")).strip('"')
        raise UserError(f"the config has no field {field}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(first_line(error)) from error
    except SyntaxError as error:
        raise UserError(f"--config: {error.filename}, line {error.lineno}: {error.msg}") from error
    if rest and not arguments:
        raise UserError(f"{rest[0]}: not a flag; did you mean --{rest[0]}?")
    if len(rest) != len(arguments):
        raise UserError(f"wanted {' '.join(arguments)}, got {' '.join(rest) or 'nothing'}; see --help")
    return [argv[0], *rest]
