"""A tiny byte-level tokenizer, trained on the spot."""

import pytest

TEXT = ["def add(a, b):\n    return a + b\n", "class Ridge:\n    pass\n", "naïve café — 山の尾根 🏔\n"]


@pytest.fixture(scope="session")
def tokenizer():
    """300 tokens at most, with ``<end>`` (0) to end and ``<begin>`` (1) to begin."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    from ridgeline.weights.tokenizer import Tokenizer

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<end>", "<begin>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    return Tokenizer(backend, eos_ids=frozenset({0}), bos_id=1)
