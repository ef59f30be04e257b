"""Reading a JSON file of a model folder."""

import json
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError

# What a repository cloned without git-lfs holds in place of each large file.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file ``path``.

    Raises InputError if the file is missing, unreadable, not JSON, or holds something else than an object.
    """
    data = _read(path)
    if data.startswith(LFS_POINTER):
        raise InputError(
            f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in {path.parent}"
        )
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): download it again") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InputError(
            f"{path} is broken JSON at {where} ({error.msg}): mend it or download it again"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        reason = str(error).partition(";")[0]
        raise InputError(f"{path} cannot be read as JSON ({reason}): download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {_JSON_TYPES[type(value)]}, expected an object {{...}}")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in the JSON file ``path``, or an empty one if there is no such file.

    Raises InputError as ``read_json`` does for a file that is there.
    """
    return read_json(path) if is_there(path) else {}


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder.

    Raises InputError where that cannot be told, as in a folder that may not be searched; ``Path.exists``
    raises PermissionError there.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return True


def unreadable(path: Path, error: OSError) -> InputError:
    """What to raise where the system refuses to read ``path``."""
    return InputError(f"{path} cannot be read ({error.strerror}): check the path and its permissions")


_JSON_TYPES = {
    list: "array",
    str: "string",
    int: "number",
    float: "number",
    bool: "boolean",
    type(None): "null",
}


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: is {path.parent} a model folder?") from None
    except OSError as error:
        raise unreadable(path, error) from None
