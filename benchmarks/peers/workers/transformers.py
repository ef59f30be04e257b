"""transformers on PyTorch, in bf16 with SDPA: its fastest dtype on a CPU that has bf16 products."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

from benchmarks.peers.cases import ENCODER_LENGTHS, PADDED_LENGTH, Case
from benchmarks.peers.files import CHECKPOINT
from benchmarks.peers.protocol import Ready, Task, Unable, serve

SETTINGS = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}


def prepare(task: Task) -> Ready:
    case = task.case
    if case.weights != "bf16":
        raise Unable("transformers has no 4-bit weights for a CPU in this comparison")
    if case.depth or case.batch > 1:
        raise Unable("transformers is timed with one sequence and an empty cache")
    torch.set_num_threads(task.threads)
    run = _encoder() if case.kind == "padded" else _decoder(task.folder / CHECKPOINT, case)
    with torch.inference_mode():
        run()
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    return Ready(_timed(run), "bf16", versions)


def _timed(run: Callable[[], None]) -> Callable[[], float]:
    @torch.inference_mode()
    def timed() -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    return timed


def _decoder(folder: Path, case: Case) -> Callable[[], None]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **SETTINGS).eval()
    ids = torch.randint(model.config.vocab_size, (1, case.tokens))

    def read() -> None:
        model(ids, use_cache=True, logits_to_keep=1)

    def generate() -> None:
        cache = transformers.DynamicCache(config=model.config)
        for i in range(case.tokens):
            model(ids[:, i : i + 1], past_key_values=cache, use_cache=True)

    return read if case.kind == "prompt" else generate


def _encoder() -> Callable[[], None]:
    config = transformers.BertConfig()  # BERT-base
    model = transformers.BertModel._from_config(config, **SETTINGS).eval()
    ids = torch.randint(config.vocab_size, (len(ENCODER_LENGTHS), PADDED_LENGTH))
    kept = (torch.arange(PADDED_LENGTH) < torch.tensor(ENCODER_LENGTHS)[:, None]).long()
    return lambda: model(ids, attention_mask=kept)


if __name__ == "__main__":
    serve(prepare)
