"""Speculation by name, as a command's option gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ridgeline.engine.speculation.beside import Beside
from ridgeline.engine.speculation.draft_model import DraftModel
from ridgeline.engine.speculation.ngram import NGrams
from ridgeline.engine.speculation.proposer import Proposer
from ridgeline.engine.speculation.sinks_and_window import SinksAndWindow
from ridgeline.engine.speculation.speculator import Speculator
from ridgeline.errors import InputError

if TYPE_CHECKING:
    from ridgeline.loading import Loaded

#: The drafts that ship with their targets.
_DRAFTS = {"demo": "demo-draft"}


def choose(
    name: str,
    target: Loaded,
    *,
    draft_threads: int | None = None,
    draft_weights: str = "auto",
    draft_device: str | None = None,
) -> Speculator | None:
    """A speculator for ``target`` that leaves its output as it is: ``ngram``, ``self`` (through sinks and a
    window of its cache), ``draft:MODEL`` with what :func:`ridgeline.load` takes, or ``draft`` for a model
    that ships with one. None for ``off``. ``draft_weights`` are the draft's, and ``draft_device`` where it
    runs, as :func:`ridgeline.load` takes them; by default where the target does. With so many
    ``draft_threads`` of its own it works beside verification
    (:class:`~ridgeline.engine.speculation.beside.Beside`).

    Raises InputError for another name, a draft that cannot be loaded or has another vocabulary, and for
    options of a draft where there is none.
    """
    given = {
        "draft_threads": draft_threads is not None,
        "draft_weights": draft_weights != "auto",
        "draft_device": draft_device is not None,
    }
    if any(given.values()) and name.partition(":")[0] != "draft":
        option = next(option for option in given if given[option])
        raise InputError(f"{option} goes with a draft model, and speculate is {name!r}: leave it out")
    if name == "off":
        return None
    device = draft_device or ("cuda" if target.on_gpu else "cpu")
    proposer = _proposer(name, target, draft_weights, device)
    return Speculator(proposer if draft_threads is None else Beside(proposer, threads=draft_threads))


def _proposer(name: str, target: Loaded, draft_weights: str, device: str) -> Proposer:
    kind, _, model = name.partition(":")
    if name == "ngram":
        return NGrams()
    if name == "self":
        return SinksAndWindow()
    if kind != "draft" or name == "draft:":
        raise InputError(f"speculate is {name!r}, expected off, ngram, self, draft or draft:MODEL")
    model = model or _DRAFTS.get(target.config.name, "")
    if not model:
        raise InputError(
            f"{target.config.name} ships with no draft: name a model of its vocabulary, as draft:MODEL"
        )
    from ridgeline.loading import load, weight_choice
    from ridgeline.models import builtin_names

    if model.lower() in builtin_names() and not weight_choice(draft_weights).random:
        raise InputError(
            f"the draft {model} is a built-in config, which carries no weights: give a folder or a hub id"
        )
    return DraftModel(load(model, weights=draft_weights, device=device), target)
