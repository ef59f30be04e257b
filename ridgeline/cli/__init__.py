"""The command line: parses, calls the library, prints. Nothing is computed here."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

# Importing a module registers its commands.
from ridgeline.cli import (  # noqa: F401
    advising,
    breakdown,
    calibrating,
    comparing,
    dataflows,
    gpu,
    listing,
    measuring,
    predicting,
    running,
    serving,
    sharing,
    training,
)
from ridgeline.cli.app import app
from ridgeline.errors import InputError


def main() -> None:
    """Runs the command line; bad input is one line on stderr and exit code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(standalone_mode=False)
        sys.stdout.flush()  # here, where a closed pipe is caught, and not at the interpreter's end
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        _leave_closed_pipe()
    except SystemExit as end:  # rich and click make an exit of 1 out of a closed pipe
        if isinstance(end.__context__, BrokenPipeError):
            _leave_closed_pipe()
        raise
    except OSError as error:  # a file or folder that nothing else has named
        named = f"{error.filename}: " if error.filename is not None else ""
        _fail(f"{named}{error.strerror or error}")
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's usage errors have it, nothing else does
            raise
        _fail(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _leave_closed_pipe() -> NoReturn:
    """The reader of our output has gone, which is no error of ours; nor is what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print(f"ridgeline: {message}", file=sys.stderr)
    sys.exit(2)
