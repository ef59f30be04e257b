"""A way to run a workload, and what it would take: time, memory, and what binds it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

from ridgeline.analysis.generation import mean_step
from ridgeline.analysis.setting import Setting, settle
from ridgeline.engine.speculation.length import expected_tokens
from ridgeline.errors import InputError
from ridgeline.hardware import Device
from ridgeline.hardware.cluster import Cluster
from ridgeline.models import ModelConfig
from ridgeline.ops.lowering import Lowering
from ridgeline.ops.numbers import minimum
from ridgeline.ops.records import Mask
from ridgeline.predict import Prediction


@dataclass(frozen=True)
class Speculation:
    """``tokens`` proposed a pass, each accepted with probability ``acceptance`` once those before it are.
    They come from ``draft`` on the same device, from the target through a ``view`` of so many tokens of its
    own cache, or from the text itself, which costs no pass.

    Raises InputError for an acceptance outside 0 to 1 and for less than one token.
    """

    acceptance: float
    tokens: int
    draft: ModelConfig | None = None
    view: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1:
            raise InputError(f"acceptance must be from 0 to 1, not {self.acceptance!r}")
        if self.tokens < 1:
            raise InputError(f"tokens proposed must be at least 1, not {self.tokens!r}")


@dataclass(frozen=True)
class Plan:
    """A way to run the workload.

    ``weights`` and ``cache`` are storage formats, None the model's own. ``keeps_cache`` False computes the
    whole sequence anew for every token. ``window`` tokens before its own, and the first ``sinks`` ones, are
    all that a token sees, and all that is kept. ``reused`` is the share of the prompt that is found in the
    cache. ``tensor`` devices share every layer.
    """

    batch: int = 1
    weights: str | None = None
    cache: str | None = None
    lowering: Lowering | None = None
    keeps_cache: bool = True
    window: int | None = None
    sinks: int = 0
    reused: float = 0.0
    tensor: int = 1
    speculation: Speculation | None = None


@dataclass(frozen=True)
class Outcome:
    """What a plan takes. ``tokens_per_second`` are output tokens, an encoder's input tokens; ``bound`` is the
    resource that most of the time goes to; ``streamed_bytes`` of the weights are read from storage at every
    pass, because memory does not hold them."""

    ttft_seconds: float
    tpot_seconds: float | None
    total_seconds: float
    tokens_per_second: float
    memory_bytes: float
    fits: bool
    bound: str
    streamed_bytes: float = 0.0


@dataclass
class Workbench:
    """A workload on a device: prompts of ``prompt`` tokens, ``output`` new ones each."""

    config: ModelConfig
    device: Device
    prompt: int
    output: int
    _settings: dict[tuple[str | None, str | None, int | None], Setting] = field(default_factory=dict)

    def outcome(self, plan: Plan) -> Outcome:
        """What ``plan`` takes, of several devices on each. Raises InputError if the device cannot run its
        formats, or if so many cannot share the model."""
        if plan.tensor > 1:
            return self._shared(plan)
        return _Run(self, plan, self._setting(plan).run_as(plan.lowering)).outcome()

    def _shared(self, plan: Plan) -> Outcome:
        """What a plan takes whose layers several devices share, with all else as it is by default."""
        from ridgeline.analysis.parallel import parallel
        from ridgeline.predict.layout import Layout

        load = {"prompt": self.prompt, "output": self.output, "batch": plan.batch}
        formats = {"weights": plan.weights, "cache": plan.cache}
        found = parallel(self.config, self.cluster(plan.tensor), Layout(plan.tensor), **load, **formats)
        taken = found.figures
        return Outcome(
            ttft_seconds=taken.ttft_seconds,
            tpot_seconds=taken.tpot_seconds,
            total_seconds=taken.total_seconds,
            tokens_per_second=taken.tokens_per_second,
            memory_bytes=taken.memory,
            fits=taken.fits,
            bound=max(found.by_bound, key=found.by_bound.get),
        )

    def cluster(self, devices: int) -> Cluster:
        """So many of the device, in nodes as its vendor builds them. Raises InputError if it has no link."""
        return Cluster(self.device, devices)

    def _setting(self, plan: Plan) -> Setting:
        key = (plan.weights, plan.cache, plan.window)
        if key not in self._settings:
            setting = settle(self.config, self.device, plan.weights, plan.cache)
            if plan.window is not None:
                setting = replace(setting, model=narrowed(setting.model, plan.window))
            self._settings[key] = setting
        return self._settings[key]


@dataclass(frozen=True)
class _Run:
    bench: Workbench
    plan: Plan
    setting: Setting

    def outcome(self) -> Outcome:
        prefill, steps = self._prefill, max(self.bench.output - 1, 0)
        streamed, held = self._streamed
        ttft = max(float(prefill.seconds), self._reading(streamed))
        decoding = self._decoding(steps, streamed) if steps else 0.0
        total = ttft + decoding
        tokens = self.bench.output if self.bench.output else self.bench.prompt
        bounds = prefill.by_bound()
        if decoding > ttft:
            bounds = self._step(max(self.bench.output // 2, 1)).by_bound()
        bound = "storage" if streamed else max(bounds, key=bounds.get)
        return Outcome(
            ttft_seconds=ttft,
            tpot_seconds=decoding / steps if steps else None,
            total_seconds=total,
            tokens_per_second=self.plan.batch * tokens / total,
            memory_bytes=self._needed,
            fits=held,
            bound=bound,
            streamed_bytes=streamed,
        )

    # -- time ------------------------------------------------------------------------------------------

    @cached_property
    def _prefill(self) -> Prediction:
        return self.setting.first(self.bench.prompt, self.plan.batch, self._found)

    @property
    def _found(self) -> int:
        """Tokens of every prompt that lie in the cache already."""
        return min(int(self.plan.reused * self.bench.prompt), self.bench.prompt - 1)

    def _decoding(self, steps: int, streamed: float) -> float:
        """Seconds of the steps after the first token; with proposals each gives several."""
        each = float(mean_step(lambda given: self._step(given).seconds, 1, steps))
        each = max(each, self._reading(streamed)) + self._draft_seconds
        speculation = self.plan.speculation
        if speculation is None:
            return steps * each
        return steps / expected_tokens(speculation.acceptance, speculation.tokens) * each

    def _step(self, given: Any) -> Prediction:
        """The step behind so many tokens of the output."""
        bench, plan = self.bench, self.plan
        if not plan.keeps_cache:
            return self.setting.anew(bench.prompt, given, plan.batch)
        proposed = plan.speculation.tokens if plan.speculation else 0
        if plan.window is not None:
            return self.setting.next(self._seen(bench.prompt + given - 1), 1, plan.batch)
        if proposed:  # the last proposals do not reach beyond what the model takes
            given = minimum(given, bench.config.window - bench.prompt - proposed)
        return self.setting.next(bench.prompt, given, plan.batch, 1 + proposed)

    @cached_property
    def _draft_seconds(self) -> float:
        """Seconds of the draft's passes for one pass of the target."""
        speculation = self.plan.speculation
        if speculation is not None and speculation.view is not None:
            seen = min(speculation.view, self.bench.prompt + self.bench.output // 2)
            return speculation.tokens * float(self.setting.next(seen, 1, self.plan.batch).seconds)
        if speculation is None or speculation.draft is None:
            return 0.0
        draft = settle(speculation.draft, self.bench.device)
        middle = self.bench.prompt + self.bench.output // 2
        context = min(int(self._seen(middle)), speculation.draft.window - 1)
        return speculation.tokens * float(draft.next(context, 1, self.plan.batch).seconds)

    def _seen(self, past: Any) -> Any:
        """How many of ``past`` tokens a new one meets in the cache."""
        if self.plan.window is None:
            return past
        return minimum(past, self.plan.sinks + self.plan.window)

    # -- memory ----------------------------------------------------------------------------------------

    @cached_property
    def _beside_weights(self) -> float:
        """Bytes of the cache at its longest, of activations, and of a draft."""
        tokens = self._seen(self.bench.prompt + self.bench.output) if self.plan.keeps_cache else 0
        found = self.setting.cache_bytes(tokens, 0, self.plan.batch)
        found += float(self.setting.activation_bytes(self.bench.prompt, self.plan.batch, self._found))
        speculation = self.plan.speculation
        if speculation is not None and speculation.draft is not None:
            draft = settle(speculation.draft, self.bench.device)
            found += draft.model.weight_bytes() + draft.cache_bytes(tokens, 0, self.plan.batch)
        return found

    @property
    def _needed(self) -> float:
        return self.setting.model.weight_bytes() + self._beside_weights

    @property
    def _streamed(self) -> tuple[float, bool]:
        """Bytes of the weights that every pass reads from storage, and whether the plan can run: memory holds
        everything, or all but weights that a storage of known bandwidth holds."""
        over = self._needed - self.bench.device.memory_bytes
        if over <= 0:
            return 0.0, True
        if self.bench.device.storage_bandwidth is None or over > self.setting.model.weight_bytes():
            return 0.0, False
        return over, True

    def _reading(self, streamed: float) -> float:
        """Seconds that reading them takes: beside the computation, so that the longer of the two counts."""
        return streamed / self.bench.device.storage_bandwidth if streamed else 0.0


def narrowed(node: Any, window: int) -> Any:
    """The model with every causal mask narrowed to ``window`` tokens before a query's own."""
    if isinstance(node, Mask):
        left = node.window[0]
        narrow = window if left < 0 else min(left, window)
        return replace(node, window=(narrow, node.window[1])) if node.causal else node
    if isinstance(node, tuple):
        found = tuple(narrowed(item, window) for item in node)
        return node if all(a is b for a, b in zip(found, node, strict=True)) else found
    if is_dataclass(node) and not isinstance(node, type):
        changed = {}
        for f in fields(node):
            if f.init and (new := narrowed(getattr(node, f.name), window)) is not getattr(node, f.name):
                changed[f.name] = new
        return replace(node, **changed) if changed else node
    return node
