"""The standard library modules that no demo model is trained on, and their source on this machine."""

from __future__ import annotations

import sysconfig
import tokenize
from pathlib import Path, PurePosixPath

from ridgeline.errors import InputError

# Chosen before any training: a spread of parsers, containers, formats, numbers and threads.
# fmt: off
HELD_OUT_MODULES = frozenset((
    "colorsys", "configparser", "csv", "fractions", "graphlib", "heapq",
    "json", "queue", "sched", "shlex", "textwrap", "wave",
))
# fmt: on


def standard_library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def held_out(path: PurePosixPath) -> bool:
    """Whether a path relative to the standard library's folder belongs to a held-out module."""
    return PurePosixPath(path.parts[0]).stem in HELD_OUT_MODULES


def held_out_texts() -> dict[PurePosixPath, str]:
    """The held-out files that are not empty, by their path relative to the standard library's folder.

    Another Python version has other texts. Raises InputError that names the modules whose source is missing.
    """
    library = standard_library()
    paths, missing = [], []
    for module in sorted(HELD_OUT_MODULES):
        found = sorted((library / module).rglob("*.py")) or list(library.glob(f"{module}.py"))
        paths += found
        if not found:
            missing.append(module)
    if missing:
        raise InputError(
            f"{library} has no source of {', '.join(missing)}: use a Python that comes with source files"
        )
    return {PurePosixPath(p.relative_to(library).as_posix()): text for p in paths if (text := read_source(p))}


def read_source(path: Path) -> str:
    """The text of a Python file, decoded as its coding line says."""
    with tokenize.open(path) as file:
        return file.read()
