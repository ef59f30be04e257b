"""The demo model's tokenizer: byte-level BPE with pieces cut to suit Python source.

Run `python -m training.tokenizer` from the repository's root to train it again; it takes seconds.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from training.corpus import Corpus, collect

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DEMO = Path(__file__).parent.parent / "ridgeline" / "demo"
MODEL_FOLDER = _DEMO / "model"
DRAFT_FOLDER = _DEMO / "draft"

VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
# Three ids are kept free, so that fine-tuning can add a control token without another vocabulary.
SPECIAL_TOKENS = [END_OF_TEXT, "<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>"]

# What one token may span. A line break takes the next line's indentation but for its last space, which stays
# with the word as it does in mid-line; so "):", the break and the indentation can be one token, and "return"
# has one spelling. Alternatives are tried in order.
PIECES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word and the space, dot, bracket or underscore before it
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+(?:\n+ *(?= ))?\n*",  # punctuation, with a line break and indentation after it
    r"\n+ *(?= )",
    r"\s*\n+",
    r"\s+(?!\S)",
    r"\s+",
)


def train(corpus: Corpus) -> "Tokenizer":
    """A tokenizer of `VOCABULARY` ids trained on the corpus's training files; `<|endoftext|>` has id 0.

    Every byte has a token and nothing is normalised, so decoding what was encoded gives the same text back.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(PIECES)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((file.text for file in corpus.training), trainer)
    return tokenizer


def save(tokenizer: "Tokenizer", folder: Path, window: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def bytes_per_token(tokenizer: "Tokenizer", texts: list[str]) -> float:
    """UTF-8 bytes divided by tokens, over all `texts`."""
    tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    return sum(len(text.encode()) for text in texts) / tokens


def main() -> None:
    """Train the tokenizer and write it into the folders of both models."""
    corpus = collect()
    tokenizer = train(corpus)
    window = json.loads((MODEL_FOLDER / "config.json").read_text())["max_position_embeddings"]
    for folder in (MODEL_FOLDER, DRAFT_FOLDER):
        save(tokenizer, folder, window)
    rate = bytes_per_token(tokenizer, [file.text for file in corpus.held_out])
    print(f"{tokenizer.get_vocab_size()} tokens, {rate:.2f} bytes a token on the held-out files")


if __name__ == "__main__":
    main()
