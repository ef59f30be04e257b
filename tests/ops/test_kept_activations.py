"""What a layer keeps for its backward pass, beside the tensors that PyTorch's autograd really saves."""

import pytest

from ridgeline.models import declare, read_config
from ridgeline.ops.batch import Span
from ridgeline.ops.count_pairs import Pairs
from ridgeline.ops.lowering import UNFUSED
from tests.ops.backward_twins import ROWS, SEQUENCES, TWINS
from tests.ops.small_models import count

#: With ReLU, whose derivative both take from the result, and without dropout.
PLAIN = {
    "OPTForCausalLM": {"dropout": 0.0, "attention_dropout": 0.0},
    "GPT2LMHeadModel": {
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "activation_function": "relu",
        "bos_token_id": None,
        "eos_token_id": None,
    },
    "BertForMaskedLM": {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "relu",
    },
}
FP32 = 4


def saved_by_pytorch(architecture, layers):
    """Bytes of all storages that autograd saves in a forward pass, the parameters left out."""
    import torch
    import transformers

    model_class = getattr(transformers, architecture)
    depth = "n_layer" if architecture.startswith("GPT2") else "num_hidden_layers"
    fields = {**TWINS[architecture], **PLAIN[architecture], depth: layers}
    config = model_class.config_class(**fields, attn_implementation="eager")
    model = model_class(config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor too, so that none is reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=torch.zeros(SEQUENCES, ROWS, dtype=torch.long))
    raw = config.to_dict() | {"architectures": [architecture], "dtype": "float32"}
    return sum(nbytes for nbytes, _ in saved.values()), raw


def kept_by_the_trace(raw):
    model = declare(read_config(raw, "twin"), "fp32")
    options = {"lowering": UNFUSED, "pairs": Pairs.SQUARE, "train": True, "activations": "fp32"}
    return count(model, Span(ROWS, count=SEQUENCES), **options).backward().memory().activations


@pytest.mark.parametrize("architecture", PLAIN)
def test_one_more_layer_keeps_what_pytorch_saves_but_for_the_norms_statistics(architecture):
    """PyTorch also keeps each row's mean and inverse deviation of both norms, which the trace leaves out."""
    (few, few_raw), (many, many_raw) = (saved_by_pytorch(architecture, layers) for layers in (4, 5))
    statistics = 2 * 2 * ROWS * SEQUENCES * FP32
    assert many - few == kept_by_the_trace(many_raw) - kept_by_the_trace(few_raw) + statistics
