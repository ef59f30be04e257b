import subprocess
import sys

HEAVY = {"torch", "numpy", "safetensors", "tokenizers", "jinja2", "huggingface_hub"}


def test_importing_the_readers_imports_nothing_heavy():
    script = (
        "import sys, ridgeline.weights.chat, ridgeline.weights.checkpoint, ridgeline.weights.generation,"
        f" ridgeline.weights.resolve, ridgeline.weights.tokenizer; print({HEAVY} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
