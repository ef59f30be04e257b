"""Hardware files: TOML whose fields are those of ``Device``, found by name, by path, or as this machine's."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from ridgeline.errors import InputError
from ridgeline.hardware.device import Device, Level, OnChip, Provenance

CATALOGUE = Path(__file__).parent / "catalogue"
THIS_MACHINE = ("this", "here")
THIS_GPU = "this-gpu"
ALIASES: Mapping[str, str] = {
    "a100": "a100-80gb",
    "h100": "h100-sxm",
    "v100": "v100-sxm2-32gb",
    "m2-ultra": "apple-m2-ultra",
    "m4-max": "apple-m4-max",
    "rtx-pro-6000-blackwell": "rtx-pro-6000",
    "a6000": "rtx-a6000",
    "tpu-v5-lite": "tpu-v5e",
    "trillium": "tpu-v6e",
    "cpu": "generic-cpu",
    "phone": "phone-ufs-3.2",
}


def cache_folder() -> Path:
    """Where files about this machine are kept: $RIDGELINE_CACHE, $XDG_CACHE_HOME/ridgeline, or
    ~/.cache/ridgeline. The folder may not exist yet."""
    if own := os.environ.get("RIDGELINE_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "ridgeline"
    return Path("~/.cache/ridgeline").expanduser()


def this_machine_file() -> Path:
    """The hardware file that ``ridgeline measure`` writes."""
    return cache_folder() / "this-machine.toml"


def this_machine() -> Device | None:
    """This machine as ``ridgeline measure`` left it, None before that. Raises as :func:`load_device`."""
    return load_device("this") if this_machine_file().is_file() else None


def gpu_file(name: str) -> Path:
    """The hardware file that ``ridgeline measure --device cuda`` writes for the GPU that its driver calls
    ``name``."""
    words = "".join(c if c.isalnum() else " " for c in name.lower()).split()
    return cache_folder() / "gpus" / f"{'-'.join(words) or 'gpu'}.toml"


def this_gpu(name: str) -> Device | None:
    """The GPU that its driver calls ``name`` as ``ridgeline measure --device cuda`` left it, None before
    that. Raises as :func:`load_device`."""
    path = gpu_file(name)
    return load_device(path) if path.is_file() else None


def device_names() -> list[str]:
    """The names in the catalogue, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in CATALOGUE.glob("*.toml"))


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """The device of that catalogue name (any case, with or without hyphens, or an alias), of that path
    to a ``.toml`` file, or, as 'this' or 'here', of this machine as ``ridgeline measure`` left it, or, as
    'this-gpu', of its GPU as ``ridgeline measure --device cuda`` did.

    Raises InputError when there is no such device, or when its file is not a valid hardware file:
    then the message names the file and the field or the line.
    """
    path = _find(os.fspath(name_or_path))
    values = _read_toml(path)
    try:
        return _device_from(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def save_device(device: Device, path: str | os.PathLike[str]) -> None:
    """Write a device so that ``load_device`` returns an equal one. Whoever reads the path meanwhile
    sees the old file or the new one, never half of one. Folders are created.

    Raises InputError when the path cannot be written.
    """
    path = Path(path)
    text = "".join(line + "\n" for line in _table_lines(_table_from(device), ()))
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(text.encode())
        draft.replace(path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise InputError(f"cannot write the hardware file {path}: {error.strerror}") from None


def _find(given: str) -> Path:
    name = given.strip().lower()
    if name in THIS_MACHINE:
        path = this_machine_file()
        if not path.is_file():
            raise InputError(f"this machine is not measured yet ({path}): run `ridgeline measure` first")
        return path
    if name == THIS_GPU:
        return _this_gpu_file()
    if name.endswith(".toml") or os.sep in given:
        return Path(given).expanduser()
    names = {name: name for name in device_names()} | ALIASES
    by_spelling = {_spelling(known): target for known, target in names.items()}
    if _spelling(name) not in by_spelling:
        raise _unknown(given, names)
    return CATALOGUE / f"{by_spelling[_spelling(name)]}.toml"


def _this_gpu_file() -> Path:
    """The only GPU that was measured; of several, the one that PyTorch would take."""
    found = sorted((cache_folder() / "gpus").glob("*.toml"))
    way_out = "run `ridgeline measure --device cuda` first"
    if not found:
        raise InputError(f"no GPU is measured yet ({cache_folder() / 'gpus'}): {way_out}")
    if len(found) == 1:
        return found[0]
    name = _current_gpu()
    path = None if name is None else gpu_file(name)
    if path is None or not path.is_file():
        known = ", ".join(map(str, found))
        raise InputError(f"several GPUs are measured, and this-gpu is none of them: give one of {known}")
    return path


def _current_gpu() -> str | None:
    """What the driver calls the GPU that PyTorch takes, if there is one."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _spelling(name: str) -> str:
    """A name without the marks that people write differently: RTX 4090, rtx_4090, rtx-4090."""
    return name.translate(str.maketrans("", "", " -_"))


def _unknown(given: str, names: Mapping[str, str]) -> InputError:
    from difflib import get_close_matches  # only a mistake needs it

    close = [names[match] for match in get_close_matches(given.strip().lower(), names, n=4)]
    if close:
        return InputError(f"unknown hardware '{given}'; closest: {', '.join(dict.fromkeys(close))}")
    known = ", ".join(device_names())
    return InputError(f"unknown hardware '{given}'; choose one of: {known}, this, this-gpu, or a .toml file")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no hardware file at {path}") from None
    except OSError as error:
        raise InputError(f"cannot read the hardware file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8, so not a hardware file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}") from None


def _device_from(values: dict[str, Any]) -> Device:
    _check_fields(Device, values, "")
    for name in ("matrix", "vector", "on_chip", "provenance", "kernels", "calibration"):
        if not isinstance(values.get(name, {}), dict):
            raise InputError(f"{name} must be a table")
    levels = values["levels"]
    if not isinstance(levels, list) or not all(isinstance(level, dict) for level in levels):
        raise InputError("levels must be tables, each under [[levels]]")
    for level in levels:
        _check_fields(Level, level, "levels.")
    on_chip = values.get("on_chip", {})
    _check_fields(OnChip, on_chip, "on_chip.")
    parts = {
        "levels": tuple(Level(**level) for level in levels),
        "on_chip": OnChip(**on_chip),
        "provenance": {key: _provenance(key, value) for key, value in values["provenance"].items()},
    }
    return Device(**values | parts)


def _check_fields(kind: type, table: dict[str, Any], prefix: str) -> None:
    """InputError when the table lacks a field of this dataclass or has one that it does not know."""
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    unknown = [prefix + name for name in table if name not in known]
    if unknown:
        raise InputError(f"unknown field {', '.join(unknown)}; known here: {', '.join(known)}")
    missing = [prefix + name for name, required in known.items() if required and name not in table]
    if missing:
        raise InputError(f"missing field {', '.join(missing)}")


def _provenance(section: str, value: Any) -> Provenance:
    try:
        return Provenance(value)
    except ValueError:
        raise InputError(
            f"provenance.{section} is {value!r}; choose one of: {', '.join(Provenance)}"
        ) from None


def _table_from(device: Device) -> dict[str, Any]:
    """The TOML table of a device: its fields by name, those that are unset or empty left out."""
    table = {f.name: getattr(device, f.name) for f in fields(device)}
    table["levels"] = [vars(level) for level in device.levels]
    table["on_chip"] = {name: size for name, size in vars(device.on_chip).items() if size is not None}
    return {name: value for name, value in table.items() if value is not None and value != {}}


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """A table's own values, then its sub-tables under their headers: TOML reads what follows a
    header as part of it, so plain values must come first."""
    nested = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    yield from (f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in nested)
    for key, value in nested.items():
        yield ""
        yield f"[{'.'.join(_key(part) for part in (*path, key))}]"
        yield from _table_lines(value, (*path, key))


def _value(value: Any) -> str:
    """A TOML value on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int | float):  # a NumPy float is a float with a repr of its own
        return int.__repr__(value) if isinstance(value, int) else float.__repr__(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_key(key)} = {_value(item)}' for key, item in value.items())}}}"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"TOML has no value like {value!r}")


def _key(key: str) -> str:
    is_bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if is_bare else _text(key)


def _text(text: str) -> str:
    from json import dumps  # JSON's escapes are TOML's, but for DEL

    return dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
