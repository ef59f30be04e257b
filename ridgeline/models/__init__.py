"""Forward passes, one file an architecture family, and reading a config.json."""

from ridgeline.models.model import EncoderDecoder, Model, ModelConfig
from ridgeline.models.registry import build, builtin_names, declare, load_config, read_config

__all__ = [
    "EncoderDecoder",
    "Model",
    "ModelConfig",
    "build",
    "builtin_names",
    "declare",
    "load_config",
    "read_config",
]
