"""OpenVINO with 4-bit weights in groups of 128, exported through optimum-intel, as a stateful model.

All else is optimum-intel's and OpenVINO's default: the output matrix in 8 bits, activations quantised on the
fly, the cache in 8 bits.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import numpy
from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

from benchmarks.peers.cases import Case
from benchmarks.peers.files import CHECKPOINT
from benchmarks.peers.protocol import Ready, Task, Unable, serve

GROUP = 128


def prepare(task: Task) -> Ready:
    case = task.case
    if case.weights != "4-bit" or case.kind not in ("prompt", "generate"):
        raise Unable("OpenVINO is timed with 4-bit weights, reading and generating")
    settings = {"INFERENCE_NUM_THREADS": task.threads, "PERFORMANCE_HINT": "LATENCY"}
    model = OVModelForCausalLM.from_pretrained(_exported(task.folder), ov_config=settings)
    model.compile()
    sequences = Sequences(model, case)
    sequences.run()
    names = ("openvino", "optimum-intel", "nncf")
    return Ready(sequences.run, f"int4-g{GROUP}, output int8", {name: version(name) for name in names})


def _exported(folder: Path) -> Path:
    """The converted checkpoint, made if it is not there."""
    path = folder / "tinyllama-openvino"
    if (path / "openvino_model.xml").is_file():
        return path
    quantised = OVWeightQuantizationConfig(bits=4, group_size=GROUP, sym=True, ratio=1.0)
    model = OVModelForCausalLM.from_pretrained(
        folder / CHECKPOINT, export=True, compile=False, quantization_config=quantised
    )
    model.save_pretrained(path)
    return path


class Sequences:
    """A case's sequences: what they have cached lies in the request's state."""

    def __init__(self, model: OVModelForCausalLM, case: Case) -> None:
        self.request, self.case = model.request, case
        self.inputs = {name for port in self.request.model_inputs for name in port.names}
        generator = numpy.random.default_rng(0)
        longest = case.depth + case.tokens
        self.ids = generator.integers(model.config.vocab_size, size=(case.batch, longest))
        if case.depth:
            self._infer(0, case.depth)
            self.cached = [(state, state.state.data.copy()) for state in self.request.query_state()]

    def run(self) -> float:
        """Seconds of the case's tokens, after the cached ones."""
        self._restore()
        case = self.case
        chunk = case.tokens if case.kind == "prompt" else 1
        begin = time.perf_counter()
        for past in range(case.depth, case.depth + case.tokens, chunk):
            self._infer(past, chunk)
        return time.perf_counter() - begin

    def _restore(self) -> None:
        from openvino import Tensor

        if not self.case.depth:
            self.request.reset_state()
            return
        for state, data in self.cached:
            state.state = Tensor(data)

    def _infer(self, past: int, tokens: int) -> None:
        batch, stop = self.case.batch, past + tokens
        given = {
            "input_ids": self.ids[:, past:stop],
            "attention_mask": numpy.ones((batch, stop), dtype=numpy.int64),
            "position_ids": numpy.arange(past, stop)[None].repeat(batch, 0),
            "beam_idx": numpy.arange(batch, dtype=numpy.int32),
        }
        self.request.infer({name: given[name] for name in given.keys() & self.inputs}, share_inputs=True)


if __name__ == "__main__":
    serve(prepare)
