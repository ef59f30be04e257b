"""A path that a long command writes to at its end is tried at its beginning."""

from __future__ import annotations

import os
from pathlib import Path

from ridgeline.errors import InputError


def refuse_unwritable(path: str | os.PathLike[str]) -> None:
    """Find out by trying whether a file can be written at ``path``: its folders are created, a file
    that is there stays as it is, and one that is not there is not left behind.

    Raises InputError that names the path if it cannot.
    """
    path = Path(path)
    is_new = not os.path.lexists(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab"):
            pass
        if is_new:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; give another path") from None
