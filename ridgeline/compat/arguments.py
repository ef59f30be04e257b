"""What both libraries' shims do with arguments: refuse what has no counterpart, and keep names apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ridgeline.errors import InputError


def refuse_given(**arguments: object) -> None:
    """InputError for the first argument that is neither None nor False."""
    for name, value in arguments.items():
        if value is not None and value is not False:
            raise InputError(f"{name} is given, which the CPU kernels have no counterpart of; leave it out")


@contextmanager
def theirs(**names: str) -> Iterator[None]:
    """Errors of the kernels name an argument as the other library calls it: ``scale="softmax_scale"``."""
    try:
        yield
    except InputError as error:
        ours, _, rest = str(error).partition(" ")
        raise InputError(f"{names.get(ours, ours)} {rest}") from None
