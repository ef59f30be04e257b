"""From what the user calls a model to its files: a folder, or a model on the Hugging Face hub."""

import os
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

from ridgeline.errors import InputError
from ridgeline.weights.files import is_there

# What is read of a hub model: no pickle files, no subfolders (other formats of the same weights), and no
# `consolidated.safetensors`, the same weights again in another layout.
_FILES = ["*.json", "*.jinja", "tokenizer*", "model*.safetensors"]
_NOT_FILES = ["*/*"]

HUB_TIMEOUT_S = 10

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_folder(model: str, known: Iterable[str] = ()) -> Path:
    """The folder with the files of ``model``: itself, or downloaded from the hub if it is an ``org/name``.

    A hub model is taken from huggingface_hub's cache when the hub can't be reached or HF_HUB_OFFLINE is set.
    ``known`` are the names of built-in models, for a suggestion when ``model`` is none of these.

    Raises InputError if there is no such folder or hub model, or it can't be had.
    """
    folder = _local(model, known)
    return _download(model, _fetch_snapshot) if folder is None else folder


def find_config(model: str, known: Iterable[str] = ()) -> Path:
    """The ``config.json`` of ``model``, as ``find_folder`` finds it; of a hub model only it is downloaded."""
    folder = _local(model, known)
    if folder is None:
        return _download(model, _fetch_config)
    config = folder / "config.json"
    if not is_there(config):
        raise InputError(f"{folder} has no config.json: give the folder of a model in Hugging Face format")
    return config


def _local(model: str, known: Iterable[str]) -> Path | None:
    """The folder ``model``, None if it isn't there and looks like a hub id."""
    path = os.path.expanduser(model)
    if os.path.isdir(path):
        return Path(path)
    if os.path.isfile(path):
        raise InputError(f"{model} is a file: give the model's folder, {os.path.dirname(path) or '.'}")
    if _HUB_ID.fullmatch(model):
        return None
    close = get_close_matches(model.lower(), list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "give a folder, a hub id (org/name) or a built-in model"
    raise InputError(f"no model {model!r}: {hint}")


def _fetch_snapshot(repo_id: str, cached_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    folder = Path(
        snapshot_download(
            repo_id,
            allow_patterns=_FILES,
            ignore_patterns=_NOT_FILES,
            local_files_only=cached_only,
            etag_timeout=HUB_TIMEOUT_S,
        )
    )
    if not any(folder.glob("*.safetensors")):
        if cached_only:
            raise FileNotFoundError(folder)  # the weights are not in the cache, only smaller files are
        raise InputError(f"{repo_id} has no safetensors weights on the hub: choose a model that has")
    return folder


def _fetch_config(repo_id: str, cached_only: bool) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(repo_id, "config.json", local_files_only=cached_only, etag_timeout=HUB_TIMEOUT_S)
    )


def _download(repo_id: str, fetch: Callable[[str, bool], Path]) -> Path:
    """What ``fetch(repo_id, cached_only)`` gets: from the hub, or the cache when the hub can't be reached."""
    try:
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HFValidationError,
            HTTPError,
            RepositoryNotFoundError,
        )
    except ImportError:
        raise InputError(
            f"{repo_id} is not a folder, and to download it huggingface_hub is missing:"
            " pip install 'ridgeline[run]'"
        ) from None

    outage = None
    try:
        outage = _outage(repo_id)
        return fetch(repo_id, outage is not None)
    except GatedRepoError:
        raise InputError(
            f"{repo_id} is gated: ask for access at https://huggingface.co/{repo_id} and run `hf auth login`"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise InputError(
            f"{repo_id} is neither a folder nor a model on the hub: check the spelling, or if it is private"
            " run `hf auth login`"
        ) from None
    except (OSError, HTTPError, EntryNotFoundError) as error:
        if outage is not None:
            problem = f"is neither a folder nor wholly in the cache, and the hub can't be reached ({outage})"
            raise InputError(f"{repo_id} {problem}: give a folder, or connect to the network") from None
        if isinstance(error, EntryNotFoundError):
            raise InputError(
                f"{repo_id} has no config.json on the hub: choose a model in its format"
            ) from None
        raise InputError(f"{repo_id} was not downloaded ({_reason(error)}): try again, it resumes") from None


def _outage(repo_id: str) -> str | None:
    """Why the hub can't be reached, None if it knows ``repo_id``.

    Asked first because the library's own downloads begin with a request that has, depending on its version,
    no time limit or many retries. Raises the library's errors for a model that is unknown or gated.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    try:
        HfApi().model_info(repo_id, timeout=HUB_TIMEOUT_S)
    except RepositoryNotFoundError:
        raise
    except (OSError, HTTPError) as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
