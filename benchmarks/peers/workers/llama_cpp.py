"""llama.cpp through llama-cpp-python's bindings of its C functions, with flash attention.

A prompt is one call of ``llama_decode``, which llama.cpp cuts into 512 tokens, its default; a generated token
is one call too. Nothing is sampled.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import llama_cpp as llama

from benchmarks.peers.protocol import Ready, Task, Unable, serve
from benchmarks.peers.workers import gguf_file

FLASH_ATTENTION = 1
#: A quantised file's type, and how the harness calls it.
FILE_TYPES = {"4-bit": ("Q4_0", llama.LLAMA_FTYPE_MOSTLY_Q4_0)}
#: Tokens that a call takes at most.
BATCH = 2048


def prepare(task: Task) -> Ready:
    case = task.case
    if case.kind not in ("prompt", "generate"):
        raise Unable(f"llama.cpp is not asked to do {case.kind}")
    llama.llama_backend_init()
    path, weights = _model_file(task)
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    context = llama.llama_init_from_model(model, _settings(task))
    if not context:
        raise Unable("llama.cpp made no context: is there enough memory?")
    sequences = Sequences(context, case.batch, model)
    sequences.add(case.depth)
    run = sequences.read if case.kind == "prompt" else sequences.generate
    run(case.tokens, case.depth)
    return Ready(
        run=lambda: run(case.tokens, case.depth),
        weights=weights,
        versions={"llama-cpp-python": version("llama-cpp-python")},
        step_bytes=llama.llama_model_size(model) - gguf_file.embedding_bytes(path),
    )


def _settings(task: Task) -> llama.llama_context_params:
    case = task.case
    settings = llama.llama_context_default_params()
    settings.n_ctx = case.batch * (-(-(case.depth + case.tokens) // 256) * 256)
    settings.n_batch = BATCH
    settings.n_seq_max = case.batch
    settings.n_threads = settings.n_threads_batch = task.threads
    settings.flash_attn_type = FLASH_ATTENTION
    settings.no_perf = True
    return settings


def _model_file(task: Task) -> tuple[Path, str]:
    """The file for the task's weights, made if it is not there, and its format."""
    full = gguf_file.from_checkpoint(task.folder)
    if task.case.weights == "bf16":
        return full, "BF16"
    name, file_type = FILE_TYPES[task.case.weights]
    path = task.folder / f"tinyllama-{name.lower()}.gguf"
    if not path.is_file():
        settings = llama.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = file_type, task.threads
        draft = path.with_suffix(".draft")
        if llama.llama_model_quantize(str(full).encode(), str(draft).encode(), settings):
            raise Unable(f"llama.cpp could not quantise {full}: delete it, so that it is made anew")
        draft.rename(path)
    return path, name


class Sequences:
    """``count`` sequences that grow together in one context."""

    def __init__(self, context: llama.llama_context_p, count: int, model: llama.llama_model_p) -> None:
        self.context, self.count = context, count
        self.memory = llama.llama_get_memory(context)
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self.batch = llama.llama_batch_init(BATCH, 0, 1)

    def add(self, tokens: int, past: int = 0) -> None:
        """``tokens`` more for each sequence, as many in a call as it takes; logits of a call's last one."""
        for sequence in range(self.count):
            for start in range(0, tokens, BATCH):
                rows = min(BATCH, tokens - start)
                self._decode([(sequence, past + start + i, i == rows - 1) for i in range(rows)])

    def read(self, tokens: int, past: int) -> float:
        begin = time.perf_counter()
        self.add(tokens, past)
        return self._ended(begin, past)

    def generate(self, tokens: int, past: int) -> float:
        begin = time.perf_counter()
        for position in range(past, past + tokens):
            self._decode([(sequence, position, True) for sequence in range(self.count)])
        return self._ended(begin, past)

    def _ended(self, begin: float, past: int) -> float:
        """The seconds since ``begin``; then the sequences are what they were."""
        seconds = time.perf_counter() - begin
        for sequence in range(self.count):
            llama.llama_memory_seq_rm(self.memory, sequence, past, -1)
        return seconds

    def _decode(self, tokens: list[tuple[int, int, bool]]) -> None:
        """One call: the sequence and position of every token, and whether it gets logits."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (sequence, position, logits) in enumerate(tokens):
            batch.token[i] = (7919 * (position + 1) + sequence) % self.vocabulary
            batch.pos[i], batch.logits[i] = position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(self.context)


if __name__ == "__main__":
    serve(prepare)
